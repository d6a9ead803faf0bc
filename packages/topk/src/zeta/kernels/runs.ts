import { defineKernel, read, readWrite } from '@heed/core/~internal';
import type { Tensor } from '@heed/core';
import { codeModule, curveUniforms, type CurveRange, curveValues } from './codes.js';

/**
 * Sorted runs of keys: level l holds, at each place of a row, the pairs (code, token) of the tokens of one aligned run of
 * 2^l blocks in order of (code, token). All levels are kept: a prefix of whole blocks is the union of one run a set bit of its
 * block count, and going back to an earlier length costs nothing.
 */
export interface Runs {
  /** u32 [curves, rows, levels, capacity, 2]. */
  pairs: Tensor;
  curves: number;
  rows: number;
  levels: number;
  capacity: number;
  /** Tokens a run of level 0. */
  block: number;
}

// Sorts one block of keys by (code, token): bitonic network in workgroup memory.
// tile    1 block, up to 256 lanes; the block rounded up to a power of two
// bytes   reads 16, writes 8 a key; 8 bytes of workgroup memory a key
// limits  block <= 1024
const sortBlocks = defineKernel({
  name: 'zeta-sort-blocks',
  bindings: { k: read('f32', { width: 4 }), pairs: readWrite('u32', { raw: 'vec2u' }) },
  uniforms: {
    rows: 'u32',
    curveRow: 'u32',
    levels: 'u32',
    capacity: 'u32',
    block: 'u32',
    blocks: 'u32',
    firstBlock: 'u32',
    end: 'u32',
    ...curveUniforms,
  },
  modules: ({ keyDim }: { keyDim: number; length: number }) => [codeModule(keyDim)],
  wgsl: ({ length }: { keyDim: number; length: number }) => {
    const lanes = Math.max(32, Math.min(256, length / 2));
    return `
    var<workgroup> codes: array<u32, ${length}>;
    var<workgroup> tokens: array<u32, ${length}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let g = workgroupIndex(group, groups);
      if (g >= uniforms.rows * uniforms.blocks) { return; }
      let r = g / uniforms.blocks;
      let start = (uniforms.firstBlock + g % uniforms.blocks) * uniforms.block;
      let count = min(uniforms.block, uniforms.end - start);
      for (var i = lane; i < ${length}u; i += ${lanes}u) {
        codes[i] = 0xffffffffu;
        tokens[i] = 0xffffffffu;
        if (i < count) {
          codes[i] = codeOf(load_k(r * uniforms.capacity + start + i));
          tokens[i] = start + i;
        }
      }
      for (var size = 2u; size <= ${length}u; size <<= 1u) {
        for (var step = size >> 1u; step > 0u; step >>= 1u) {
          workgroupBarrier();
          for (var pair = lane; pair < ${length / 2}u; pair += ${lanes}u) {
            let low = (pair / step) * 2u * step + pair % step;
            let high = low + step;
            let a = codes[low]; let b = codes[high];
            let i = tokens[low]; let j = tokens[high];
            if ((a > b || (a == b && i > j)) == ((low & size) == 0u)) {
              codes[low] = b; codes[high] = a;
              tokens[low] = j; tokens[high] = i;
            }
          }
        }
      }
      workgroupBarrier();
      let base = base_pairs() + (uniforms.curveRow + r) * uniforms.levels * uniforms.capacity + start;
      for (var i = lane; i < count; i += ${lanes}u) { pairs[base + i] = vec2u(codes[i], tokens[i]); }
    }`;
  },
});

// Merges pairs of runs of one level into the next by merge path: a lane finds by binary search where its outputs begin.
// tile    2 outputs a lane, 256 lanes (H100: 4 take a quarter longer, 8 twice as long)
// bytes   reads 8 + about 8 log2(run), writes 8 a key and level
// source  Green, McColl, Bader 2012 (merge path); of equal codes the older run's come first
const mergeRuns = defineKernel({
  name: 'zeta-merge-runs',
  bindings: { pairs: readWrite('u32', { raw: 'vec2u' }) },
  uniforms: {
    rows: 'u32',
    levels: 'u32',
    capacity: 'u32',
    level: 'u32',
    length: 'u32',
    runs: 'u32',
    firstRun: 'u32',
    lanesPerRun: 'u32',
    end: 'u32',
  },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      let perRow = uniforms.runs * uniforms.lanesPerRun;
      if (i >= uniforms.rows * perRow) { return; }
      let rest = i % perRow;
      let start = (uniforms.firstRun + rest / uniforms.lanesPerRun) * 2u * uniforms.length;
      let first = (rest % uniforms.lanesPerRun) * 2u;
      let left = min(uniforms.length, uniforms.end - start);
      let right = min(uniforms.length, uniforms.end - start - left);
      if (first >= left + right) { return; }
      let a = base_pairs() + ((i / perRow) * uniforms.levels + uniforms.level) * uniforms.capacity + start;
      let b = a + left;
      let out = a + uniforms.capacity;
      var low = first - min(first, right);
      var high = min(first, left);
      while (low < high) {
        let middle = (low + high) >> 1u;
        if (pairs[a + middle].x <= pairs[b + first - 1u - middle].x) { low = middle + 1u; } else { high = middle; }
      }
      var x = low;
      var y = first - low;
      for (var n = first; n < min(first + 2u, left + right); n++) {
        var older = y >= right;
        if (!older && x < left) { older = pairs[a + x].x <= pairs[b + y].x; }
        if (older) { pairs[out + n] = pairs[a + x]; x++; } else { pairs[out + n] = pairs[b + y]; y++; }
      }
    }`,
});

/**
 * Sorts the blocks that became whole when tokens `from` .. `to` were added, and merges upwards. `partial` counts a last block
 * that is not whole, and the runs over it, too (bidirectional search).
 */
export function extendRuns(runs: Runs, k: Tensor, range: CurveRange, keyDim: number, from: number, to: number, partial: boolean): void {
  const { device } = k;
  const { pairs, curves, rows, levels, capacity, block } = runs;
  const whole = (tokens: number, length: number): number => (partial ? Math.ceil(tokens / length) : Math.floor(tokens / length));
  const firstBlock = whole(from, block);
  const blocks = whole(to, block) - firstBlock;
  if (blocks <= 0) return;
  const length = Math.max(4, 2 ** Math.ceil(Math.log2(block)));
  for (let curve = 0; curve < curves; curve++) {
    sortBlocks.run(device, {
      spec: { keyDim, length },
      tensors: { k, pairs },
      uniforms: { rows, curveRow: curve * rows, levels, capacity, block, blocks, firstBlock, end: to, ...curveValues(range, curve) },
      grid: [rows * blocks],
    });
  }
  for (let level = 0; level + 1 < levels; level++) {
    const size = block * 2 ** level;
    const firstRun = whole(from, 2 * size);
    const count = whole(to, 2 * size) - firstRun;
    if (count <= 0) break;
    const lanesPerRun = size;
    mergeRuns.run(device, {
      spec: {},
      tensors: { pairs },
      uniforms: { rows: curves * rows, levels, capacity, level, length: size, runs: count, firstRun, lanesPerRun, end: to },
      grid: [Math.ceil((curves * rows * count * lanesPerRun) / 256)],
    });
  }
}
