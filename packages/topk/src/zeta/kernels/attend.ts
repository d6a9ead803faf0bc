import type { Tensor } from '@heed/core';
import { defineKernel, read, write, type WgslModule } from '@heed/core/~internal';
import { sumTile } from './sums.js';
import { columnsOf, storeValue, valueModule, valueRows, valueStrides } from './values.js';
import { windowTile } from './window.js';

/** gamma^2 of a head; the distance of two points in one fixed order of operations, so that every form selects the same tokens. */
export const cauchyModule: WgslModule = {
  name: 'zeta-cauchy',
  text: `
  fn gammaOf(theta: f32) -> f32 { return 1.0 / (1.0 + exp(-clamp(theta, -30.0, 30.0))); }
  fn gammaSquared(theta: f32) -> f32 { let g = gammaOf(theta); return max(g * g, 1e-6); }
  fn squaredDistance(a: vec4f, b: vec4f) -> f32 {
    let d = a - b;
    return fma(d.w, d.w, fma(d.z, d.z, fma(d.y, d.y, d.x * d.x)));
  }`,
};

/** Sizes that an attention kernel is made for. */
export type AttendSpec = {
  valueDim: number;
  vector: boolean;
  window: number;
  topK: number;
  localWindow: number;
  curves: number;
  mean: boolean;
  /** Whether the kept tokens are written. */
  store: boolean;
  /** Queries a workgroup, and its lanes. */
  tile: number;
  lanes: number;
};

// Refines and attends: of the W window tokens of a query the topK nearest by (squared distance, token), Cauchy weights
// 1 / (D + gamma^2), the local window and the history mean in the same sum.
// tile    up to 8 queries; a lane ranks candidates by counting smaller ones, then sums four value columns of one query
// bytes   reads 20 W + (topK + localWindow) size valueDim a query, writes size valueDim (and 4 topK for the indices)
// limits  8 (W + topK + localWindow + 1) bytes of workgroup memory a query
// source  Zeng et al. 2025, section 3 (adaptive Cauchy softmax); the sheet's steps 7 to 10
const attendWindows = defineKernel({
  name: 'zeta-attend',
  bindings: {
    q: read<AttendSpec>('f32', { width: 4 }),
    k: read<AttendSpec>('f32', { width: 4 }),
    v: read<AttendSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    windows: read<AttendSpec>('u32'),
    theta: read<AttendSpec>('f32'),
    sums: read<AttendSpec>('f32', { width: 4, when: ({ mean }) => mean }),
    out: write<AttendSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    indices: write<AttendSpec>('i32', { when: ({ store }) => store }),
  },
  uniforms: {
    rows: 'u32',
    firstRow: 'u32',
    heads: 'u32',
    capacity: 'u32',
    queries: 'u32',
    firstQuery: 'u32',
    entries: 'u32',
    tokens: 'u32',
    causal: 'u32',
    // window x tile, known, yet a run-time value: software drivers unroll what they can count
    places: 'u32',
    ...valueStrides,
  },
  modules: (spec: AttendSpec) => [cauchyModule, valueModule('v', spec)],
  wgsl: (spec: AttendSpec) => attendText(spec),
});

