import { defineKernel, empty, range, read, write } from '@heed/core/~internal';
import type { Tensor } from '@heed/core';
import { codeModule, curveUniforms, type CurveRange, curveValues } from './codes.js';
import type { Runs } from './runs.js';
import { searchUniforms } from './search.js';
import { sweep } from './sweep.js';

/** Queries a tile of the window lists: u32 [rows, tiles, window, 32], so that neighbouring lanes write neighbouring words. */
export const windowTile = 32;

/** Runs that the prefix of a query can be made of; workgroup memory is laid out for the smallest of these that suffices. */
export const runCounts = [4, 8, 12, 16] as const;

type WindowSpec = { keyDim: number; runs: number; marked: boolean };

// The window of each query: of the candidates in order of (code, token) the places [s, s + W) around its own code, where
// s = clamp(p - floor(W / 2), 0, max(0, n - W)) and p is the number of candidates with a smaller code (step 6 of the sheet).
// The candidates are the union of popcount(m) sorted runs. Two lanes a query halve the binary searches, then one walks down
// and one up from the insertion point, taking the nearest head of all runs at each step. Where `marked`, only tiles so marked are
// searched.
// tile    32 queries, 64 lanes
// bytes   reads about 8 (W + log2(n) popcount(m)), writes 4 W a query; 896 bytes of workgroup memory a run
// limits  16 runs: 2^16 blocks
const searchWindows = defineKernel({
  name: 'zeta-window',
  bindings: {
    q: read<WindowSpec>('f32', { width: 4 }),
    pairs: read<WindowSpec>('u32', { raw: 'vec2u' }),
    marks: read<WindowSpec>('u32', { when: ({ marked }) => marked }),
    windows: write<WindowSpec>('u32'),
  },
  uniforms: { ...searchUniforms, ...curveUniforms },
  modules: ({ keyDim }: WindowSpec) => [codeModule(keyDim)],
  wgsl: ({ runs, marked }: WindowSpec) => `
    const NONE = 0xffffffffu;
    var<workgroup> lower: array<u32, ${runs * 32}>;
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let tiles = (uniforms.queries + 31u) / 32u;
      let g = workgroupIndex(group, groups);
      if (g >= uniforms.rows * tiles) { return; }
      ${marked ? 'if (load_marks(g) == 0u) { return; }' : ''}
      let r = g / tiles;
      let side = lane >> 5u;
      let query = (g % tiles) * 32u + (lane & 31u);
      let inside = query < uniforms.queries;
      let base = base_pairs() + (uniforms.curveRow + r) * uniforms.levels * uniforms.capacity;
      // blocks whose keys the query may see, as bits: one run each
      var blocks = 0u;
      if (inside) {
        blocks = ((uniforms.firstQuery + query) / uniforms.chunk) * (uniforms.chunk / uniforms.block);
        if (uniforms.causal == 0u) { blocks = 1u << (uniforms.levels - 1u); }
      }
      var code = 0u;
      if (inside) { code = codeOf(load_q(r * uniforms.queries + query)); }
      var start = 0u;
      var i = 0u;
      for (var bits = blocks; bits != 0u; i++) {
        let level = firstLeadingBit(bits);
        bits ^= 1u << level;
        let length = min(uniforms.block << level, uniforms.keys - start);
        if ((i & 1u) == side) {
          let at = base + level * uniforms.capacity + start;
          var low = 0u;
          var high = length;
          while (low < high) {
            let middle = (low + high) >> 1u;
            if (pairs[at + middle].x < code) { low = middle + 1u; } else { high = middle; }
          }
          lower[i * 32u + (lane & 31u)] = low;
        }
        start += length;
      }
      let runs = i;
      let candidates = start;
      workgroupBarrier();
      if (!inside) { return; }
      var before = 0u;
      for (i = 0u; i < runs; i++) { before += lower[i * 32u + (lane & 31u)]; }
      let first = min(before - min(before, uniforms.window / 2u), candidates - min(candidates, uniforms.window));
      let last = min(candidates, first + uniforms.window);
      let down = side == 0u;
      var out = ((r * tiles + query / 32u) * uniforms.slots + uniforms.firstSlot) * 32u + (lane & 31u);
      var count = before - first;
      if (!down) {
        out += count * 32u;
        count = last - before;
        for (var rest = last - first; rest < uniforms.window; rest++) { store_windows(out + (count + rest - (last - first)) * 32u, NONE); }
      }
      // the next pair of each run in this lane's direction: codes are turned around on the way down, so that the least is next, and
      // of equal ones the first: runs hold later tokens one after the other, and the walk down begins with the last
      var alive = 0u;
      var rest = blocks;
      ${range(runs)
        .map(
          (n) =>
            `
      var key${n} = NONE; var token${n} = 0u; var place${n} = 0u; var edge${n} = 0u;
      if (rest != 0u) {
        let level = select(firstLeadingBit(rest), firstTrailingBit(rest), down);
        rest ^= 1u << level;
        let behind = blocks >> (level + 1u);
        let origin = (behind << (level + 1u)) * uniforms.block;
        let length = min(uniforms.block << level, uniforms.keys - origin);
        let low = lower[countOneBits(behind) * 32u + (lane & 31u)];
        if ((down && low > 0u) || (!down && length > low)) {
          let first = base + level * uniforms.capacity + origin;
          place${n} = first + select(low, low - 1u, down);
          edge${n} = first + select(length - 1u, 0u, down);
          let pair = pairs[place${n}];
          key${n} = select(pair.x, ~pair.x, down);
          token${n} = pair.y;
          alive |= ${2 ** n}u;
        }
      }`,
        )
        .join('')}
      for (var taken = 0u; taken < count; taken++) {
        // a live key may equal that of exhausted runs
        var best = firstTrailingBit(alive);
        var bestKey = NONE;
        ${range(runs)
          .map((n) => `if (key${n} < bestKey) { bestKey = key${n}; best = ${n}u; }`)
          .join('\n')}
        var token = 0u; var place = 0u; var edge = 0u;
        ${range(runs)
          .map((n) => `if (best == ${n}u) { token = token${n}; place = place${n}; edge = edge${n}; }`)
          .join('\n')}
        store_windows(out + taken * 32u, token);
        var key = NONE;
        if (place == edge) {
          alive &= ~(1u << best);
        } else {
          place = select(place + 1u, place - 1u, down);
          let pair = pairs[place];
          key = select(pair.x, ~pair.x, down);
          token = pair.y;
        }
        ${range(runs)
          .map((n) => `if (best == ${n}u) { key${n} = key; token${n} = token; place${n} = place; }`)
          .join('\n')}
      }
    }`,
});

