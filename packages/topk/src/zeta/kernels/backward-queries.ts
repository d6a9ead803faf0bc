import type { Tensor } from '@heed/core';
import { defineKernel, range, read, readWrite, write } from '@heed/core/~internal';
import { cauchyModule } from './cauchy.js';
import { isHalf, meanModule, meanWord } from './means.js';
import { sumTile } from './sums.js';
import { columnsOf, valueModule, valueRows, valueStrides } from './values.js';

/** Sizes that the backward kernels are made for. */
export type BackwardSpec = {
  valueDim: number;
  vector: boolean;
  topK: number;
  localWindow: number;
  mean: boolean;
  /** Whether values, and so their means, are f16. */
  half: boolean;
};

/**
 * Floats a query in the work tensor: (p, dD) of each slot (topK, then localWindow), then dq (4), the mean key's gradient over the
 * number of its tokens (4), p of the mean over that number, the sum of all dD, and the dot product of the mean value.
 */
export function workLength(topK: number, localWindow: number): number {
  return 2 * (topK + localWindow) + 12;
}

const dotPlace = 10;
const place = { rows: 'u32', firstRow: 'u32', heads: 'u32', tokens: 'u32', entries: 'u32', causal: 'u32' } as const;

/** WGSL: token of slot s of query t, NONE where there is none. */
const tokenText = (topK: number, localWindow: number): string => `
    const NONE = 0xffffffffu;
    fn placeOf(row: u32, t: u32) -> u32 { return ((row / uniforms.heads) * uniforms.tokens + t) * uniforms.heads + row % uniforms.heads; }
    fn tokenOf(row: u32, t: u32, s: u32) -> u32 {
      ${localWindow > 0 ? `if (s >= ${topK}u) { return select(NONE, t + ${topK}u - s, s - ${topK}u <= t); }` : ''}
      return bitcast<u32>(load_indices(placeOf(row, t) * ${topK}u + s));
    }`;

// Weights w_j = 1 / (D_j + gamma^2) and dot products g_j = dO . v_j of all kept tokens, and that of the history mean.
// tile    64 slots of 4 lanes, which read 32 bytes of a row of f16 together
// bytes   reads 2 size valueDim, writes 8 a slot
const slotProducts = defineKernel({
  name: 'zeta-backward-products',
  bindings: {
    q: read<BackwardSpec>('f32', { width: 4 }),
    k: read<BackwardSpec>('f32', { width: 4 }),
    v: read<BackwardSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    dOut: read<BackwardSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    indices: read<BackwardSpec>('i32'),
    theta: read<BackwardSpec>('f32'),
    means: read<BackwardSpec>('u32', { raw: meanWord, when: ({ mean }) => mean }),
    work: write<BackwardSpec>('f32'),
  },
  // columns is known, yet a run-time value: a software driver would unroll the loops over it, and compile for half a minute
  uniforms: { ...place, ...valueStrides, columns: 'u32' },
  modules: (spec: BackwardSpec) => [
    cauchyModule,
    valueModule('v', spec),
    valueModule('dOut', spec),
    ...(spec.mean ? [meanModule(spec.half)] : []),
  ],
  wgsl: ({ valueDim, vector, topK, localWindow, mean }: BackwardSpec) => {
    const columns = columnsOf(valueDim);
    const slots = topK + localWindow;
    const items = slots + (mean ? 1 : 0);
    return `
    ${tokenText(topK, localWindow)}
    var<workgroup> partial: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane / 4u;
      let part = lane % 4u;
      let inside = i < uniforms.rows * uniforms.tokens * ${items}u;
      let s = i % ${items}u;
      let t = (i / ${items}u) % uniforms.tokens;
      let r = i / ${items}u / uniforms.tokens;
      let row = uniforms.firstRow + r;
      let at = (r * uniforms.tokens + t) * ${workLength(topK, localWindow)}u;
      var token = NONE;
      if (inside && s < ${slots}u) { token = tokenOf(row, t, s); }
      let own = placeOf(row, t) * ${vector ? columns : valueDim}u;
      var g = 0.0;
      if (inside && token != NONE) {
        let other = (row / uniforms.heads) * uniforms.batchStride + (row % uniforms.heads) * uniforms.headStride + token * uniforms.tokenStride;
        for (var c = part; c < uniforms.columns; c += 4u) { g += dot(value_dOut(own, c), value_v(other, c)); }
      }
      ${
        mean
          ? `if (inside && s == ${slots}u) {
        let at = base_means() + (r * uniforms.tokens + t) * ${columns + 1}u + 1u;
        for (var c = part; c < uniforms.columns; c += 4u) { g += dot(value_dOut(own, c), unpackMean(means[at + c])); }
      }`
          : ''
      }
      partial[lane] = g;
      workgroupBarrier();
      if (!inside || part != 0u) { return; }
      g = (g + partial[lane + 1u]) + (partial[lane + 2u] + partial[lane + 3u]);
      ${mean ? `if (s == ${slots}u) { store_work(at + ${2 * slots + dotPlace}u, g); return; }` : ''}
      var w = 0.0;
      if (token != NONE) {
        let keys = r * uniforms.tokens;
        w = 1.0 / (squaredDistance(load_q(keys + t), load_k(keys + token)) + gammaSquared(load_theta(row % uniforms.heads)));
      }
      store_work(at + 2u * s, w);
      store_work(at + 2u * s + 1u, g);
    }`;
  },
});

