// Gradient of the Toeplitz entries: dc_o = sum over pairs at offset o of (a_i . b_j)(g_i . w_j).
// tile    64 offsets stay, 32 positions of queries pass by with the 95 positions of keys that they meet; 4 x 4 pairs a lane
// bytes   reads a, g once and b, w three times a tile of offsets (from L2); writes 4 bytes an offset, split and entry
// limits  f32; 2 (features + width) operations a pair; splits are added in order
// source  Luo et al. 2021 (arXiv 2106.12566), section 3: the derivative of sum_j c_(j-i) (a_i . b_j) w_j by c
import { sum, type Tensor } from '@heed/core';
import { defineKernel, empty, range, read, unroll, write } from '@heed/core/~internal';
import { type Positions, spanOf } from '../positions.js';
import { channelVector } from './text.js';

const offsets = 64;
const rows = 32;
const chunk = 16;
const stride = chunk / 4 + 1;
const lanes = (rows / 4) * (offsets / 4);

interface DiagonalSpec {
  [name: string]: number;
  featureItems: number;
  widthItems: number;
  fixed: number;
}

const kernel = defineKernel({
  name: 'nprf-diagonals',
  bindings: {
    a: read<DiagonalSpec>('f32', { width: (s) => s.featureItems }),
    b: read<DiagonalSpec>('f32', { width: (s) => s.featureItems }),
    g: read<DiagonalSpec>('f32', { width: (s) => s.widthItems }),
    w: read<DiagonalSpec>('f32', { width: (s) => s.widthItems }),
    out: write<DiagonalSpec>('f32'),
  },
  uniforms: {
    workgroups: 'u32',
    tiles: 'u32',
    splits: 'u32',
    span: 'u32',
    positions: 'u32',
    keyPositions: 'u32',
    queries: 'u32',
    keys: 'u32',
    features: 'u32',
    width: 'u32',
    line: 'u32',
    stride: 'u32',
    centre: 'i32',
    table: 'u32',
    chunkVectors: 'u32',
  },
  wgsl: (s: DiagonalSpec) => {
    const pair = (text: (i: number, j: number) => string): string => unroll(4, (i) => unroll(4, (j) => text(i, j)));
    // adds the products of one pair of operands over all their channels
    const products = (left: string, right: string, count: string, to: string): string => `
        ${pair((i, j) => `var ${to}_${i}_${j} = 0.0;`)}
        for (var channel = 0u; channel < ${count}; channel += ${chunk}u) {
          for (var e = lane; e < ${rows * (chunk / 4)}u; e += ${lanes}u) {
            let token = rowTokens[e / ${chunk / 4}u];
            var value = vec4f();
            if (token >= 0) { value = vector_${left}((entry * uniforms.queries + u32(token)) * ${count}, channel + 4u * (e % ${chunk / 4}u)); }
            tile_rows[(e / ${chunk / 4}u) * ${stride}u + e % ${chunk / 4}u] = value;
          }
          for (var e = lane; e < ${(rows + offsets) * (chunk / 4)}u; e += ${lanes}u) {
            let token = keyTokens[e / ${chunk / 4}u];
            var value = vec4f();
            if (token >= 0) { value = vector_${right}((entry * uniforms.keys + u32(token)) * ${count}, channel + 4u * (e % ${chunk / 4}u)); }
            tile_keys[(e / ${chunk / 4}u) * ${stride}u + e % ${chunk / 4}u] = value;
          }
          workgroupBarrier();
          for (var vec = 0u; vec < ${s.fixed === 1 ? `${chunk / 4}u` : 'uniforms.chunkVectors'}; vec++) {
            ${unroll(4, (i) => `let l${i} = tile_rows[(4u * rg + ${i}u) * ${stride}u + vec];`)}
            ${unroll(7, (j) => `let r${j} = tile_keys[(4u * (rg + og) + ${j}u) * ${stride}u + vec];`)}
            ${pair((i, j) => `${to}_${i}_${j} += dot(l${i}, r${i + j});`)}
          }
          workgroupBarrier();
        }`;
    return `
    ${channelVector('a', s.featureItems, 'uniforms.features')}
    ${channelVector('b', s.featureItems, 'uniforms.features')}
    ${channelVector('g', s.widthItems, 'uniforms.width')}
    ${channelVector('w', s.widthItems, 'uniforms.width')}
    // the token at a position, or -1
    fn tokenAt(position: i32, tokens: u32) -> i32 {
      if (position < 0) { return -1; }
      let column = u32(position) % uniforms.stride;
      let token = (u32(position) / uniforms.stride) * uniforms.line + column;
      return select(-1, i32(token), column < uniforms.line && token < tokens);
    }
    var<workgroup> tile_rows: array<vec4f, ${rows * stride}>;
    var<workgroup> tile_keys: array<vec4f, ${(rows + offsets) * stride}>;
    var<workgroup> sums: array<vec4f, ${lanes}>;
    var<workgroup> rowTokens: array<i32, ${rows}>;
    var<workgroup> keyTokens: array<i32, ${rows + offsets}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let firstEntry = (index % uniforms.tiles) * ${offsets}u;
      let split = (index / uniforms.tiles) % uniforms.splits;
      let entry = index / uniforms.tiles / uniforms.splits;
      let offset = i32(firstEntry) - uniforms.centre;
      let og = lane % ${offsets / 4}u;
      let rg = lane / ${offsets / 4}u;
      var total = vec4f();
      let end = min((split + 1u) * uniforms.span, uniforms.positions);
      for (var first = split * uniforms.span; first < end; first += ${rows}u) {
        // positions without a key at any of these offsets
        if (i32(first) + offset + ${rows + offsets} <= 0 || i32(first) + offset >= i32(uniforms.keyPositions)) { continue; }
        for (var e = lane; e < ${rows + offsets}u; e += ${lanes}u) {
          if (e < ${rows}u) { rowTokens[e] = tokenAt(i32(first + e), uniforms.queries); }
          keyTokens[e] = tokenAt(i32(first + e) + offset, uniforms.keys);
        }
        workgroupBarrier();
        ${products('a', 'b', 'uniforms.features', 'ab')}
        ${products('g', 'w', 'uniforms.width', 'gw')}
        total += vec4f(${range(4)
          .map((j) =>
            range(4)
              .map((i) => `ab_${i}_${j} * gw_${i}_${j}`)
              .join(' + '),
          )
          .join(', ')});
      }
      sums[lane] = total;
      workgroupBarrier();
      if (rg == 0u) {
        for (var i = 1u; i < ${rows / 4}u; i++) { total += sums[lane + i * ${offsets / 4}u]; }
        let at = (split * (uniforms.workgroups / uniforms.tiles / uniforms.splits) + entry) * uniforms.table;
        ${unroll(4, (j) => `if (firstEntry + 4u * og + ${j}u < uniforms.table) { store_out(at + firstEntry + 4u * og + ${j}u, total[${j}]); }`)}
      }
    }`;
  },
});

