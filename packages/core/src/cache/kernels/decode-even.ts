// Decode attention of one query over all stored rows of halves: what a generating model asks of its cache, as attention/kernels/decode-even.ts.
// tile    see there; the page of a step is looked up two steps ahead of its values, one ahead of its keys
// bytes   reads each stored row once a tile of rows, 16 bytes a load
// limits  steps lie inside pages; head dimensions are multiples of 8; windows, rings that turned, codes and chosen pages take kernels/decode.ts
// source  flash-decoding (Dao et al. 2023); pages: vLLM (Kwon et al. 2023, section 4)
import type { DecodePlan } from '../../attention/decode.js';
import { type EvenDecodeSpec, evenDecodeText, evenUniforms } from '../../attention/kernels/decode-even.js';
import { decodeStep } from '../../attention/kernels/decode-text.js';
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import type { KvGroup } from '../group.js';

type EvenSpec = EvenDecodeSpec & { pageTokens: number };

const kernel = defineKernel({
  name: 'kv-decode-even',
  tier: 'subgroups',
  forms: ['baseline', 'subgroups'],
  bindings: {
    q: read<EvenSpec>('float', { width: 4 }),
    keys: read<EvenSpec>('u32', { raw: 'vec4u' }),
    values: read<EvenSpec>('u32', { raw: 'vec4u' }),
    index: read<EvenSpec>('u32'),
    parts: write<EvenSpec>('f32', { width: 4 }),
  },
  uniforms: { groupHeads: 'u32', pages: 'u32', ...evenUniforms } as const,
  wgsl: (spec: EvenSpec) => {
    const stepKeys = decodeStep(spec);
    const apart = `${stepKeys}u * uniforms.splits`;
    const { pageTokens, headDim, valueDim } = spec;
    return `
    // the row of key number n of a page, and the page of a key; past the last one its neighbour's, which nobody reads
    fn rowIn(page: u32, i: u32, n: u32) -> u32 { return (page * uniforms.groupHeads + i) * ${pageTokens}u + n % ${pageTokens}u; }
    fn pageOf(b: u32, n: u32) -> u32 { return load_index(uniforms.groupHeads + b * uniforms.pages + min(n / ${pageTokens}u, uniforms.pages - 1u)); }
    ${evenDecodeText(spec, {
      keys: 'keys',
      values: 'values',
      head: 'load_index(group.x)',
      setup: `
      let keysAt = base_keys() + keyItem;
      let valuesAt = base_values() + valueItem;
      var rowNow = 0u;
      var rowBehind = rowIn(pageOf(b, begin), group.x, begin);
      var pageAfter = pageOf(b, begin + ${apart});`,
      step: `
      rowNow = rowBehind;
      rowBehind = rowIn(pageAfter, group.x, step + ${apart});
      pageAfter = pageOf(b, step + 2u * ${apart});`,
      key: (n, first) => `keysAt + (rowBehind + ${n} - ${first}) * ${headDim / 8}u`,
      value: (n) => `valuesAt + (rowNow + ${n} - step) * ${valueDim / 8}u`,
    })}`;
  },
});

/** Whether the steps of a plan lie inside pages. */
export function stepsInPages(plan: DecodePlan, pageTokens: number): boolean {
  return pageTokens % decodeStep(plan) === 0;
}

/**
 * Writes the parts of a group's heads, as `decodeGroup` does.
 * @param q [batch, 1, heads, headDim] with rows that start at multiples of 4 elements
 * @param count rows that every head and entry holds; all are seen
 */
export function decodeGroupEven(
  device: Device,
  { view }: KvGroup,
  q: Tensor,
  parts: Tensor,
  plan: DecodePlan,
  { count, scale }: { count: number; scale: number },
): void {
  const { tiles, splits, splitKeys: _, ...tile } = plan;
  const { headDim, valueDim, pageTokens, pages, heads: own, kvHeads } = view;
  const heads = q.dim(2);
  const group = heads / kvHeads;
  const full = tiles === 1 && tile.rows === group;
  const stride = (axis: number): number => (q.dim(axis) === 1 ? 0 : (q.strides[axis] ?? 0) / 8);
  kernel.run(device, {
    spec: { ...tile, headDim, valueDim, halves: true, full, pageTokens },
    tensors: { q, keys: view.keys, values: view.values, index: view.index, parts },
    uniforms: {
      groupHeads: own.length,
      pages,
      count,
      qBatch: stride(0),
      qHead: stride(2),
      scale2: scale * Math.LOG2E,
      group,
      tiles,
      heads,
      splits,
    },
    grid: [own.length, splits, q.dim(0) * tiles],
  });
}