function attendText(spec: AttendSpec): string {
  const { valueDim, window, topK, localWindow, tile, lanes, mean } = spec;
  const columns = columnsOf(valueDim);
  const kept = topK + localWindow;
  // of two curves the second one's tokens follow the first one's
  const firstOfSecond = Math.ceil(window / 2);
  return `
    const NONE = 0xffffffffu;
    var<workgroup> candidates: array<vec2u, ${even(window * tile)}>;
    var<workgroup> chosen: array<vec2u, ${even(kept * tile)}>;
    var<workgroup> counts: array<atomic<u32>, 16>;
    var<workgroup> means: array<f32, 16>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let tiles = (uniforms.queries + ${tile - 1}u) / ${tile}u;
      let g = workgroupIndex(group, groups);
      if (g >= uniforms.rows * tiles) { return; }
      let r = g / tiles;
      let first = (g % tiles) * ${tile}u;
      let row = uniforms.firstRow + r;
      let gamma2 = gammaSquared(load_theta(row % uniforms.heads));
      let keys = r * uniforms.capacity;
      let lists = r * ((uniforms.queries + ${windowTile - 1}u) / ${windowTile}u);
      if (lane < 16u) { atomicStore(&counts[lane], 0u); }
      for (var item = lane; item < ${window * tile}u; item += ${lanes}u) {
        let query = first + item % ${tile}u;
        var entry = vec2u(NONE);
        if (query < uniforms.queries) {
          let token = windowAt(lists, query, item / ${tile}u);
          if (token != NONE${localWindow > 0 ? ` && token + ${localWindow}u <= uniforms.firstQuery + query` : ''}) {
            entry = vec2u(bitcast<u32>(squaredDistance(load_q(r * uniforms.queries + query), load_k(keys + token))), token);
          }
        }
        candidates[item] = entry;
      }
      workgroupBarrier();
      ${
        spec.curves === 2
          ? `for (var item = lane + ${firstOfSecond * tile}u; item < ${window * tile}u; item += ${lanes}u) {
        for (var other = item % ${tile}u; other < ${firstOfSecond * tile}u; other += ${tile}u) {
          if (candidates[other].y == candidates[item].y) { candidates[item].x = NONE; }
        }
      }
      workgroupBarrier();`
          : ''
      }
      // a lane's candidates belong to one query (lanes is a multiple of tile): four of them are ranked by each entry read
      let own = lane % ${tile}u;
      for (var block = lane; block < ${window * tile}u; block += ${4 * lanes}u) {
        ${four.map((n) => `var c${n} = vec2u(NONE); if (block + ${n * lanes}u < ${window * tile}u) { c${n} = candidates[block + ${n * lanes}u]; } var rank${n} = 0u;`).join('\n')}
        for (var other = own; other < uniforms.places; other += ${tile}u) {
          let e = candidates[other];
          ${four.map((n) => `rank${n} += select(0u, 1u, e.x < c${n}.x || (e.x == c${n}.x && e.y < c${n}.y));`).join('\n')}
        }
        ${four
          .map(
            (n) => `if (c${n}.x != NONE && rank${n} < ${topK}u) {
          chosen[rank${n} * ${tile}u + own] = vec2u(c${n}.y, bitcast<u32>(1.0 / (bitcast<f32>(c${n}.x) + gamma2)));
          atomicMax(&counts[own], rank${n} + 1u);
        }`,
          )
          .join('\n')}
      }
      ${
        localWindow > 0
          ? `for (var item = lane; item < ${localWindow * tile}u; item += ${lanes}u) {
        let query = first + item % ${tile}u;
        let back = item / ${tile}u;
        let t = uniforms.firstQuery + query;
        if (query < uniforms.queries && back <= t) {
          let distance = squaredDistance(load_q(r * uniforms.queries + query), load_k(keys + t - back));
          chosen[${topK * tile}u + item] = vec2u(t - back, bitcast<u32>(1.0 / (distance + gamma2)));
        }
      }`
          : ''
      }
      ${
        mean
          ? `if (lane < ${tile}u && first + lane < uniforms.queries) {
        let t = uniforms.firstQuery + first + lane;
        let all = uniforms.causal == 0u;
        let tile = select(t / ${sumTile}u, uniforms.entries - 1u, all);
        var sum = load_sums((r * uniforms.entries + tile) * ${columns + 1}u);
        for (var j = tile * ${sumTile}u; j <= t && !all; j++) { sum += load_k(keys + j); }
        let count = f32(select(t + 1u, uniforms.tokens, all));
        means[lane] = 1.0 / (squaredDistance(load_q(r * uniforms.queries + first + lane), sum / count) + gamma2);
      }`
          : ''
      }
      workgroupBarrier();
      let values = (row / uniforms.heads) * uniforms.batchStride + (row % uniforms.heads) * uniforms.headStride;
      for (var item = lane; item < ${columns * tile}u; item += ${lanes}u) {
        let c = item % ${columns}u;
        let slot = item / ${columns}u;
        let query = first + slot;
        if (query >= uniforms.queries) { continue; }
        let t = uniforms.firstQuery + query;
        var sum = vec4f(0.0);
        var total = 0.0;
        ${sumChosen(spec)}
        ${
          mean
            ? `let all = uniforms.causal == 0u;
        let tile = select(t / ${sumTile}u, uniforms.entries - 1u, all);
        var mean = load_sums((r * uniforms.entries + tile) * ${columns + 1}u + 1u + c);
        for (var j = tile * ${sumTile}u; j <= t && !all; j++) { mean += value_v(values + j * uniforms.tokenStride, c); }
        sum += mean * (means[slot] / f32(select(t + 1u, uniforms.tokens, all)));
        total += means[slot];`
            : ''
        }
        var value = vec4f(0.0);
        if (total > 0.0) { value = sum / total; }
        let to = ((row / uniforms.heads) * uniforms.queries + query) * uniforms.heads + row % uniforms.heads;
        ${storeValue('out', spec, 'to', 'value')}
      }
      ${
        spec.store
          ? `for (var item = lane; item < ${topK * tile}u; item += ${lanes}u) {
        let slot = item / ${topK}u;
        let query = first + slot;
        if (query >= uniforms.queries) { continue; }
        let rank = item % ${topK}u;
        var token = -1;
        if (rank < atomicLoad(&counts[slot])) { token = i32(chosen[rank * ${tile}u + slot].x); }
        let to = ((row / uniforms.heads) * uniforms.queries + query) * uniforms.heads + row % uniforms.heads;
        store_indices(to * ${topK}u + rank, token);
      }`
          : ''
      }
    }
    fn windowAt(lists: u32, query: u32, place: u32) -> u32 {
      return load_windows(((lists + query / ${windowTile}u) * ${window}u + place) * ${windowTile}u + query % ${windowTile}u);
    }`;
}