/**
 * dc [heads, table], summed over batch entries; a, g [entries, queries, ..], b, w [entries, keys, ..] contiguous f32. The table ends where
 * pairs are hidden, so that none of them has an entry.
 */
export function diagonalSums(
  { a, b, g, w }: { a: Tensor; b: Tensor; g: Tensor; w: Tensor },
  positions: Positions,
  heads: number,
  table: number,
): Tensor {
  const { device } = a;
  const [entries, queries, features] = a.shape as [number, number, number];
  const width = w.dim(2);
  const tiles = Math.ceil(table / offsets);
  const all = spanOf(positions, queries);
  // eight times as many workgroups as run at a time: under a mask those of far offsets end early
  const splits = Math.max(1, Math.min(Math.ceil(4096 / (entries * tiles)), Math.floor(all / 128)));
  const span = Math.ceil(all / splits / rows) * rows;
  const out = empty(device, [splits, entries, table]);
  const workgroups = entries * tiles * splits;
  kernel.run(device, {
    spec: { featureItems: features % 4 === 0 ? 4 : 1, widthItems: width % 4 === 0 ? 4 : 1, fixed: device.isSoftware ? 0 : 1 },
    tensors: { a, b, g, w, out },
    uniforms: {
      workgroups,
      tiles,
      splits,
      span,
      positions: all,
      keyPositions: spanOf(positions, b.dim(1)),
      queries,
      keys: b.dim(1),
      features,
      width,
      line: positions.line,
      stride: positions.stride,
      centre: positions.centre,
      table,
      chunkVectors: chunk / 4,
    },
    grid: [workgroups],
  });
  return sum(out.view({ shape: [splits * (entries / heads), heads, table], strides: [heads * table, table, 1] }), 0);
}
