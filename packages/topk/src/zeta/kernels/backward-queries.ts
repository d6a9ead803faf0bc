import type { Tensor } from '@heed/core';
import { defineKernel, read, write } from '@heed/core/~internal';
import { cauchyModule } from './attend.js';
import { sumTile } from './sums.js';
import { columnsOf, valueModule, valueRows, valueStrides } from './values.js';

/** Sizes that the backward kernels are made for. */
export type BackwardSpec = {
  valueDim: number;
  vector: boolean;
  topK: number;
  localWindow: number;
  mean: boolean;
  tile: number;
  lanes: number;
};

/**
 * Floats a query in the work tensor: (p, dD) of each slot (topK, then localWindow), then dq (4), the mean key's gradient over the
 * number of its tokens (4), p of the mean over that number, and the sum of all dD; the rest is unused.
 */
export function workLength(topK: number, localWindow: number): number {
  return 2 * (topK + localWindow) + 12;
}

// Backward, one query at a time: g_j = dO . v_j, p_j = w_j / S, dD_j = -w_j p_j (g_j - sum p g), dq = sum 2 dD_j (q - k_j).
// tile    up to 8 queries; a lane takes the dot product of one slot, the history mean as 17 partial ones
// bytes   reads size valueDim (topK + localWindow), writes 8 (topK + localWindow) + 48 a query
// limits  12 (topK + localWindow + 17) bytes of workgroup memory a query
const queryGradients = defineKernel({
  name: 'zeta-backward-queries',
  bindings: {
    q: read<BackwardSpec>('f32', { width: 4 }),
    k: read<BackwardSpec>('f32', { width: 4 }),
    v: read<BackwardSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    dOut: read<BackwardSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    indices: read<BackwardSpec>('i32'),
    theta: read<BackwardSpec>('f32'),
    sums: read<BackwardSpec>('f32', { width: 4, when: ({ mean }) => mean }),
    work: write<BackwardSpec>('f32'),
  },
  uniforms: { rows: 'u32', firstRow: 'u32', heads: 'u32', tokens: 'u32', entries: 'u32', causal: 'u32', ...valueStrides },
  modules: (spec: BackwardSpec) => [cauchyModule, valueModule('v', spec), valueModule('dOut', spec)],
  wgsl: (spec: BackwardSpec) => queryText(spec),
});

