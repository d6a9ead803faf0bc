// What the attention kernels on fragments share: rows of f16 staged in workgroup memory, rounded from f32 where need be.
import type { Binding } from '../../kernel/bindings.js';
import { fragmentLanes, type Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { ScoreSpec } from './common.js';

/** Rows are loaded by eight halves, by four elements of either dtype, or one by one. */
export type RowLoad = 'half8' | 'vec4' | 'scalar';

/** The tile of a kernel on fragments. A subgroup owns 16 rows. */
export type MatrixTileSpec = {
  subgroups: number;
  /** Streamed rows a step; a multiple of 16. */
  columns: number;
  /** Columns of a result fragment. */
  fragmentColumns: number;
  load: RowLoad;
};

export type MatrixSpec = ScoreSpec & MatrixTileSpec & { rows: number };

/** Halves that pad a staged row against bank conflicts. */
export const rowPad = 8;
/** Floats that pad a row of scores. */
export const scorePad = 4;

/** Head dimension padded to whole fragments. */
export function padded(dim: number): number {
  return Math.ceil(dim / 16) * 16;
}

/** Halves of a staged row. */
export function stagedStride(dim: number): number {
  return padded(dim) + rowPad;
}

/** Binding of a tensor whose rows are staged. */
export function rowBinding<S extends MatrixSpec>(): Omit<Binding<S>, 'access' | 'type'> {
  return {
    width: (spec) => (spec.load === 'vec4' ? 4 : 1),
    raw: (spec) => (spec.load === 'half8' ? 'vec4u' : undefined),
  };
}

/** `eight_<binding>(base, row, end, chunk)`: halves 8 chunk .. 8 chunk + 7 of a row; zeros from row `end` on and beyond `dim`. */
export function eightLoader(binding: string, dim: number, load: RowLoad): string {
  const row = `base + row * uniforms.${binding}Row`;
  const quad = (q: number): string =>
    `select(vec4f(), load_${binding}(${row} + min(chunk * 2u + ${q}u, ${dim / 4 - 1}u)), chunk * 2u + ${q}u < ${dim / 4}u)`;
  const body: Record<RowLoad, () => string> = {
    half8: () => `return ${binding}[base_${binding}() + ${row} + chunk];`,
    vec4: () => `return halves(${quad(0)}, ${quad(1)});`,
    scalar: () => `
      var value: array<f32, 8>;
      for (var e = 0u; e < 8u * uniforms.one; e++) { if (chunk * 8u + e < ${dim}u) { value[e] = load_${binding}(${row} + chunk * 8u + e); } }
      return halves(vec4f(value[0], value[1], value[2], value[3]), vec4f(value[4], value[5], value[6], value[7]));`,
  };
  return `
    fn eight_${binding}(base: u32, row: u32, end: u32, chunk: u32) -> vec4u {
      if (row >= end || chunk * 8u >= ${dim}u) { return vec4u(); }
      ${body[load]()}
    }`;
}

/** `halves(low, high)`: eight floats as halves, cut to their range. */
export const halvesFunction = `
    fn half4(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(clamp(x, vec4f(-65504.0), vec4f(65504.0)))); }
    fn halves(low: vec4f, high: vec4f) -> vec4u { return vec4u(half4(low), half4(high)); }`;

/** Copies `rows` rows into a workgroup array of halves with stride `stagedStride(dim)`. No barrier. */
export function stageRows(
  spec: MatrixSpec,
  target: { array: string; binding: string; dim: number; rows: number; base: string; first: string; end: string },
): string {
  const { array, binding, dim, rows, base, first, end } = target;
  const lanes = spec.subgroups * fragmentLanes;
  const chunks = padded(dim) / 8;
  const bound = spec.opaque ? `${rows * chunks}u * uniforms.one` : `${rows * chunks}u`;
  return `
    for (var at = lane; at < ${bound}; at += ${lanes}u) {
      let n = at / ${chunks}u;
      let chunk = at % ${chunks}u;
      let eight = eight_${binding}(${base}, ${first} + n, ${end}, chunk);
      let to = n * ${stagedStride(dim)}u + chunk * 8u;
      ${storeEight(spec, array)}
    }`;
}

function storeEight(spec: MatrixSpec, array: string): string {
  if (spec.opaque)
    return `for (var e = 0u; e < 8u * uniforms.one; e++) { ${array}[to + e] = f16(unpack2x16float(select(select(eight.x, eight.y, e >= 2u), select(eight.z, eight.w, e >= 6u), e >= 4u))[e & 1u]); }`;
  return range(4)
    .map(
      (w) =>
        `{ let pair = bitcast<vec2<f16>>(eight.${'xyzw'[w]}); ${array}[to + ${2 * w}u] = pair.x; ${array}[to + ${2 * w + 1}u] = pair.y; }`,
    )
    .join(' ');
}

/** A sum over the head dimension: unrolled on hardware; a loop under emulation, whose texts must stay short. `step` gets the first element. */
export function overDepth(f: Fragments, dim: number, step: (first: string, index: string) => string): string {
  const steps = padded(dim) / f.K;
  if (f.hardware)
    return range(steps)
      .map((k) => `{ ${step(`${k * f.K}u`, String(k))} }`)
      .join('\n');
  return `for (var depthStep = 0u; depthStep < ${steps}u * uniforms.one; depthStep++) { ${step(`depthStep * ${f.K}u`, 'depthStep')} }`;
}
