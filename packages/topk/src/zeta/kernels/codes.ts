import { empty, range, defineKernel, read, write, type WgslModule, asContiguous } from '@heed/core/~internal';
import type { Tensor } from '@heed/core';

/** Which cells: the range and bits of a curve. */
export interface CurveRange {
  low: number;
  high: number;
  bits: number;
}

/** Run-time values that `codeModule` reads. */
export interface CurveUniforms {
  bits: number;
  least: number;
  most: number;
  lowHigh: number;
  lowRest: number;
  scaleHigh: number;
  scaleRest: number;
}

export const curveUniforms = {
  bits: 'u32',
  least: 'f32',
  most: 'f32',
  lowHigh: 'f32',
  lowRest: 'f32',
  scaleHigh: 'f32',
  scaleRest: 'f32',
} as const;

/**
 * Cells of a curve as run-time values. Curve 1 moves every coordinate up by 1/6 of the range and codes it over a range of twice
 * the size. Bounds and scale go as pairs of f32 whose sum is exact to 48 bits.
 */
export function curveValues({ low, high, bits }: CurveRange, curve: number): CurveUniforms {
  const size = high - low;
  const start = curve === 0 ? low : low - size / 6;
  const scale = 2 ** bits / (curve === 0 ? size : 2 * size);
  const lowHigh = Math.fround(start);
  const scaleHigh = Math.fround(scale);
  return {
    bits,
    // far enough out to fall into the outermost cells of both curves
    least: low - size,
    most: high + size,
    lowHigh,
    lowRest: start - lowHigh,
    scaleHigh,
    scaleRest: scale - scaleHigh,
  };
}

/**
 * `cellOf(x)`: floor((x - low) scale) clamped to the cells, right also where f32 rounds across a border: the rounding errors of
 * difference and product are carried (Knuth's two-sum, fma) and decide there. `codeOf(x)`: Morton code of the cells, bit p of
 * dimension j at code bit p d + (d - 1 - j).
 */
export function codeModule(keyDim: number): WgslModule {
  const axes = ['x', 'y', 'z', 'w'].slice(0, keyDim);
  return {
    name: `zeta-code-${keyDim}`,
    text: `
    fn cellOf(x: f32) -> u32 {
      let a = clamp(x, uniforms.least, uniforms.most);
      let b = -uniforms.lowHigh;
      let s = a + b;
      let shifted = s - a;
      let error = ((a - (s - shifted)) + (b - shifted)) - uniforms.lowRest;
      let p = s * uniforms.scaleHigh;
      let rest = fma(s, uniforms.scaleHigh, -p) + (s * uniforms.scaleRest + error * uniforms.scaleHigh);
      let whole = floor(p);
      let part = p - whole;
      var cell = whole;
      if (rest < -part) { cell -= 1.0; }
      if (rest >= 1.0 - part) { cell += 1.0; }
      let last = f32((1u << uniforms.bits) - 1u);
      return u32(clamp(cell, 0.0, last));
    }
    fn codeOf(x: vec4f) -> u32 {
      ${axes.map((axis) => `let c${axis} = cellOf(x.${axis});`).join(' ')}
      var code = 0u;
      for (var p = 0u; p < uniforms.bits; p++) {
        ${axes.map((axis, j) => `code |= ((c${axis} >> p) & 1u) << (p * ${keyDim}u + ${keyDim - 1 - j}u);`).join(' ')}
      }
      return code;
    }`,
  };
}

interface RowPlace {
  rows: number;
  firstRow: number;
  heads: number;
  tokens: number;
  /** First place in each row of `out`. */
  firstToken: number;
  /** Places a row of `out`. */
  capacity: number;
}

// Rows (batch, head) of q or k behind each other, padded to four coordinates: one 16-byte load a token later.
// tile    256 tokens a workgroup
// bytes   reads 4 keyDim, writes 16 a token and head
const packRows = defineKernel({
  name: 'zeta-pack',
  bindings: { x: read('f32'), out: write('f32', { width: 4 }) },
  uniforms: {
    rows: 'u32',
    firstRow: 'u32',
    heads: 'u32',
    tokens: 'u32',
    firstToken: 'u32',
    capacity: 'u32',
    batchStride: 'u32',
    tokenStride: 'u32',
    headStride: 'u32',
  },
  wgsl: ({ keyDim }: { keyDim: number }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * uniforms.tokens) { return; }
      let r = i % uniforms.rows;
      let t = i / uniforms.rows;
      let row = uniforms.firstRow + r;
      let at = (row / uniforms.heads) * uniforms.batchStride + t * uniforms.tokenStride + (row % uniforms.heads) * uniforms.headStride;
      store_out(r * uniforms.capacity + uniforms.firstToken + t, vec4f(${range(4)
        .map((d) => (d < keyDim ? `load_x(at + ${d}u)` : '0.0'))
        .join(', ')}));
    }`,
});

/** Writes x [batch, tokens, heads, keyDim], any outer strides, into rows of `out` f32 [rows, capacity, 4]. */
export function packTokens(x: Tensor, out: Tensor, place: RowPlace): void {
  const [batchStride = 0, tokenStride = 0, headStride = 0] = x.strides;
  packRows.run(x.device, {
    spec: { keyDim: x.dim(3) },
    tensors: { x, out },
    uniforms: { batchStride, tokenStride, headStride, ...place },
    grid: [Math.ceil((place.rows * place.tokens) / 256)],
  });
}

type CodeSpec = { keyDim: number; cells: boolean };

// Cells and Morton codes of points.
// tile    256 points a workgroup
// bytes   reads 4 keyDim, writes 4 (and 4 keyDim for the cells) a point
const pointCodes = defineKernel({
  name: 'zeta-codes',
  bindings: { x: read('f32'), codes: write('u32'), cells: write<CodeSpec>('u32', { when: ({ cells }) => cells }) },
  uniforms: { points: 'u32', ...curveUniforms },
  modules: ({ keyDim }: CodeSpec) => [codeModule(keyDim)],
  wgsl: ({ keyDim, cells }: CodeSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.points) { return; }
      let x = vec4f(${range(4)
        .map((d) => (d < keyDim ? `load_x(i * ${keyDim}u + ${d}u)` : '0.0'))
        .join(', ')});
      store_codes(i, codeOf(x));
      ${
        cells
          ? range(keyDim)
              .map((d) => `store_cells(i * ${keyDim}u + ${d}u, cellOf(x[${d}]));`)
              .join('\n')
          : ''
      }
    }`,
});

/** Codes u32 [...] of points x [..., keyDim] on a curve, and their cells u32 [..., keyDim] where asked for. */
export function encodePoints(x: Tensor, curve: CurveRange, withCells: boolean): { codes: Tensor; cells: Tensor | undefined } {
  const source = asContiguous(x, 1);
  const keyDim = x.dim(-1);
  const codes = empty(x.device, x.shape.slice(0, -1), 'u32');
  const cells = withCells ? empty(x.device, x.shape, 'u32') : undefined;
  if (codes.size > 0)
    pointCodes.run(x.device, {
      spec: { keyDim, cells: withCells },
      tensors: { x: source, codes, cells },
      uniforms: { points: codes.size, ...curveValues(curve, 0) },
      grid: [Math.ceil(codes.size / 256)],
    });
  return { codes, cells };
}
