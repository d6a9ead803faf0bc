import type { Tensor } from '@heed/core';
import { defineKernel, range, read, write } from '@heed/core/~internal';
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
// tile    up to 8 queries; a lane holds every lanes-th candidate of one query and ranks it by counting smaller distances, four a
//         load, then sums four value columns of one query. Equal distances leave a rank without a candidate: only then the tokens
//         are compared as well
// bytes   reads 20 W + (topK + localWindow) size valueDim a query, writes size valueDim (and 4 topK for the indices)
// limits  16 bytes of workgroup memory a query for four of W or two of topK + localWindow, whichever is more: what was chosen takes
//         the place of the distances
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
  const cells = cellsOf(spec);
  const each = range(Math.ceil((window * tile) / lanes));
  const word = Math.ceil((topK + 1) / 32);
  return `
    const NONE = 0xffffffffu;
    // a row a query: bits of the squared distance of each candidate, NONE where there is none; then (token, weight) of those chosen
    var<workgroup> cells: array<vec4u, ${cells * tile}>;
    // ranks up to the one behind the last that some candidate has, as bits
    var<workgroup> taken: array<atomic<u32>, ${four16(word * tile)}>;
    // candidates of a query
    var<workgroup> counts: array<u32, ${four16(tile)}>;
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
      // a lane's candidates belong to one query: lanes is a multiple of tile
      let own = lane % ${tile}u;
      let base = own * ${cells}u;
      let inside = first + own < uniforms.queries;
      let t = uniforms.firstQuery + first + own;
      let list = (r * ((uniforms.queries + ${windowTile - 1}u) / ${windowTile}u) + (first + own) / ${windowTile}u) * ${window * windowTile}u + (first + own) % ${windowTile}u;
      var position = vec4f(0.0);
      if (inside) { position = load_q(r * uniforms.queries + first + own); }
      if (lane < ${tile}u) { counts[lane] = ${window}u; }
      for (var i = lane; i < ${word * tile}u; i += ${lanes}u) { atomicStore(&taken[i], 0u); }
      ${each.map((n) => `let place${n} = (lane + ${n * lanes}u) / ${tile}u; var token${n} = NONE; if (inside && place${n} < ${window}u) { token${n} = load_windows(list + place${n} * ${windowTile}u); }`).join('\n')}
      ${each.map((n) => `var c${n} = NONE; if (token${n} != NONE${localWindow > 0 ? ` && token${n} + ${localWindow}u <= t` : ''}) { c${n} = bitcast<u32>(squaredDistance(position, load_k(keys + token${n}))); }`).join('\n')}
      ${spec.curves === 2 ? each.map((n) => onceOnly(spec, n)).join('\n') : ''}
      ${each.map((n) => `if (place${n} < ${4 * Math.ceil(window / 4)}u) { cells[base + place${n} / 4u][place${n} % 4u] = c${n}; }`).join('\n')}
      workgroupBarrier();
      ${each.map((n) => `var rank${n} = 0u;`).join(' ')}
      for (var quad = base; quad < base + uniforms.quads; quad++) {
        let e = cells[quad];
        ${each.map((n) => ['x', 'y', 'z', 'w'].map((axis) => `rank${n} += select(0u, 1u, e.${axis} < c${n});`).join(' ')).join('\n')}
      }
      ${each.map((n) => `if (c${n} == NONE) { if (place${n} < ${window}u) { counts[own] = rank${n}; } } else if (rank${n} <= ${topK}u) { atomicOr(&taken[own * ${word}u + rank${n} / 32u], 1u << (rank${n} % 32u)); }`).join('\n')}
      workgroupBarrier();
      // every rank up to the one behind the last has a candidate, unless two share one
      let found = min(counts[own], ${topK}u);
      let ranks = min(counts[own], ${topK + 1}u);
      var tied = false;
      for (var i = 0u; i < ${word}u; i++) {
        let bits = ranks - min(ranks, i * 32u);
        tied = tied || atomicLoad(&taken[own * ${word}u + i]) != select((1u << (bits % 32u)) - 1u, NONE, bits >= 32u);
      }
      if (tied) {
        ${each.map((n) => `rank${n} = 0u;`).join(' ')}
        for (var place = 0u; place < uniforms.window; place++) {
          let e = cells[base + place / 4u][place % 4u];
          let other = load_windows(list + place * ${windowTile}u);
          ${each.map((n) => `rank${n} += select(0u, 1u, e < c${n} || (e == c${n} && other < token${n}));`).join('\n')}
        }
      }
      workgroupBarrier();
      ${each
        .map(
          (n) => `if (c${n} != NONE && rank${n} < ${topK}u) {
        ${putCell(`rank${n}`, `token${n}`, `bitcast<u32>(1.0 / (bitcast<f32>(c${n}) + gamma2))`)}
        if (rank${n} == 0u) { for (var i = found; i < ${four16(topK)}u; i++) { ${putCell('i', `token${n}`, '0u')} } }
      }`,
        )
        .join('\n')}
      ${
        localWindow > 0
          ? `for (var back = lane / ${tile}u; inside && back < ${four16(localWindow)}u; back += ${lanes / tile}u) {
        var weight = 0.0;
        let token = t - min(back, min(${localWindow - 1}u, t));
        if (back < min(${localWindow}u, t + 1u)) { weight = 1.0 / (squaredDistance(position, load_k(keys + token)) + gamma2); }
        ${putCell(`(${four16(topK)}u + back)`, 'token', 'bitcast<u32>(weight)')}
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
        var sum = vec4f(0.0);
        var total = 0.0;
        ${sumChosen(`slot * ${cells}u`, `min(counts[slot], ${topK}u)`)}
        ${localWindow > 0 ? sumChosen(`slot * ${cells}u + ${four16(topK) / 2}u`, `min(${localWindow}u, uniforms.firstQuery + query + 1u)`) : ''}
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
        if (rank < counts[slot]) { token = i32(cells[slot * ${cells}u + rank / 2u][rank % 2u * 2u]); }
        let to = ((row / uniforms.heads) * uniforms.queries + query) * uniforms.heads + row % uniforms.heads;
        store_indices(to * ${topK}u + rank, token);
      }`
          : ''
      }
    }`;
}

