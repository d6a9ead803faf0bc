import type { Tensor } from '@heed/core';
import { copyContiguous, range, type WgslModule } from '@heed/core/~internal';

/** How rows of values are read: four at a time where they are aligned. */
export type ValueSpec = {
  valueDim: number;
  vector: boolean;
};

/** Items of four that a row of values has, the last one padded. */
export function columnsOf(valueDim: number): number {
  return Math.ceil(valueDim / 4);
}

/** `value_<name>(at, c)`: column group c of the row of binding `name` that starts at item `at`; zeros past the row's end. */
export function valueModule(name: string, { valueDim, vector }: ValueSpec): WgslModule {
  const element = (e: number): string =>
    `select(0.0, load_${name}(at + min(c * 4u + ${e}u, ${valueDim - 1}u)), c * 4u + ${e}u < ${valueDim}u)`;
  const body = vector ? `return load_${name}(at + c);` : `return vec4f(${range(4).map(element).join(', ')});`;
  return { name: `zeta-value-${name}-${valueDim}-${vector}`, text: `fn value_${name}(at: u32, c: u32) -> vec4f { ${body} }` };
}

/** Statements that store `value`, column group c, into the contiguous row `row` of binding `name`. */
export function storeValue(name: string, { valueDim, vector }: ValueSpec, row: string, value: string): string {
  if (vector) return `store_${name}((${row}) * ${valueDim / 4}u + c, ${value});`;
  return range(4)
    .map((e) => `if (c * 4u + ${e}u < ${valueDim}u) { store_${name}((${row}) * ${valueDim}u + c * 4u + ${e}u, ${value}[${e}]); }`)
    .join('\n');
}

/** Values [batch, tokens, heads, valueDim] as kernels bind them: the tensor (a copy where rows are not aligned) and its strides in items. */
export function valueRows(v: Tensor): {
  tensor: Tensor;
  spec: ValueSpec;
  strides: { batchStride: number; tokenStride: number; headStride: number };
} {
  const valueDim = v.dim(3);
  const vector = valueDim % 4 === 0;
  const aligned = v.offset % 4 === 0 && v.strides.slice(0, 3).every((stride, axis) => stride % 4 === 0 || v.dim(axis) === 1);
  const tensor = vector && !aligned ? copyContiguous(v) : v;
  const [batchStride = 0, tokenStride = 0, headStride = 0] = tensor.strides.map((stride) => (vector ? Math.floor(stride / 4) : stride));
  return { tensor, spec: { valueDim, vector }, strides: { batchStride, tokenStride, headStride } };
}

/** Run-time strides of values, in items. */
export const valueStrides = { batchStride: 'u32', tokenStride: 'u32', headStride: 'u32' } as const;