// p_j = w_j / S, dD_j = -w_j p_j (g_j - sum p g) in place of weights and products; dq = sum 2 dD_j (q - k_j).
// tile    8 queries x 8 lanes
// bytes   reads and writes 8 a slot, reads 20 more
const queryGradients = defineKernel({
  name: 'zeta-backward-queries',
  bindings: {
    q: read<BackwardSpec>('f32', { width: 4 }),
    k: read<BackwardSpec>('f32', { width: 4 }),
    indices: read<BackwardSpec>('i32'),
    theta: read<BackwardSpec>('f32', { when: ({ mean }) => mean }),
    sums: read<BackwardSpec>('f32', { width: 4, when: ({ mean }) => mean }),
    work: readWrite<BackwardSpec>('f32'),
  },
  uniforms: place,
  modules: [cauchyModule],
  wgsl: ({ valueDim, topK, localWindow, mean }: BackwardSpec) => {
    const slots = topK + localWindow;
    return `
    ${tokenText(topK, localWindow)}
    var<workgroup> totals: array<vec2f, 64>;
    var<workgroup> shares: array<vec4f, 64>;
    var<workgroup> gammas: array<f32, 64>;
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 8u + lane / 8u;
      let inside = i < uniforms.rows * uniforms.tokens;
      let part = lane % 8u;
      let t = i % uniforms.tokens;
      let r = i / uniforms.tokens;
      let row = uniforms.firstRow + r;
      let at = i * ${workLength(topK, localWindow)}u;
      var total = vec2f(0.0);
      var own = vec4f(0.0);
      var toMean = vec4f(0.0);
      var meanW = 0.0;
      var meanG = 0.0;
      var count = 1.0;
      if (inside) {
        own = load_q(i);
        for (var s = part; s < ${slots}u; s += 8u) {
          let w = load_work(at + 2u * s);
          total += vec2f(w, w * load_work(at + 2u * s + 1u));
        }
        ${
          mean
            ? `if (part == 0u) {
          let all = uniforms.causal == 0u;
          let tile = select(t / ${sumTile}u, uniforms.entries - 1u, all);
          count = f32(select(t + 1u, uniforms.tokens, all));
          var center = load_sums((r * uniforms.entries + tile) * ${columnsOf(valueDim) + 1}u);
          for (var j = tile * ${sumTile}u; j <= t && !all; j++) { center += load_k(r * uniforms.tokens + j); }
          center /= count;
          meanG = load_work(at + ${2 * slots + dotPlace}u);
          toMean = own - center;
          meanW = 1.0 / (squaredDistance(own, center) + gammaSquared(load_theta(row % uniforms.heads)));
          total += vec2f(meanW, meanW * meanG);
        }`
            : ''
        }
      }
      totals[lane] = total;
      workgroupBarrier();
      total = vec2f(0.0);
      for (var j = 0u; j < 8u; j++) { total += totals[(lane & 56u) + j]; }
      let scale = select(0.0, 1.0 / total.x, total.x > 0.0);
      let g = total.y * scale;
      var share = vec4f(0.0);
      var gamma = 0.0;
      if (inside) {
        for (var s = part; s < ${slots}u; s += 8u) {
          let w = load_work(at + 2u * s);
          let dD = -w * w * scale * (load_work(at + 2u * s + 1u) - g);
          store_work(at + 2u * s, w * scale);
          store_work(at + 2u * s + 1u, dD);
          let token = tokenOf(row, t, s);
          if (token != NONE) { share += 2.0 * dD * (own - load_k(r * uniforms.tokens + token)); }
          gamma += dD;
        }
        ${
          mean
            ? `if (part == 0u) {
          let dD = -meanW * meanW * scale * (meanG - g);
          let toKey = 2.0 * dD * toMean;
          share += toKey;
          gamma += dD;
          ${range(4)
            .map((d) => `store_work(at + ${2 * slots + 4 + d}u, -toKey[${d}] / count);`)
            .join(' ')}
          store_work(at + ${2 * slots + 8}u, meanW * scale / count);
        }`
            : ''
        }
      }
      shares[lane] = share;
      gammas[lane] = gamma;
      workgroupBarrier();
      if (!inside || part != 0u) { return; }
      for (var j = 1u; j < 8u; j++) { share += shares[lane + j]; gamma += gammas[lane + j]; }
      ${range(4)
        .map((d) => `store_work(at + ${2 * slots + d}u, share[${d}]);`)
        .join(' ')}
      store_work(at + ${2 * slots + 9}u, gamma);
    }`;
  },
});

