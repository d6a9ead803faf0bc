// Toeplitz products by Fourier transforms: out_i = sum_r a_(r,i) (C (b_r w))_i, C the circulant that holds the Toeplitz matrix. Transforms of
// length n = n1 n2 take three passes: n1 points, then n2 points there and back with the spectrum between, then n1 points back. Two real
// columns travel as one complex; in all a row of a slab (a pair of columns and a feature) moves 32 n bytes, in slabs that stay in L2.
// limits  n <= 2^20; error is relative to the largest output of a column, so causal rows near the start go by pairs instead
// source  Luo et al. 2021 (arXiv 2106.12566), section 3; features one after the other, so that nothing of size tokens x features x columns is kept
import type { Device, Tensor } from '@heed/core';
import { defineKernel, read, readWrite, write } from '@heed/core/~internal';
import type { Positions } from '../positions.js';
import { resultAt, transformLanes, transformSteps, transformText, twiddles, workgroupLength } from './transform.js';

/** The lengths of the two passes; pure. */
export interface TransformPlan {
  n: number;
  n1: number;
  n2: number;
  /** Columns of the first pass a workgroup. */
  batch: number;
}

export const longestTransform: number = workgroupLength * workgroupLength;

/** The transform for `span` positions of each side. */
export function planTransform(rowSpan: number, otherSpan: number): TransformPlan {
  const n = 2 ** Math.max(2, Math.ceil(Math.log2(rowSpan + otherSpan - 1)));
  // the middle pass as long as a workgroup holds: the first then reads runs of neighbouring tokens
  const n1 = 2 ** Math.max(1, Math.log2(n) - 10);
  const n2 = n / n1;
  return { n, n1, n2, batch: Math.max(1, Math.min(n2, workgroupLength / n1)) };
}

/** Rows of a slab: entries x features x pairs of columns. */
export interface Slab {
  entryFirst: number;
  entries: number;
  featureFirst: number;
  features: number;
  pairFirst: number;
  pairs: number;
}

export const slabUniforms = {
  entryFirst: 'u32',
  featureFirst: 'u32',
  features: 'u32',
  pairFirst: 'u32',
  pairs: 'u32',
} as const;

export const slabValues = ({ entryFirst, featureFirst, features, pairFirst, pairs }: Slab): Record<keyof typeof slabUniforms, number> => ({
  entryFirst,
  featureFirst,
  features,
  pairFirst,
  pairs,
});

interface PassSpec {
  [name: string]: number;
  n1: number;
  n2: number;
  batch: number;
}

const tokenText = `
    fn tokenAt(position: u32, tokens: u32) -> u32 {
      let column = position % uniforms.stride;
      let token = (position / uniforms.stride) * uniforms.line + column;
      return select(0xffffffffu, token, column < uniforms.line && token < tokens);
    }`;

// First pass: n1-point transforms of the products b_r w, times the factors between the passes.
// tile    `batch` columns of n1 points, 1,024 numbers where n has as many; 256 lanes
// bytes   reads 12 a token of a row, writes 8 n a row
const first = defineKernel({
  name: 'nprf-transform',
  bindings: {
    b: read<PassSpec>('f32'),
    w: read<PassSpec>('f32'),
    twiddles: read<PassSpec>('f32'),
    out: write<PassSpec>('f32', { raw: 'vec2f' }),
  },
  uniforms: { ...slabUniforms, total: 'u32', tokens: 'u32', allFeatures: 'u32', width: 'u32', line: 'u32', stride: 'u32' },
  wgsl: ({ n1, n2, batch }: PassSpec) => `
    ${transformText}
    ${tokenText}
    @compute @workgroup_size(${transformLanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = group.y + group.z * 65535u;
      let pair = row % uniforms.pairs + uniforms.pairFirst;
      let feature = (row / uniforms.pairs) % uniforms.features + uniforms.featureFirst;
      let entry = row / (uniforms.pairs * uniforms.features) + uniforms.entryFirst;
      let column = group.x * ${batch}u;
      for (var e = lane; e < ${n1 * batch}u; e += ${transformLanes}u) {
        let t2 = column + e % ${batch}u;
        let t1 = e / ${batch}u;
        let token = tokenAt(t1 * ${n2}u + t2, uniforms.tokens);
        var x = vec2f();
        if (token < uniforms.tokens) {
          let share = load_b((entry * uniforms.allFeatures + feature) * uniforms.tokens + token);
          let at = (entry * uniforms.width + 2u * pair) * uniforms.tokens + token;
          x.x = share * load_w(at);
          if (2u * pair + 1u < uniforms.width) { x.y = share * load_w(at + uniforms.tokens); }
        }
        field[(e % ${batch}u) * ${n1}u + t1] = x;
      }
      workgroupBarrier();
      ${transformSteps(n1, batch, false, 0)}
      for (var e = lane; e < ${n1 * batch}u; e += ${transformLanes}u) {
        let t2 = column + e % ${batch}u;
        let k1 = e / ${batch}u;
        let x = product(field[${resultAt(n1, 0)}u + (e % ${batch}u) * ${n1}u + k1], factor(t2 * k1));
        out[base_out() + row * uniforms.total + k1 * ${n2}u + t2] = x;
      }
    }`,
});

