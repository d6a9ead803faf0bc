import type { Tensor } from '@heed/core';
import { defineKernel, range, read, write } from '@heed/core/~internal';
import { workLength } from './backward-queries.js';
import { sumTile } from './sums.js';
import { columnsOf, storeValue, valueModule } from './values.js';

type KeySpec = {
  valueDim: number;
  vector: boolean;
  keyDim: number;
  topK: number;
  localWindow: number;
  mean: boolean;
};

const place = { rows: 'u32', firstRow: 'u32', heads: 'u32', tokens: 'u32' } as const;

// The kept pairs as (key, query slot), to be sorted by key; unused ones get a key past the last.
// tile    one pair a lane, 256 lanes
// bytes   reads 4, writes 8 a pair
const listPairs = defineKernel({
  name: 'zeta-list-pairs',
  bindings: { indices: read('i32'), keys: write('u32'), slots: write('u32') },
  uniforms: { ...place, topK: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      let perRow = uniforms.tokens * uniforms.topK;
      if (i >= uniforms.rows * perRow) { return; }
      let row = uniforms.firstRow + i / perRow;
      let slot = i % perRow;
      let at = ((row / uniforms.heads) * uniforms.tokens + slot / uniforms.topK) * uniforms.heads + row % uniforms.heads;
      store_keys(i, min(bitcast<u32>(load_indices(at * uniforms.topK + slot % uniforms.topK)), uniforms.tokens));
      store_slots(i, slot);
    }`,
});

// Where the pairs of each key begin in sorted order.
// tile    one key a lane, 256 lanes
// bytes   reads 4 log2(pairs) dependent words a key, writes 4
const findStarts = defineKernel({
  name: 'zeta-pair-starts',
  bindings: { keys: read('u32'), starts: write('u32') },
  uniforms: { rows: 'u32', tokens: 'u32', pairs: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * (uniforms.tokens + 1u)) { return; }
      let key = i % (uniforms.tokens + 1u);
      let base = (i / (uniforms.tokens + 1u)) * uniforms.pairs;
      var low = 0u;
      var high = uniforms.pairs;
      while (low < high) {
        let middle = (low + high) >> 1u;
        if (load_keys(base + middle) < key) { low = middle + 1u; } else { high = middle; }
      }
      store_starts(i, low);
    }`,
});