/** What the search of a piece of queries needs besides the runs. */
export interface Search {
  range: CurveRange;
  keyDim: number;
  chunk: number;
  causal: boolean;
  window: number;
  /** Queries, and the token of the first. */
  queries: number;
  firstQuery: number;
  /** Tokens that the runs cover. */
  keys: number;
  /** Runs that the prefix of a query may have, one of `runCounts`. */
  runs: number;
  /** Whether the runs hold every aligned run that begins before the last key, be it not whole: then one run a query is swept first. */
  sweep: boolean;
}

/** Writes the window lists u32 [rows, tiles, window, 32] of queries q f32 [rows, queries, 4]; 0xffffffff stands for none. */
export function findWindows(runs: Runs, q: Tensor, windows: Tensor, search: Search): void {
  const { pairs, curves, rows, levels, capacity, block } = runs;
  const { range, keyDim, chunk, causal, queries, firstQuery, keys } = search;
  const sizes = curves === 1 ? [search.window] : [Math.ceil(search.window / 2), Math.floor(search.window / 2)];
  sizes.forEach((window, curve) => {
    if (window === 0) return;
    const tiles = rows * Math.ceil(queries / windowTile);
    const marks = search.sweep ? empty(q.device, [tiles], 'u32') : undefined;
    const uniforms = {
      rows,
      curveRow: curve * rows,
      levels,
      capacity,
      block,
      queries,
      firstQuery,
      chunk,
      keys,
      causal: causal ? 1 : 0,
      window,
      slots: search.window,
      firstSlot: curve === 0 ? 0 : (sizes[0] ?? 0),
      ...curveValues(range, curve),
    };
    if (marks) sweep({ q, pairs, windows, marks }, uniforms, keyDim);
    searchWindows.run(q.device, {
      spec: { keyDim, runs: search.runs, marked: marks !== undefined },
      tensors: { q, pairs, marks, windows },
      uniforms,
      grid: [tiles],
    });
  });
}