/** Fours of words that a query has in workgroup memory; an odd number, so that rows of queries begin in other banks. */
export function cellsOf({ window, topK, localWindow }: Pick<AttendSpec, 'window' | 'topK' | 'localWindow'>): number {
  const cells = Math.max(Math.ceil(window / 4), (four16(topK) + four16(localWindow)) / 2);
  return cells + 1 - (cells % 2);
}

/** Lanes of a workgroup: four candidates each, as far as 256 go. */
export function lanesOf(window: number, tile: number): number {
  return Math.max(32, Math.min(256, 2 ** Math.ceil(Math.log2((window * tile) / 4))));
}

/** Of two curves the second one's tokens follow the first one's: what both found counts once. */
function onceOnly({ window }: AttendSpec, n: number): string {
  const firstOfSecond = Math.ceil(window / 2);
  return `if (place${n} >= ${firstOfSecond}u && c${n} != NONE) {
        for (var other = 0u; other < ${firstOfSecond}u; other++) {
          if (load_windows(list + other * ${windowTile}u) == token${n}) { c${n} = NONE; }
        }
      }`;
}

/** Writes entry `at` of what a lane's query has chosen. */
function putCell(at: string, token: string, weight: string): string {
  return `cells[base + ${at} / 2u][${at} % 2u * 2u] = ${token}; cells[base + ${at} / 2u][${at} % 2u * 2u + 1u] = ${weight};`;
}

/** Adds `count` entries from cell `start` on, four rows in flight at a time; the last four are filled up with weights 0. */
function sumChosen(start: string, count: string): string {
  return `{
          let start = ${start};
          let end = start + (${count} + 3u) / 4u * 2u;
          for (var at = start; at < end; at += 2u) {
            let e0 = cells[at];
            let e1 = cells[at + 1u];
            let v0 = value_v(values + e0.x * uniforms.tokenStride, c);
            let v1 = value_v(values + e0.z * uniforms.tokenStride, c);
            let v2 = value_v(values + e1.x * uniforms.tokenStride, c);
            let v3 = value_v(values + e1.z * uniforms.tokenStride, c);
            let w = bitcast<vec4f>(vec4u(e0.yw, e1.yw));
            sum += w.x * v0; sum += w.y * v1; sum += w.z * v2; sum += w.w * v3;
            total += w.x; total += w.y; total += w.z; total += w.w;
          }
        }`;
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
  const full = { mean: means !== undefined, half: isHalf(tensor), store: indices !== undefined, ...sizes, ...spec } as AttendSpec;
  attendWindows.run(q.device, {
    spec: full,
    tensors: { q, k, v: tensor, windows, theta, means, out, indices },
    uniforms: { window: full.window, quads: Math.ceil(full.window / 4), ...place, ...strides },
    grid: [place.rows * Math.ceil(place.queries / full.tile)],
  });
}
