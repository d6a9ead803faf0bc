import type { Tensor } from '@heed/core';
import { defineKernel, empty, read, readWrite, write } from '@heed/core/~internal';
import { columnsOf, valueModule, valueRows, type ValueSpec, valueStrides } from './values.js';

/** Tokens a tile of the running sums; the sums inside a tile are made where they are used. */
export const sumTile = 16;

// Sums of keys and values over tiles of 16 tokens.
// tile    one column group of four (0 the key, then the values) of one tile a lane, 256 lanes
// bytes   reads 16 + size valueDim a token, writes (16 + 4 valueDim) / 16
const tileSums = defineKernel({
  name: 'zeta-tile-sums',
  bindings: {
    k: read<ValueSpec>('f32', { width: 4 }),
    v: read<ValueSpec>('float', { width: ({ vector }) => (vector ? 4 : 1) }),
    sums: write<ValueSpec>('f32', { width: 4 }),
  },
  uniforms: {
    rows: 'u32',
    firstRow: 'u32',
    heads: 'u32',
    capacity: 'u32',
    firstTile: 'u32',
    tiles: 'u32',
    entries: 'u32',
    tokens: 'u32',
    ...valueStrides,
  },
  modules: (spec: ValueSpec) => [valueModule('v', spec)],
  wgsl: ({ valueDim }: ValueSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let columns = ${columnsOf(valueDim) + 1}u;
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.rows * uniforms.tiles * columns) { return; }
      let column = i % columns;
      let tile = uniforms.firstTile + (i / columns) % uniforms.tiles;
      let r = i / columns / uniforms.tiles;
      let row = uniforms.firstRow + r;
      let at = (row / uniforms.heads) * uniforms.batchStride + (row % uniforms.heads) * uniforms.headStride;
      var sum = vec4f(0.0);
      let end = min(tile * ${sumTile}u + ${sumTile}u, uniforms.tokens);
      for (var t = tile * ${sumTile}u; t < end; t++) {
        if (column == 0u) { sum += load_k(r * uniforms.capacity + t); } else { sum += value_v(at + t * uniforms.tokenStride, column - 1u); }
      }
      store_sums((r * uniforms.entries + tile + 1u) * columns + column, sum);
    }`,
});

/** Tiles that a workgroup of the scan takes: 64 segments of four. */
const blockTiles = 256;

/** Uniforms and first lines of both kernels: `entryOf(j)` is the j-th entry in the order of the sum. */
const scanUniforms = {
  rows: 'u32',
  columns: 'u32',
  entries: 'u32',
  firstTile: 'u32',
  tiles: 'u32',
  blocks: 'u32',
  reverse: 'u32',
} as const;
const scanHead = `
    fn entryOf(j: u32) -> u32 { return select(uniforms.firstTile + j, uniforms.tiles - j, uniforms.reverse != 0u); }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let parts = (uniforms.columns + 3u) / 4u;
      let g = workgroupIndex(group, groups);
      if (g >= uniforms.rows * parts * uniforms.blocks) { return; }
      let column = (g % parts) * 4u + lane % 4u;
      let block = (g / parts) % uniforms.blocks;
      let r = g / parts / uniforms.blocks;
      let segment = lane / 4u;
      let inside = column < uniforms.columns;
      let base = r * uniforms.entries * uniforms.columns + column;
      let begin = min(block * ${blockTiles}u + segment * ${blockTiles / 64}u, uniforms.tiles);
      let end = min(begin + ${blockTiles / 64}u, uniforms.tiles);
      var sum = vec4f(0.0);
      if (inside) {
        for (var j = begin; j < end; j++) { sum += load_sums(base + entryOf(j + 1u) * uniforms.columns); }
      }`;

// Sums over blocks of 256 tiles.
// tile    4 column groups x 64 segments of four tiles
// bytes   reads 16 an entry and column group
const blockSums = defineKernel({
  name: 'zeta-block-sums',
  bindings: { sums: read('f32', { width: 4 }), totals: write('f32', { width: 4 }) },
  uniforms: scanUniforms,
  wgsl: () => `
    var<workgroup> segments: array<vec4f, 256>;
    ${scanHead}
      segments[lane] = sum;
      for (var step = 128u; step >= 4u; step >>= 1u) {
        workgroupBarrier();
        if (lane < step) { segments[lane] += segments[lane + step]; }
      }
      if (lane < 4u && inside) { store_totals((r * uniforms.blocks + block) * uniforms.columns + column, segments[lane]); }
    }`,
});

// Running sums over tiles in place: entry e becomes the sum of the tiles before it (behind it when reversed).
// tile    4 column groups x 64 segments of four tiles
// bytes   reads twice, writes once 16 bytes an entry and column group
const scanTiles = defineKernel({
  name: 'zeta-scan-tiles',
  bindings: {
    sums: readWrite<{ several: boolean }>('f32', { width: 4 }),
    totals: read<{ several: boolean }>('f32', { width: 4, when: ({ several }) => several }),
  },
  uniforms: scanUniforms,
  wgsl: ({ several }: { several: boolean }) => `
    var<workgroup> segments: array<vec4f, 256>;
    ${several ? 'var<workgroup> earlier: array<vec4f, 256>;' : ''}
    ${scanHead}
      segments[lane] = sum;
      ${
        several
          ? `var before = vec4f(0.0);
      if (inside) {
        for (var b = segment; b < block; b += 64u) { before += load_totals((r * uniforms.blocks + b) * uniforms.columns + column); }
      }
      earlier[lane] = before;`
          : ''
      }
      workgroupBarrier();
      if (!inside) { return; }
      var total = vec4f(0.0);
      let goesOn = uniforms.reverse == 0u && uniforms.firstTile > 0u;
      if (goesOn) { total = load_sums(base + entryOf(0u) * uniforms.columns); }
      ${several ? 'for (var s = 0u; s < min(block, 64u); s++) { total += earlier[s * 4u + lane % 4u]; }' : ''}
      for (var s = 0u; s < segment; s++) { total += segments[s * 4u + lane % 4u]; }
      if (block == 0u && segment == 0u && !goesOn) { store_sums(base + entryOf(0u) * uniforms.columns, total); }
      for (var j = begin; j < end; j++) {
        let at = base + entryOf(j + 1u) * uniforms.columns;
        total += load_sums(at);
        store_sums(at, total);
      }
    }`,
});

/** Running sums of a piece of tokens; see `extendSums`. */
export interface SumsPlace {
  rows: number;
  firstRow: number;
  heads: number;
  /** Places a row of k. */
  capacity: number;
  firstTile: number;
  tiles: number;
  /** Entries a row of sums. */
  entries: number;
  /** Tokens that exist. */
  tokens: number;
}

/**
 * Extends running sums f32 [rows, entries, 1 + columns, 4] by tiles: entry e holds the sum of keys (column 0) and values of the
 * tokens before tile e.
 */
export function extendSums(k: Tensor, v: Tensor, sums: Tensor, place: SumsPlace): void {
  const { tensor, spec, strides } = valueRows(v);
  const columns = columnsOf(spec.valueDim) + 1;
  tileSums.run(k.device, {
    spec,
    tensors: { k, v: tensor, sums },
    uniforms: { ...place, ...strides },
    grid: [Math.ceil((place.rows * place.tiles * columns) / 256)],
  });
  scanSums(sums, columns, place, false);
}

/** Running sums in place over tile sums; reversed, entry e becomes the sum of tiles e and later, from tile sums at their own entries. */
export function scanSums(
  sums: Tensor,
  columns: number,
  place: Pick<SumsPlace, 'rows' | 'entries' | 'firstTile' | 'tiles'>,
  reverse: boolean,
): void {
  const { rows, entries, firstTile, tiles } = place;
  const blocks = Math.ceil(tiles / blockTiles);
  const several = blocks > 1;
  const uniforms = { rows, columns, entries, firstTile, tiles, blocks, reverse: reverse ? 1 : 0 };
  const grid = [rows * Math.ceil(columns / 4) * blocks] as const;
  const totals = several ? empty(sums.device, [rows, blocks, columns, 4]) : undefined;
  if (totals) blockSums.run(sums.device, { spec: {}, tensors: { sums, totals }, uniforms, grid });
  scanTiles.run(sums.device, { spec: { several }, tensors: { sums, totals }, uniforms, grid });
  totals?.dispose();
}
