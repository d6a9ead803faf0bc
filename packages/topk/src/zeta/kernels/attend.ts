import type { Tensor } from '@heed/core';
import { defineKernel, read, write } from '@heed/core/~internal';
import { cauchyModule } from './cauchy.js';
import { isHalf, meanModule, meanWord } from './means.js';
import { columnsOf, storeValue, valueModule, valueRows, valueStrides } from './values.js';
import { windowTile } from './window.js';

/** Sizes that an attention kernel is made for. */
export type AttendSpec = {
  valueDim: number;
  vector: boolean;
  window: number;
  topK: number;
  localWindow: number;
  curves: number;
  mean: boolean;
  /** Whether values, and so their means, are f16. */
  half: boolean;
  /** Whether the kept tokens are written. */
  store: boolean;
  /** Queries a workgroup, and its lanes. */
  tile: number;
  lanes: number;
};

// Refines and attends: of the W window tokens of a query the topK nearest by (squared distance, token), Cauchy weights
// 1 / (D + gamma^2), the local window and the history mean in the same sum.
// tile    up to 8 queries; a lane ranks four candidates by counting smaller distances, four a load, then sums four value columns of
//         one query. Equal distances leave a rank without a candidate: only then the tokens are compared as well
// bytes   reads 20 W + (topK + localWindow) size valueDim a query, writes size valueDim (and 4 topK for the indices)
// limits  8 (W + topK + localWindow) + 24 bytes of workgroup memory a query, with W rounded up to 4 and a pad of 16 where that is even
// source  Zeng et al. 2025, section 3 (adaptive Cauchy softmax); the sheet's steps 7 to 10
const attendWindows = defineKernel({
  name: 'zeta-attend',
  bindings: {
    q: read<AttendSpec>('f32', { width: 4 }),
    k: read<AttendSpec>('f32', { width: 4 }),
    v: read<AttendSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    windows: read<AttendSpec>('u32'),
    theta: read<AttendSpec>('f32'),
    means: read<AttendSpec>('u32', { raw: meanWord, when: ({ mean }) => mean }),
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
    // known, yet run-time values: software drivers unroll what they can count
    window: 'u32',
    quads: 'u32',
    ...valueStrides,
  },
  modules: (spec: AttendSpec) => [cauchyModule, valueModule('v', spec), ...(spec.mean ? [meanModule(spec.half)] : [])],
  wgsl: (spec: AttendSpec) => attendText(spec),
});

