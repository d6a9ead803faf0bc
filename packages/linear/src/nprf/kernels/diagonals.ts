// Gradient of the Toeplitz entries: dc_r = sum over pairs at offset r of (a_i . b_j)(g_i . w_j).
// tile    64 offsets a workgroup, one a lane; queries pass by one after the other, and neighbouring lanes meet neighbouring keys
// bytes   reads a and g once a tile of offsets, b and w once a pair (from L1); writes 4 bytes an offset, split and entry
// limits  f32; 2 (features + width) operations and as many loads a pair; splits are added in order
// source  Luo et al. 2021 (arXiv 2106.12566), section 3: the derivative of sum_j c_(j-i) (a_i . b_j) w_j by c
import { sum, type Tensor } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';
import type { Positions } from '../positions.js';

const offsets = 64;

const kernel = defineKernel({
  name: 'nprf-diagonals',
  bindings: { a: read('f32'), b: read('f32'), g: read('f32'), w: read('f32'), out: write('f32') },
  uniforms: {
    workgroups: 'u32',
    tiles: 'u32',
    splits: 'u32',
    span: 'u32',
    queries: 'u32',
    keys: 'u32',
    features: 'u32',
    width: 'u32',
    line: 'u32',
    stride: 'u32',
    centre: 'i32',
    shift: 'i32',
    table: 'u32',
  },
  wgsl: () => `
    fn place(token: u32) -> i32 { return i32((token / uniforms.line) * uniforms.stride + token % uniforms.line); }
    // the token at a position, or no token
    fn tokenAt(position: i32) -> i32 {
      if (position < 0) { return -1; }
      let row = u32(position) / uniforms.stride;
      let column = u32(position) % uniforms.stride;
      return select(-1, i32(row * uniforms.line + column), column < uniforms.line && row * uniforms.line + column < uniforms.keys);
    }
    @compute @workgroup_size(${offsets})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let entry_ = (index % uniforms.tiles) * ${offsets}u + lane;
      let split = (index / uniforms.tiles) % uniforms.splits;
      let entry = index / uniforms.tiles / uniforms.splits;
      if (entry_ >= uniforms.table) { return; }
      let offset = i32(entry_) - uniforms.centre;
      var total = 0.0;
      let end = min((split + 1u) * uniforms.span, uniforms.queries);
      for (var query = split * uniforms.span; query < end; query++) {
        let key = tokenAt(place(query) + offset);
        if (key < 0 || key > i32(query) + uniforms.shift) { continue; }
        var ab = 0.0;
        let at = (entry * uniforms.queries + query) * uniforms.features;
        for (var f = 0u; f < uniforms.features; f++) { ab += load_a(at + f) * load_b((entry * uniforms.features + f) * uniforms.keys + u32(key)); }
        var gw = 0.0;
        let gt = (entry * uniforms.queries + query) * uniforms.width;
        for (var f = 0u; f < uniforms.width; f++) { gw += load_g(gt + f) * load_w((entry * uniforms.width + f) * uniforms.keys + u32(key)); }
        total += ab * gw;
      }
      store_out((split * (uniforms.workgroups / uniforms.tiles / uniforms.splits) + entry) * uniforms.table + entry_, total);
    }`,
});

/** dc [heads, table], summed over batch entries; a, g [entries, queries, ..], b, w [entries, .., keys] contiguous f32. */
export function diagonalSums(
  { a, b, g, w }: { a: Tensor; b: Tensor; g: Tensor; w: Tensor },
  positions: Positions,
  heads: number,
  table: number,
): Tensor {
  const [entries, queries, features] = a.shape as [number, number, number];
  const tiles = Math.ceil(table / offsets);
  const splits = Math.max(1, Math.min(Math.ceil(2048 / (entries * tiles)), Math.floor(queries / 64)));
  const out = empty(a.device, [splits, entries, table]);
  const workgroups = entries * tiles * splits;
  kernel.run(a.device, {
    spec: {},
    tensors: { a, b, g, w, out },
    uniforms: {
      workgroups,
      tiles,
      splits,
      span: Math.ceil(queries / splits),
      queries,
      keys: b.dim(2),
      features,
      width: w.dim(1),
      line: positions.line,
      stride: positions.stride,
      centre: positions.centre,
      shift: positions.shift,
      table,
    },
    grid: [workgroups],
  });
  return sum(out.view({ shape: [splits * (entries / heads), heads, table], strides: [heads * table, table, 1] }), 0);
}