function queryText({ valueDim, vector, topK, localWindow, mean, tile, lanes }: BackwardSpec): string {
  const columns = columnsOf(valueDim);
  const slots = topK + localWindow;
  const parts = mean ? sumTile + 1 : 0;
  const rowItems = vector ? columns : valueDim;
  const pad = (n: number): number => Math.ceil(n / 4) * 4;
  const dot = (at: string): string => `for (var c = 0u; c < ${columns}u; c++) { g += dot(value_dOut(own, c), ${at}); }`;
  return `
    const NONE = 0xffffffffu;
    var<workgroup> tokens: array<u32, ${pad(slots * tile)}>;
    var<workgroup> weights: array<f32, ${pad(slots * tile)}>;
    var<workgroup> dots: array<f32, ${pad((slots + parts) * tile)}>;
    var<workgroup> totals: array<vec4f, ${tile}>;
    var<workgroup> shares: array<vec4f, ${tile * 8}>;
    var<workgroup> gammas: array<f32, ${tile * 8}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let tiles = (uniforms.tokens + ${tile - 1}u) / ${tile}u;
      let g0 = workgroupIndex(group, groups);
      if (g0 >= uniforms.rows * tiles) { return; }
      let r = g0 / tiles;
      let first = (g0 % tiles) * ${tile}u;
      let row = uniforms.firstRow + r;
      let gamma2 = gammaSquared(load_theta(row % uniforms.heads));
      let keys = r * uniforms.tokens;
      let values = (row / uniforms.heads) * uniforms.batchStride + (row % uniforms.heads) * uniforms.headStride;
      let all = uniforms.causal == 0u;
      for (var item = lane; item < ${slots * tile}u; item += ${lanes}u) {
        let t = first + item % ${tile}u;
        let s = item / ${tile}u;
        var token = NONE;
        var w = 0.0;
        var g = 0.0;
        if (t < uniforms.tokens) {
          let place = ((row / uniforms.heads) * uniforms.tokens + t) * uniforms.heads + row % uniforms.heads;
          ${localWindow > 0 ? `if (s >= ${topK}u) { if (s - ${topK}u <= t) { token = t + ${topK}u - s; } } else` : ''}
          { token = bitcast<u32>(load_indices(place * ${topK}u + s)); }
          if (token != NONE) {
            w = 1.0 / (squaredDistance(load_q(keys + t), load_k(keys + token)) + gamma2);
            let own = place * ${rowItems}u;
            let other = values + token * uniforms.tokenStride;
            ${dot('value_v(other, c)')}
          }
        }
        tokens[item] = token;
        weights[item] = w;
        dots[item] = g;
      }
      ${
        mean
          ? `for (var item = lane; item < ${parts * tile}u; item += ${lanes}u) {
        let t = first + item % ${tile}u;
        let part = item / ${tile}u;
        var g = 0.0;
        if (t < uniforms.tokens) {
          let own = (((row / uniforms.heads) * uniforms.tokens + t) * uniforms.heads + row % uniforms.heads) * ${rowItems}u;
          let tile = select(t / ${sumTile}u, uniforms.entries - 1u, all);
          let j = tile * ${sumTile}u + part - 1u;
          if (part == 0u) {
            let at = (r * uniforms.entries + tile) * ${columns + 1}u + 1u;
            ${dot('load_sums(at + c)')}
          } else if (j <= t && !all) {
            let other = values + j * uniforms.tokenStride;
            ${dot('value_v(other, c)')}
          }
        }
        dots[${slots * tile}u + item] = g;
      }`
          : ''
      }
      workgroupBarrier();
      if (lane < ${tile}u && first + lane < uniforms.tokens) {
        let t = first + lane;
        let at = (r * uniforms.tokens + t) * ${workLength(topK, localWindow)}u + ${2 * slots}u;
        var total = 0.0;
        var weighted = 0.0;
        for (var s = 0u; s < ${slots}u; s++) {
          total += weights[s * ${tile}u + lane];
          weighted += weights[s * ${tile}u + lane] * dots[s * ${tile}u + lane];
        }
        var meanD = 0.0;
        var difference = vec4f(0.0);
        ${
          mean
            ? `let tile = select(t / ${sumTile}u, uniforms.entries - 1u, all);
        let count = f32(select(t + 1u, uniforms.tokens, all));
        var center = load_sums((r * uniforms.entries + tile) * ${columns + 1}u);
        for (var j = tile * ${sumTile}u; j <= t && !all; j++) { center += load_k(keys + j); }
        difference = load_q(keys + t) - center / count;
        let w = 1.0 / (squaredDistance(load_q(keys + t), center / count) + gamma2);
        var g = 0.0;
        for (var part = 0u; part < ${parts}u; part++) { g += dots[(${slots}u + part) * ${tile}u + lane]; }
        g /= count;
        total += w;
        weighted += w * g;
        meanD = -w * (w / total) * (g - weighted / total);
        for (var d = 0u; d < 4u; d++) { store_work(at + 4u + d, -2.0 * meanD * difference[d] / count); }
        store_work(at + 8u, w / total / count);`
            : ''
        }
        totals[lane] = vec4f(select(0.0, 1.0 / total, total > 0.0), select(0.0, weighted / total, total > 0.0), meanD, 0.0);
        shares[lane * 8u] = 2.0 * meanD * difference;
      }
      workgroupBarrier();
      for (var item = lane; item < ${slots * tile}u; item += ${lanes}u) {
        let slot = item % ${tile}u;
        let t = first + slot;
        if (t >= uniforms.tokens) { continue; }
        let p = weights[item] * totals[slot].x;
        let dD = -weights[item] * p * (dots[item] - totals[slot].y);
        dots[item] = dD;
        let at = (r * uniforms.tokens + t) * ${workLength(topK, localWindow)}u + (item / ${tile}u) * 2u;
        store_work(at, p);
        store_work(at + 1u, dD);
      }
      workgroupBarrier();
      for (var item = lane; item < ${tile * 8}u; item += ${lanes}u) {
        let slot = item / 8u;
        let t = first + slot;
        if (t >= uniforms.tokens) { continue; }
        var share = vec4f(0.0);
        var gamma = 0.0;
        // what the mean token gives was left in the first share
        if (item % 8u == 0u) { share = shares[item]; gamma = totals[slot].z; }
        let own = load_q(keys + t);
        for (var s = item % 8u; s < ${slots}u; s += 8u) {
          let token = tokens[s * ${tile}u + slot];
          if (token == NONE) { continue; }
          let dD = dots[s * ${tile}u + slot];
          share += 2.0 * dD * (own - load_k(keys + token));
          gamma += dD;
        }
        shares[item] = share;
        gammas[item] = gamma;
      }
      workgroupBarrier();
      if (lane < ${tile}u && first + lane < uniforms.tokens) {
        let at = (r * uniforms.tokens + first + lane) * ${workLength(topK, localWindow)}u + ${2 * slots}u;
        var dq = vec4f(0.0);
        var gamma = 0.0;
        for (var s = 0u; s < 8u; s++) { dq += shares[lane * 8u + s]; gamma += gammas[lane * 8u + s]; }
        for (var d = 0u; d < 4u; d++) { store_work(at + d, dq[d]); }
        store_work(at + 9u, gamma);
      }
    }`;
}

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
  /** f32 [rows, tokens, workLength]. */
  work: Tensor;
  rows: number;
  firstRow: number;
  heads: number;
  tokens: number;
  entries: number;
  causal: boolean;
}

export function differentiateQueries(call: BackwardCall, sizes: Pick<BackwardSpec, 'topK' | 'localWindow' | 'tile' | 'lanes'>): void {
  const { q, k, dOut, indices, theta, sums, work, rows, firstRow, heads, tokens, entries, causal } = call;
  const { tensor, spec, strides } = valueRows(call.v);
  const { topK, localWindow, tile, lanes } = sizes;
  queryGradients.run(q.device, {
    spec: { ...spec, topK, localWindow, tile, lanes, mean: sums !== undefined },
    tensors: { q, k, v: tensor, dOut, indices, theta, sums, work },
    uniforms: { rows, firstRow, heads, tokens, entries, causal: causal ? 1 : 0, ...strides },
    grid: [rows * Math.ceil(tokens / tile)],
  });
}
