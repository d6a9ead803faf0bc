import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { readingText, readingUniforms, type ReadingPair, readingValues } from './text.js';

// Rows of patches for a product: patches[g, r, (tap, c)] = x at what output position r reads at that tap, channel g size + c,
// or zero beside the grid.
// tile    4 channels (or 1) a lane, 256 lanes
// bytes   reads x once a tap (from the cache), writes groups x rows x taps x size
type UnfoldSpec = { width: 1 | 4 };

const kernel = defineKernel({
  name: 'conv-unfold',
  bindings: {
    x: read<UnfoldSpec>('float', { width: (spec) => spec.width }),
    patches: write<UnfoldSpec>('float', { width: (spec) => spec.width }),
  },
  uniforms: {
    ...readingUniforms,
    xBatch: 'u32',
    xRow: 'u32',
    xColumn: 'u32',
    size: 'u32',
    firstRow: 'u32',
    rows: 'u32',
    items: 'u32',
  },
  modules: [readingText],
  wgsl: ({ width }: UnfoldSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let perTap = uniforms.size / ${width}u;
      let taps = uniforms.tapsY * uniforms.tapsX;
      let c = i % perTap * ${width}u;
      let tap = i / perTap % taps;
      let rowInGroup = i / perTap / taps;
      let position = uniforms.firstRow + rowInGroup % uniforms.rows;
      let b = position / uniforms.outX / uniforms.outY;
      let y = sourceY(position / uniforms.outX % uniforms.outY, tap / uniforms.tapsX);
      let x = sourceX(position % uniforms.outX, tap % uniforms.tapsX);
      if (y < 0 || x < 0) {
        store_patches(i, ${width === 4 ? 'vec4f()' : '0.0'});
        return;
      }
      let channel = rowInGroup / uniforms.rows * uniforms.size + c;
      store_patches(i, load_x((b * uniforms.xBatch + u32(y) * uniforms.xRow + u32(x) * uniforms.xColumn + channel) / ${width}u));
    }`,
});

/**
 * Patches of output positions `first` to `first + rows` (counted over batch, rows, columns).
 * @param x [B, H, W, groups x size]
 * @returns [groups, rows, taps x size], the dtype of x
 */
export function unfold(x: Tensor, reading: ReadingPair, groups: number, [first, rows]: readonly [number, number]): Tensor {
  const size = x.dim(-1) / groups;
  const taps = reading.taps[0] * reading.taps[1];
  const [xBatch = 0, xRow = 0, xColumn = 0] = x.strides;
  const width = [x.offset, size, xBatch, xRow, xColumn].every((n) => n % 4 === 0) ? 4 : 1;
  const patches = empty(x.device, [groups, rows, taps * size], x.dtype, 'patches');
  const items = (groups * rows * taps * size) / width;
  kernel.run(x.device, {
    spec: { width },
    tensors: { x, patches },
    uniforms: { xBatch, xRow, xColumn, size, firstRow: first, rows, items, ...readingValues(reading) },
    grid: [Math.ceil(items / 256)],
  });
  return patches;
}