const four = [0, 1, 2, 3];

/** Adds what was chosen, the local window behind the found tokens: four rows in flight at a time, the last one again with weight 0. */
function sumChosen({ topK, localWindow, tile }: AttendSpec): string {
  const place = (n: number): string => {
    const at = `min(s + ${n}u, end - 1u)`;
    return localWindow > 0 ? `select(${topK}u + ${at} - found, ${at}, ${at} < found)` : at;
  };
  return `let found = atomicLoad(&counts[slot]);
        let end = found${localWindow > 0 ? ` + min(${localWindow}u, t + 1u)` : ''};
        for (var s = 0u; s < end; s += 4u) {
          ${four.map((n) => `let e${n} = chosen[${`(${place(n)})`} * ${tile}u + slot];`).join('\n')}
          ${four.map((n) => `let v${n} = value_v(values + e${n}.x * uniforms.tokenStride, c);`).join('\n')}
          ${four.map((n) => `let w${n} = ${n === 0 ? `bitcast<f32>(e0.y)` : `select(0.0, bitcast<f32>(e${n}.y), end > s + ${n}u)`}; sum += w${n} * v${n}; total += w${n};`).join('\n')}
        }`;
}

function even(n: number): number {
  return n + (n % 2);
}

/** The tensors and places of a piece of queries. */
export interface AttendCall {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  windows: Tensor;
  theta: Tensor;
  sums: Tensor | undefined;
  out: Tensor;
  indices: Tensor | undefined;
  rows: number;
  firstRow: number;
  heads: number;
  capacity: number;
  queries: number;
  firstQuery: number;
  /** Entries a row of sums. */
  entries: number;
  tokens: number;
  causal: boolean;
}

/** Attends over window lists; `sizes` come from the plan. */
export function attend(call: AttendCall, sizes: Omit<AttendSpec, 'valueDim' | 'vector' | 'mean' | 'store'>): void {
  const { q, k, windows, theta, sums, out, indices, causal, ...place } = call;
  const { tensor, spec, strides } = valueRows(call.v);
  const full = { ...sizes, ...spec, mean: sums !== undefined, store: indices !== undefined } as AttendSpec;
  attendWindows.run(q.device, {
    spec: full,
    tensors: { q, k, v: tensor, windows, theta, sums, out, indices },
    uniforms: {
      rows: place.rows,
      firstRow: place.firstRow,
      heads: place.heads,
      capacity: place.capacity,
      queries: place.queries,
      firstQuery: place.firstQuery,
      entries: place.entries,
      tokens: place.tokens,
      causal: causal ? 1 : 0,
      places: full.window * full.tile,
      ...strides,
    },
    grid: [place.rows * Math.ceil(place.queries / full.tile)],
  });
}