interface MiddleSpec {
  [name: string]: number;
  n2: number;
  /** Times the conjugate spectrum: the transposed matrix. */
  transposed: number;
}

// Middle pass, in place: n2-point transforms, times the spectrum, and back, times the factors on the way back.
// tile    the n2 <= 1024 points of one k1, 256 lanes
// bytes   reads and writes 8 n a row; reads the spectrum, 8 n a head, again for each row (from L2)
const middle = defineKernel({
  name: 'nprf-convolve',
  bindings: {
    spectrum: read<MiddleSpec>('f32', { raw: 'vec2f' }),
    twiddles: read<MiddleSpec>('f32'),
    mid: readWrite<MiddleSpec>('f32', { raw: 'vec2f' }),
  },
  uniforms: { ...slabUniforms, total: 'u32', heads: 'u32' },
  wgsl: ({ n2, transposed }: MiddleSpec) => `
    ${transformText}
    @compute @workgroup_size(${transformLanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = group.y + group.z * 65535u;
      let head = (row / (uniforms.pairs * uniforms.features) + uniforms.entryFirst) % uniforms.heads;
      let k1 = group.x;
      let at = base_mid() + row * uniforms.total + k1 * ${n2}u;
      let own = base_spectrum() + head * uniforms.total + k1 * ${n2}u;
      for (var e = lane; e < ${n2}u; e += ${transformLanes}u) { field[e] = mid[at + e]; }
      workgroupBarrier();
      ${transformSteps(n2, 1, false, 0)}
      for (var e = lane; e < ${n2}u; e += ${transformLanes}u) {
        let s = spectrum[own + e];
        field[${resultAt(n2, 0)}u + e] = product(field[${resultAt(n2, 0)}u + e], ${transposed === 1 ? 'conjugate(s)' : 's'});
      }
      workgroupBarrier();
      ${transformSteps(n2, 1, true, resultAt(n2, 0))}
      for (var e = lane; e < ${n2}u; e += ${transformLanes}u) {
        mid[at + e] = product(field[${resultAt(n2, resultAt(n2, 0))}u + e], conjugate(factor(e * k1)));
      }
    }`,
});