function attendText(spec: AttendSpec): string {
  const { valueDim, window, topK, localWindow, tile, lanes, mean } = spec;
  const columns = columnsOf(valueDim);
  // one rank more than is kept: it tells whether the last one is shared
  const kept = topK + 1 + localWindow;
  // fours of distances a query; an odd number, so that rows of queries begin in other banks
  const quads = distanceQuads(window);
  // of two curves the second one's tokens follow the first one's
  const firstOfSecond = Math.ceil(window / 2);
  return `
    const NONE = 0xffffffffu;
    // bits of the squared distance of each candidate, NONE where there is none, query by query
    var<workgroup> distances: array<vec4u, ${quads * tile}>;
    var<workgroup> tokens: array<u32, ${four16(window * tile)}>;
    var<workgroup> chosen: array<vec2u, ${even(kept * tile)}>;
    // candidates of a query, and whether two are equally far
    var<workgroup> counts: array<u32, 16>;
    var<workgroup> tied: array<u32, 16>;
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
      if (lane < 16u) { counts[lane] = ${window}u; tied[lane] = 0u; }
      for (var item = lane; item < ${kept * tile}u; item += ${lanes}u) { chosen[item].x = NONE; }
      for (var item = lane; item < ${4 * quads * tile}u; item += ${lanes}u) {
        let query = first + item % ${tile}u;
        let place = item / ${tile}u;
        var far = NONE;
        var token = NONE;
        if (query < uniforms.queries && place < ${window}u) {
          token = windowAt(lists, query, place);
          if (token != NONE${localWindow > 0 ? ` && token + ${localWindow}u <= uniforms.firstQuery + query` : ''}) {
            far = bitcast<u32>(squaredDistance(load_q(r * uniforms.queries + query), load_k(keys + token)));
          }
        }
        distances[item % ${tile}u * ${quads}u + place / 4u][place % 4u] = far;
        if (place < ${window}u) { tokens[item] = token; }
      }
      workgroupBarrier();
      ${
        spec.curves === 2
          ? `for (var item = lane + ${firstOfSecond * tile}u; item < ${window * tile}u; item += ${lanes}u) {
        for (var other = item % ${tile}u; other < ${firstOfSecond * tile}u; other += ${tile}u) {
          if (tokens[other] == tokens[item]) { distances[item % ${tile}u * ${quads}u + item / ${tile}u / 4u][item / ${tile}u % 4u] = NONE; }
        }
      }
      workgroupBarrier();`
          : ''
      }
      // a lane's candidates belong to one query (lanes is a multiple of tile): four of them are ranked by each load
      let own = lane % ${tile}u;
      for (var block = lane; block < ${window * tile}u; block += ${4 * lanes}u) {
        ${candidatesOfLane(spec, quads)}
        for (var quad = own * ${quads}u; quad < own * ${quads}u + uniforms.quads; quad++) {
          let e = distances[quad];
          ${four.map((n) => `rank${n} += select(0u, 1u, e.x < c${n}) + select(0u, 1u, e.y < c${n}) + select(0u, 1u, e.z < c${n}) + select(0u, 1u, e.w < c${n});`).join('\n')}
        }
        ${four.map((n) => `if (in${n}) { if (c${n} == NONE) { counts[own] = rank${n}; } else { ${choose(spec, n)} } }`).join('\n')}
      }
      workgroupBarrier();
      // every rank up to the one behind the last has a candidate, unless two share one
      for (var item = lane; item < ${(topK + 1) * tile}u; item += ${lanes}u) {
        if (item / ${tile}u < counts[item % ${tile}u] && chosen[item].x == NONE) { tied[item % ${tile}u] = 1u; }
      }
      workgroupBarrier();
      if (tied[own] != 0u) {
        for (var block = lane; block < ${window * tile}u; block += ${4 * lanes}u) {
          ${candidatesOfLane(spec, quads)}
          ${four.map((n) => `let token${n} = tokens[min(block + ${n * lanes}u, ${window * tile - 1}u)];`).join(' ')}
          for (var place = 0u; place < uniforms.window; place++) {
            let e = distances[own * ${quads}u + place / 4u][place % 4u];
            let other = tokens[place * ${tile}u + own];
            ${four.map((n) => `rank${n} += select(0u, 1u, e < c${n} || (e == c${n} && other < token${n}));`).join(' ')}
          }
          ${four.map((n) => `if (in${n} && c${n} != NONE) { ${choose(spec, n)} }`).join('\n')}
        }
      }
      ${
        localWindow > 0
          ? `for (var item = lane; item < ${localWindow * tile}u; item += ${lanes}u) {
        let query = first + item % ${tile}u;
        let back = item / ${tile}u;
        let t = uniforms.firstQuery + query;
        if (query < uniforms.queries && back <= t) {
          let distance = squaredDistance(load_q(r * uniforms.queries + query), load_k(keys + t - back));
          chosen[${(topK + 1) * tile}u + item] = vec2u(t - back, bitcast<u32>(1.0 / (distance + gamma2)));
        }
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
            ? `let mean = base_means() + (r * uniforms.queries + query) * ${columns + 1}u;
        let weight = bitcast<f32>(means[mean].x);
        sum += weight * unpackMean(means[mean + 1u + c]);
        total += weight;`
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
        if (rank < counts[slot]) { token = i32(chosen[rank * ${tile}u + slot].x); }
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

/** Fours of distances that a query has room for. */
export function distanceQuads(window: number): number {
  const quads = Math.ceil(window / 4);
  return quads + 1 - (quads % 2);
}

/** `in<n>`, distance `c<n>` and `rank<n>` of a lane's four candidates from `block` on. */
function candidatesOfLane({ window, tile, lanes }: AttendSpec, quads: number): string {
  return four
    .map(
      (n) => `let in${n} = block + ${n * lanes}u < ${window * tile}u;
        var c${n} = NONE;
        if (in${n}) { let place = (block + ${n * lanes}u) / ${tile}u; c${n} = distances[own * ${quads}u + place / 4u][place % 4u]; }
        var rank${n} = 0u;`,
    )
    .join('\n');
}

/** Puts candidate n where its rank is kept. */
function choose({ topK, tile, lanes }: AttendSpec, n: number): string {
  return `if (rank${n} <= ${topK}u) { chosen[rank${n} * ${tile}u + own] = vec2u(tokens[block + ${n * lanes}u], bitcast<u32>(1.0 / (bitcast<f32>(c${n}) + gamma2))); }`;
}

/** Adds what was chosen, the local window behind the found tokens: four rows in flight at a time, the last one again with weight 0. */
function sumChosen({ topK, localWindow, tile }: AttendSpec): string {
  const place = (n: number): string => {
    const at = `min(s + ${n}u, end - 1u)`;
    return localWindow > 0 ? `select(${topK + 1}u + ${at} - found, ${at}, ${at} < found)` : at;
  };
  return `let found = min(counts[slot], ${topK}u);
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

function four16(n: number): number {
  return Math.ceil(n / 4) * 4;
}

/** The tensors and places of a piece of queries. */
export interface AttendCall {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  windows: Tensor;
  theta: Tensor;
  means: Tensor | undefined;
  out: Tensor;
  indices: Tensor | undefined;
  rows: number;
  firstRow: number;
  heads: number;
  capacity: number;
  queries: number;
  firstQuery: number;
}

/** Attends over window lists; `sizes` come from the plan. */
export function attend(call: AttendCall, sizes: Omit<AttendSpec, 'valueDim' | 'vector' | 'mean' | 'half' | 'store'>): void {
  const { q, k, v, windows, theta, means, out, indices, ...place } = call;
  const { tensor, spec, strides } = valueRows(v);
  const full = { ...sizes, ...spec, mean: means !== undefined, half: isHalf(tensor), store: indices !== undefined } as AttendSpec;
  attendWindows.run(q.device, {
    spec: full,
    tensors: { q, k, v: tensor, windows, theta, means, out, indices },
    uniforms: { ...place, window: full.window, quads: Math.ceil(full.window / 4), ...strides },
    grid: [place.rows * Math.ceil(place.queries / full.tile)],
  });
}