/** The tensors of the backward pass over a slab of rows. */
export interface BackwardCall {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Contiguous, dtype of v. */
  dOut: Tensor;
  indices: Tensor;
  theta: Tensor;
  sums: Tensor | undefined;
  means: Tensor | undefined;
  /** f32 [rows, tokens, workLength]. */
  work: Tensor;
  rows: number;
  firstRow: number;
  heads: number;
  tokens: number;
  entries: number;
  causal: boolean;
}

/** Fills `work`: probabilities, gradients of the distances, dq and what the mean tokens get. */
export function differentiateQueries(call: BackwardCall, sizes: Pick<BackwardSpec, 'topK' | 'localWindow'>): void {
  const { q, k, dOut, indices, theta, sums, means, work, rows, firstRow, heads, tokens, entries, causal } = call;
  const { tensor, spec: values, strides } = valueRows(call.v);
  const spec = { ...values, ...sizes, mean: sums !== undefined, half: isHalf(tensor) };
  const uniforms = { rows, firstRow, heads, tokens, entries, causal: causal ? 1 : 0 };
  const items = sizes.topK + sizes.localWindow + (spec.mean ? 1 : 0);
  slotProducts.run(q.device, {
    spec,
    tensors: { q, k, v: tensor, dOut, indices, theta, means, work },
    uniforms: { ...uniforms, ...strides, columns: columnsOf(values.valueDim) },
    grid: [Math.ceil((rows * tokens * items) / 64)],
  });
  queryGradients.run(q.device, { spec, tensors: { q, k, indices, theta, sums, work }, uniforms, grid: [Math.ceil((rows * tokens) / 8)] });
}