// Last pass: n1-point transforms back, times a_r, summed over the features of the slab in order.
// tile    `batch` columns of n1 points, all features in turn; sums in registers
// bytes   reads 8 n a row and 4 a token and feature, writes 8 a token and pair (and reads them where slabs before wrote)
const last = defineKernel({
  name: 'nprf-gather',
  bindings: {
    mid: read<PassSpec>('f32', { raw: 'vec2f' }),
    a: read<PassSpec>('f32'),
    twiddles: read<PassSpec>('f32'),
    out: readWrite<PassSpec>('f32'),
  },
  uniforms: { ...slabUniforms, total: 'u32', tokens: 'u32', allFeatures: 'u32', width: 'u32', line: 'u32', stride: 'u32', add: 'u32' },
  wgsl: ({ n1, n2, batch }: PassSpec) => {
    const each = Math.ceil((n1 * batch) / transformLanes);
    const loop = (text: (e: number) => string): string => Array.from({ length: each }, (_, e) => text(e)).join('\n');
    return `
    ${transformText}
    ${tokenText}
    @compute @workgroup_size(${transformLanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let pair = group.y % uniforms.pairs;
      let own = group.y / uniforms.pairs;
      let entry = own + uniforms.entryFirst;
      let column = group.x * ${batch}u;
      ${loop((e) => `var sum${e} = vec2f(); var token${e} = 0xffffffffu; if (lane + ${e * transformLanes}u < ${n1 * batch}u) { token${e} = tokenAt(((lane + ${e * transformLanes}u) / ${batch}u) * ${n2}u + column + (lane + ${e * transformLanes}u) % ${batch}u, uniforms.tokens); }`)}
      for (var feature = 0u; feature < uniforms.features; feature++) {
        let row = (own * uniforms.features + feature) * uniforms.pairs + pair;
        for (var e = lane; e < ${n1 * batch}u; e += ${transformLanes}u) {
          field[(e % ${batch}u) * ${n1}u + e / ${batch}u] = mid[base_mid() + row * uniforms.total + (e / ${batch}u) * ${n2}u + column + e % ${batch}u];
        }
        workgroupBarrier();
        ${transformSteps(n1, batch, true, 0)}
        ${loop(
          (e) => `if (token${e} < uniforms.tokens) {
          let e = lane + ${e * transformLanes}u;
          sum${e} += load_a((entry * uniforms.allFeatures + feature + uniforms.featureFirst) * uniforms.tokens + token${e}) * field[${resultAt(n1, 0)}u + (e % ${batch}u) * ${n1}u + e / ${batch}u];
        }`,
        )}
        workgroupBarrier();
      }
      ${loop(
        (e) => `if (token${e} < uniforms.tokens) {
        let at = (entry * uniforms.width + 2u * (pair + uniforms.pairFirst)) * uniforms.tokens + token${e};
        store_out(at, sum${e}.x + select(0.0, load_out(at), uniforms.add == 1u));
        if (2u * (pair + uniforms.pairFirst) + 1u < uniforms.width) {
          store_out(at + uniforms.tokens, sum${e}.y + select(0.0, load_out(at + uniforms.tokens), uniforms.add == 1u));
        }
      }`,
      )}
    }`;
  },
});

/** Records the first pass: transforms of b_r w over a slab, [rows, n1, n2] complex. */
export function runFirst(
  device: Device,
  plan: TransformPlan,
  slab: Slab,
  operands: { b: Tensor; w: Tensor; out: Tensor },
  positions: Positions,
): void {
  const { b, w, out } = operands;
  const rows = slab.entries * slab.features * slab.pairs;
  first.run(device, {
    spec: { n1: plan.n1, n2: plan.n2, batch: plan.batch },
    tensors: { b, w, out, twiddles: twiddles(device, plan.n) },
    uniforms: {
      ...slabValues(slab),
      total: plan.n,
      tokens: b.dim(2),
      allFeatures: b.dim(1),
      width: w.dim(1),
      line: positions.line,
      stride: positions.stride,
    },
    grid: [plan.n2 / plan.batch, Math.min(rows, 65535), Math.ceil(rows / 65535)],
  });
}

/** Records the middle pass, in place. */
export function runMiddle(
  device: Device,
  plan: TransformPlan,
  slab: Slab,
  operands: { mid: Tensor; spectrum: Tensor },
  heads: number,
  transposed: boolean,
): void {
  const rows = slab.entries * slab.features * slab.pairs;
  middle.run(device, {
    spec: { n2: plan.n2, transposed: transposed ? 1 : 0 },
    tensors: { ...operands, twiddles: twiddles(device, plan.n) },
    uniforms: { ...slabValues(slab), total: plan.n, heads },
    grid: [plan.n1, Math.min(rows, 65535), Math.ceil(rows / 65535)],
  });
}

/** Records the last pass: out [entries, width, tokens] gets, or has added, the slab's features. */
export function runLast(
  device: Device,
  plan: TransformPlan,
  slab: Slab,
  operands: { mid: Tensor; a: Tensor; out: Tensor },
  positions: Positions,
): void {
  const { a, out } = operands;
  last.run(device, {
    spec: { n1: plan.n1, n2: plan.n2, batch: plan.batch },
    tensors: { ...operands, twiddles: twiddles(device, plan.n) },
    uniforms: {
      ...slabValues(slab),
      total: plan.n,
      tokens: a.dim(2),
      allFeatures: a.dim(1),
      width: out.dim(1),
      line: positions.line,
      stride: positions.stride,
      add: slab.featureFirst > 0 ? 1 : 0,
    },
    grid: [plan.n2 / plan.batch, slab.entries * slab.pairs],
  });
}