// What the mean tokens of a tile of queries give to every key before it: sums over the tile.
// tile    one vector of four sums of a tile of queries a lane, 256 lanes: first dD, then the columns of dO
// bytes   reads 16 and dO once a query (and its weight, 4, again for each vector), writes 16 a vector and tile
const meanTiles = defineKernel({
  name: 'zeta-backward-tiles',
  bindings: {
    dOut: read<KeySpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    work: read<KeySpec>('f32'),
    sums: write<KeySpec>('f32', { width: 4 }),
  },
  uniforms: { ...place, tiles: 'u32' },
  modules: (spec: KeySpec) => [valueModule('dOut', spec)],
  wgsl: ({ valueDim, vector, topK, localWindow }: KeySpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let columns = ${columnsOf(valueDim) + 1}u;
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * uniforms.tiles * columns) { return; }
      let column = i % columns;
      let tile = (i / columns) % uniforms.tiles;
      let r = i / columns / uniforms.tiles;
      let row = uniforms.firstRow + r;
      var sum = vec4f(0.0);
      for (var t = tile * ${sumTile}u; t < min(tile * ${sumTile}u + ${sumTile}u, uniforms.tokens); t++) {
        let own = ((row / uniforms.heads) * uniforms.tokens + t) * uniforms.heads + row % uniforms.heads;
        let at = (r * uniforms.tokens + t) * ${workLength(topK, localWindow)}u + ${2 * (topK + localWindow)}u;
        if (column == 0u) {
          sum += vec4f(load_work(at + 4u), load_work(at + 5u), load_work(at + 6u), load_work(at + 7u));
        } else {
          sum += load_work(at + 8u) * value_dOut(own * ${vector ? columnsOf(valueDim) : valueDim}u, column - 1u);
        }
      }
      store_sums((r * (uniforms.tiles + 1u) + tile) * columns + column, sum);
    }`,
});

// dv of each key: the transposed lists gather p dO; the local window and the mean come from neighbouring and from all later queries.
// tile    64 lanes, four columns of one key each
// bytes   reads (8 + size valueDim) a pair
const valueGradients = defineKernel({
  name: 'zeta-backward-values',
  bindings: {
    dOut: read<KeySpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    work: read<KeySpec>('f32'),
    slots: read<KeySpec>('u32'),
    starts: read<KeySpec>('u32'),
    sums: read<KeySpec>('f32', { width: 4, when: ({ mean }) => mean }),
    dv: write<KeySpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
  },
  uniforms: { ...place, tiles: 'u32', causal: 'u32' },
  modules: (spec: KeySpec) => [valueModule('dOut', spec)],
  wgsl: (spec: KeySpec) => {
    const { valueDim, vector, topK, localWindow, mean } = spec;
    const length = workLength(topK, localWindow);
    const rowOf = (query: string): string =>
      `value_dOut((rowStart + (${query}) * uniforms.heads) * ${vector ? columnsOf(valueDim) : valueDim}u, c)`;
    const add = (query: string, weight: string): string =>
      `sum += load_work((r * uniforms.tokens + ${query}) * ${length}u + ${weight}) * ${rowOf(query)};`;
    return `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let columns = ${columnsOf(valueDim)}u;
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.rows * uniforms.tokens * columns) { return; }
      let c = i % columns;
      let key = (i / columns) % uniforms.tokens;
      let r = i / columns / uniforms.tokens;
      let row = uniforms.firstRow + r;
      let rowStart = (row / uniforms.heads) * uniforms.tokens * uniforms.heads + row % uniforms.heads;
      var sum = vec4f(0.0);
      let at = r * (uniforms.tokens + 1u) + key;
      let end = load_starts(at + 1u);
      // four pairs in flight, the last one again with weight 0
      for (var e = load_starts(at); e < end; e += 4u) {
        ${range(4)
          .map((n) => `let slot${n} = load_slots(r * uniforms.tokens * ${topK}u + min(e + ${n}u, end - 1u));`)
          .join('\n')}
        ${range(4)
          .map(
            (n) =>
              `let p${n} = load_work((r * uniforms.tokens + slot${n} / ${topK}u) * ${length}u + (slot${n} % ${topK}u) * 2u); let v${n} = ${rowOf(`slot${n} / ${topK}u`)};`,
          )
          .join('\n')}
        ${range(4)
          .map((n) => `sum += select(0.0, p${n}, e + ${n}u < end) * v${n};`)
          .join(' ')}
      }
      ${
        localWindow > 0
          ? `for (var query = key; query < min(key + ${localWindow}u, uniforms.tokens); query++) {
        ${add('query', `(${topK}u + query - key) * 2u`)}
      }`
          : ''
      }
      ${
        mean
          ? `let tile = key / ${sumTile}u;
      if (uniforms.causal == 0u) {
        sum += load_sums(r * (uniforms.tiles + 1u) * (columns + 1u) + 1u + c);
      } else {
        sum += load_sums((r * (uniforms.tiles + 1u) + tile + 1u) * (columns + 1u) + 1u + c);
        for (var query = key; query < min((tile + 1u) * ${sumTile}u, uniforms.tokens); query++) {
          ${add('query', `${2 * (topK + localWindow) + 8}u`)}
        }
      }`
          : ''
      }
      ${storeValue('dv', spec, 'rowStart + key * uniforms.heads', 'sum')}
    }`;
  },
});

// dk of each key the same way: -2 dD (q - k) over its pairs. And dq, put into its place.
// tile    32 keys x 8 lanes, each with every eighth pair
// bytes   reads 24 a pair, 16 and 4 keyDim a key, writes 8 keyDim a key
const keyGradients = defineKernel({
  name: 'zeta-backward-keys',
  bindings: {
    q: read<KeySpec>('f32', { width: 4 }),
    k: read<KeySpec>('f32', { width: 4 }),
    work: read<KeySpec>('f32'),
    slots: read<KeySpec>('u32'),
    starts: read<KeySpec>('u32'),
    sums: read<KeySpec>('f32', { width: 4, when: ({ mean }) => mean }),
    dq: write<KeySpec>('f32'),
    dk: write<KeySpec>('f32'),
  },
  uniforms: { ...place, tiles: 'u32', causal: 'u32' },
  wgsl: ({ valueDim, keyDim, topK, localWindow, mean }: KeySpec) => {
    const length = workLength(topK, localWindow);
    const own = 2 * (topK + localWindow);
    const columns = columnsOf(valueDim) + 1;
    return `
    var<workgroup> shares: array<vec4f, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 32u + lane / 8u;
      let part = lane % 8u;
      let inside = i < uniforms.rows * uniforms.tokens;
      let key = i % uniforms.tokens;
      let r = i / uniforms.tokens;
      let row = uniforms.firstRow + r;
      var sum = vec4f(0.0);
      if (inside) {
        let position = load_k(i);
        let at = r * (uniforms.tokens + 1u) + key;
        let end = load_starts(at + 1u);
        for (var e = load_starts(at) + part; e < end; e += 8u) {
          let slot = load_slots(r * uniforms.tokens * ${topK}u + e);
          let query = r * uniforms.tokens + slot / ${topK}u;
          sum -= 2.0 * load_work(query * ${length}u + (slot % ${topK}u) * 2u + 1u) * (load_q(query) - position);
        }
        ${
          localWindow > 0
            ? `for (var t = key + part; t < min(key + ${localWindow}u, uniforms.tokens); t += 8u) {
          let query = r * uniforms.tokens + t;
          sum -= 2.0 * load_work(query * ${length}u + (${topK}u + t - key) * 2u + 1u) * (load_q(query) - position);
        }`
            : ''
        }
        ${
          mean
            ? `let tile = key / ${sumTile}u;
        if (uniforms.causal == 0u) {
          if (part == 0u) { sum += load_sums(r * (uniforms.tiles + 1u) * ${columns}u); }
        } else {
          if (part == 0u) { sum += load_sums((r * (uniforms.tiles + 1u) + tile + 1u) * ${columns}u); }
          for (var t = key + part; t < min((tile + 1u) * ${sumTile}u, uniforms.tokens); t += 8u) {
            let query = (r * uniforms.tokens + t) * ${length}u + ${own + 4}u;
            sum += vec4f(load_work(query), load_work(query + 1u), load_work(query + 2u), load_work(query + 3u));
          }
        }`
            : ''
        }
      }
      shares[lane] = sum;
      workgroupBarrier();
      if (!inside || part != 0u) { return; }
      for (var j = 1u; j < 8u; j++) { sum += shares[lane + j]; }
      let to = ((row / uniforms.heads) * uniforms.tokens + key) * uniforms.heads + row % uniforms.heads;
      ${range(keyDim)
        .map(
          (d) =>
            `store_dk(to * ${keyDim}u + ${d}u, sum[${d}]); store_dq(to * ${keyDim}u + ${d}u, load_work(i * ${length}u + ${own + d}u));`,
        )
        .join('\n')}
    }`;
  },
});

/** Kept tokens i32 [batch, tokens, heads, topK] of a slab as pairs (key, slot), u32 [rows, tokens topK] each. */
export function pairsOf(
  indices: Tensor,
  keys: Tensor,
  slots: Tensor,
  at: { rows: number; firstRow: number; heads: number; tokens: number; topK: number },
): void {
  listPairs.run(indices.device, {
    spec: {},
    tensors: { indices, keys, slots },
    uniforms: at,
    grid: [Math.ceil((at.rows * at.tokens * at.topK) / 256)],
  });
}

/** Starts u32 [rows, tokens + 1] of the keys in sorted keys u32 [rows, pairs]. */
export function startsOf(keys: Tensor, starts: Tensor): void {
  const [rows, pairs] = [keys.dim(0), keys.dim(1)];
  const tokens = starts.dim(1) - 1;
  findStarts.run(keys.device, {
    spec: {},
    tensors: { keys, starts },
    uniforms: { rows, tokens, pairs },
    grid: [Math.ceil((rows * (tokens + 1)) / 256)],
  });
}

/** The tensors of the backward pass by keys over a slab. */
export interface KeyCall {
  q: Tensor;
  k: Tensor;
  dOut: Tensor;
  work: Tensor;
  slots: Tensor;
  starts: Tensor;
  sums: Tensor | undefined;
  dq: Tensor;
  dk: Tensor;
  dv: Tensor;
  rows: number;
  firstRow: number;
  heads: number;
  tokens: number;
  causal: boolean;
}

/** Sums over tiles of what the mean tokens give, f32 [rows, tiles + 1, 1 + columns, 4], the last entry unset. */
export function meanTileSums(
  call: Pick<KeyCall, 'dOut' | 'work' | 'rows' | 'firstRow' | 'heads' | 'tokens'>,
  sums: Tensor,
  spec: KeySpec,
): void {
  const { dOut, work, rows, firstRow, heads, tokens } = call;
  const tiles = Math.ceil(tokens / sumTile);
  meanTiles.run(dOut.device, {
    spec,
    tensors: { dOut, work, sums },
    uniforms: { rows, firstRow, heads, tokens, tiles },
    grid: [Math.ceil((rows * tiles * (columnsOf(spec.valueDim) + 1)) / 256)],
  });
}

/** dq, dk and dv of a slab. */
export function differentiateKeys(call: KeyCall, spec: KeySpec): void {
  const { q, k, dOut, work, slots, starts, sums, dq, dk, dv, rows, firstRow, heads, tokens, causal } = call;
  const uniforms = { rows, firstRow, heads, tokens, tiles: Math.ceil(tokens / sumTile), causal: causal ? 1 : 0 };
  valueGradients.run(q.device, {
    spec,
    tensors: { dOut, work, slots, starts, sums, dv },
    uniforms,
    grid: [Math.ceil((rows * tokens * columnsOf(spec.valueDim)) / 64)],
  });
  keyGradients.run(q.device, {
    spec,
    tensors: { q, k, work, slots, starts, sums, dq, dk },
    uniforms,
    grid: [Math.ceil((rows * tokens) / 32)],
  });
}
