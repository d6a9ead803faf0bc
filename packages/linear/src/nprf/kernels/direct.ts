// The product of all of this package's Toeplitz forms, pair by pair: out_i = sum_j c_(j-i) (a_i . b_j) w_j.
// tile    `rows` rows x `others` passing rows; scores in chunks of 32 features; out as 4 rows x 4 columns a lane, `columns` vectors a workgroup
// bytes   reads a, b and w once a tile (from L2), c once a pair (from L1), writes out once a split
// limits  f32; 2 (features + columns) operations a pair; few rows: passing rows are split over workgroups, whose sums are added in order
// source  Luo et al. 2021 (arXiv 2106.12566), section 3; all three gradients of a, b and w are this product again
import type { Tensor } from '@heed/core';
import { HeedError, sum } from '@heed/core';
import { defineKernel, empty, read, unroll, write } from '@heed/core/~internal';
import { type PairTile, planPairs, rowLayout } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import type { Positions } from '../positions.js';
import { channelVector } from './text.js';

const chunkFeatures = 32;

interface DirectSpec extends PairTile {
  featureItems: number;
  widthItems: number;
  fixed: number;
}

const kernel = defineKernel({
  name: 'nprf-direct',
  bindings: {
    a: read<DirectSpec>('f32', { width: (s) => s.featureItems }),
    b: read<DirectSpec>('f32', { width: (s) => s.featureItems }),
    w: read<DirectSpec>('f32', { width: (s) => s.widthItems }),
    c: read<DirectSpec>('f32'),
    out: write<DirectSpec>('f32', { width: (s) => s.widthItems }),
  },
  uniforms: {
    workgroups: 'u32',
    tiles: 'u32',
    columnTiles: 'u32',
    splits: 'u32',
    span: 'u32',
    heads: 'u32',
    rows: 'u32',
    others: 'u32',
    otherRows: 'u32',
    features: 'u32',
    width: 'u32',
    shift: 'i32',
    transposed: 'u32',
    line: 'u32',
    stride: 'u32',
    centre: 'i32',
    table: 'u32',
    chunkVectors: 'u32',
  },
  wgsl: (s: DirectSpec) => {
    const chunk = rowLayout(chunkFeatures);
    const values = rowLayout(4 * s.columns);
    const each = (text: (n: number) => string): string => unroll(4, text);
    const stageChunk = (name: string, tile: number, first: string, end: string, rowsOf: string): string => `
          for (var e = lane; e < ${tile * chunk.vectors}u; e += ${s.lanes}u) {
            let at = e / ${chunk.vectors}u;
            let vec = e % ${chunk.vectors}u;
            var value = vec4f();
            if (${first} + at < ${end}) { value = vector_${name}((entry * ${rowsOf} + ${first} + at) * uniforms.features, feature + 4u * vec); }
            tile_${name}[at * ${chunk.stride}u + vec] = value;
          }`;
    return `
    ${channelVector('a', s.featureItems, 'uniforms.features')}
    ${channelVector('b', s.featureItems, 'uniforms.features')}
    ${channelVector('w', s.widthItems, 'uniforms.width')}
    ${pairs.totalText}
    // where a token stands: images are laid out with lines so far apart that offsets of pairs stay apart
    fn place(token: u32) -> i32 { return i32((token / uniforms.line) * uniforms.stride + token % uniforms.line); }
    ${pairs.tileMemory('a', chunk, s.rows)}
    ${pairs.tileMemory('b', chunk, s.others)}
    ${pairs.tileMemory('w', values, s.others)}
    ${pairs.planeMemory('p', s)}
    @compute @workgroup_size(${s.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let columnFirst = (index % uniforms.columnTiles) * ${4 * s.columns}u;
      let tileIndex = (index / uniforms.columnTiles) % uniforms.tiles;
      let split = (index / uniforms.columnTiles / uniforms.tiles) % uniforms.splits;
      let entry = index / uniforms.columnTiles / uniforms.tiles / uniforms.splits;
      let head = entry % uniforms.heads;
      // the longest tiles first: the last rows, or under a transposed mask the first
      let firstRow = select(uniforms.tiles - 1u - tileIndex, tileIndex, uniforms.transposed == 1u) * ${s.rows}u;
      let lastRow = min(firstRow + ${s.rows}u, uniforms.rows) - 1u;
      ${pairs.laneText(s)}
      // row i sees j up to i + shift; transposed, row j is seen by i from j - shift on
      var begin = split * uniforms.span;
      var end = min(begin + uniforms.span, uniforms.others);
      if (uniforms.transposed == 1u) { begin = max(begin, u32(max(0, i32(firstRow) - uniforms.shift))); }
      else { end = min(end, u32(max(0, i32(lastRow) + 1 + uniforms.shift))); }
      ${each((n) => `var a${n} = vec4f();`)}
      for (var at0 = begin; at0 < end; at0 += ${s.others}u) {
        ${pairs.eachPair(s, (i, j) => `var score_${i}_${j} = 0.0;`)}
        for (var e = lane; e < ${s.others * s.columns}u; e += ${s.lanes}u) {
          let at = e / ${s.columns}u;
          var value = vec4f();
          if (at0 + at < end) { value = vector_w((entry * uniforms.otherRows + at0 + at) * uniforms.width, columnFirst + 4u * (e % ${s.columns}u)); }
          tile_w[at * ${values.stride}u + e % ${s.columns}u] = value;
        }
        for (var feature = 0u; feature < uniforms.features; feature += ${chunkFeatures}u) {
          ${stageChunk('a', s.rows, 'firstRow', 'uniforms.rows', 'uniforms.rows')}
          ${stageChunk('b', s.others, 'at0', 'end', 'uniforms.otherRows')}
          workgroupBarrier();
          {
            ${pairs.scores(s, chunk.stride, [{ name: 'ab', left: 'a', right: 'b' }], [], { from: '0u', to: pairs.bound(s.fixed, chunk.vectors, 'uniforms.chunkVectors') })}
            ${pairs.eachPair(s, (i, j) => `score_${i}_${j} += s_ab_${i}_${j};`)}
          }
          workgroupBarrier();
        }
        ${pairs.eachPair(
          s,
          (i, j) => `{ let r = firstRow + ${pairs.rowOf(s, i)};
          let o = at0 + ${pairs.otherOf(s, j)};
          let query = i32(select(r, o, uniforms.transposed == 1u));
          let key = i32(select(o, r, uniforms.transposed == 1u));
          var weight = 0.0;
          if (r < uniforms.rows && o < end && key <= query + uniforms.shift) {
            weight = score_${i}_${j} * load_c(head * uniforms.table + u32(place(u32(key)) - place(u32(query)) + uniforms.centre));
          }
          ${pairs.putWeight('p', s, i, j, 'weight')} }`,
        )}
        workgroupBarrier();
        ${pairs.addRows(s, values.stride, [{ plane: 'p', tile: 'w', to: 'a' }], pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`))}
        workgroupBarrier();
      }
      ${each(
        (n) => `{ let r = firstRow + 4u * rb + ${n}u;
        let column = columnFirst + 4u * c;
        if (r < uniforms.rows) {
          let base = (split * (uniforms.workgroups / (uniforms.columnTiles * uniforms.tiles * uniforms.splits)) + entry) * uniforms.rows * uniforms.width + r * uniforms.width;
          ${
            s.widthItems === 4
              ? `if (column < uniforms.width) { store_out((base + column) / 4u, a${n}); }`
              : ['x', 'y', 'z', 'w']
                  .map((x, c) => `if (column + ${c}u < uniforms.width) { store_out(base + column + ${c}u, a${n}.${x}); }`)
                  .join('\n')
          }
        } }`,
      )}
    }`;
  },
});

/**
 * Operands, f32: a [entries, rows, features], b [entries, others, features], w [entries, others, width], c [heads, table], contiguous; b and w may
 * be the first rows of longer buffers of one length.
 */
export interface ProductOperands {
  a: Tensor;
  b: Tensor;
  w: Tensor;
  c: Tensor;
}

/** Which pairs there are and what factor each has. */
export interface ProductShape extends Positions {
  heads: number;
  /** Rows are keys, and a pair's offset is row - other. */
  transposed: boolean;
}

/** sum_j c (a_i . b_j) w_j, [entries, rows, width]. */
export function directProduct({ a, b, w, c }: ProductOperands, shape: ProductShape): Tensor {
  const { device } = a;
  const [entries, rows, features] = a.shape as [number, number, number];
  const [others, width] = [w.dim(1), w.dim(2)];
  const { maxComputeWorkgroupStorageSize: most, maxComputeInvocationsPerWorkgroup: lanes } = device.limits;
  const vectors = Math.ceil(width / 4);
  const columns = Math.ceil(vectors / Math.ceil(vectors / 17));
  const chunk = rowLayout(chunkFeatures);
  const tile = planPairs({
    columns,
    memory: { perRow: chunk.stride, perOther: chunk.stride + (columns | 1), planes: 1 },
    bytes: Math.min(most, 24 * 1024),
    lanes: Math.min(256, lanes),
    dots: 1,
    software: device.isSoftware,
  });
  if (!tile) throw new HeedError('LIMIT_EXCEEDED', `nprf: no tile fits into ${most} bytes of workgroup memory and ${lanes} lanes`);
  const tiles = Math.ceil(rows / tile.rows);
  const columnTiles = Math.ceil(vectors / columns);
  const splits = splitsFor(entries * tiles * columnTiles, others);
  const span = Math.ceil(others / splits);
  const out = empty(device, [splits, entries, rows, width]);
  const workgroups = entries * tiles * columnTiles * splits;
  kernel.run(device, {
    spec: { ...tile, featureItems: features % 4 === 0 ? 4 : 1, widthItems: width % 4 === 0 ? 4 : 1, fixed: device.isSoftware ? 0 : 1 },
    tensors: { a, b, w, c, out },
    uniforms: {
      workgroups,
      tiles,
      columnTiles,
      splits,
      span,
      heads: shape.heads,
      rows,
      others,
      otherRows: (b.strides[0] ?? 0) / features,
      features,
      width,
      shift: shape.shift,
      transposed: shape.transposed ? 1 : 0,
      line: shape.line,
      stride: shape.stride,
      centre: shape.centre,
      table: c.dim(1),
      chunkVectors: chunk.vectors,
    },
    grid: [workgroups],
  });
  return splits === 1 ? out.view({ shape: [entries, rows, width], strides: [rows * width, width, 1] }) : sum(out, 0);
}

/** Parts that the passing rows are cut into, so that a few rows fill a device, too; 256 passing rows or more each. Pure. */
function splitsFor(workgroups: number, others: number): number {
  return Math.max(1, Math.min(Math.ceil(512 / workgroups), Math.floor(others / 256)));
}
