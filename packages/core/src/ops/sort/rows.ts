import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { empty, zeros } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';

// out[row, i] = x[row, index[row, i]]
// tile    1 element a lane, 256 lanes
// bytes   reads 4 + one element, writes one element
const gatherKernel = defineKernel({
  name: 'gather-rows',
  bindings: { x: read('any'), index: read('u32'), out: write('any') },
  uniforms: { size: 'u32', m: 'u32', n: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { store_out(i, load_x((i / uniforms.m) * uniforms.n + load_index(i))); }
    }`,
});

// out[row, index[row, i]] = x[row, i]; the indices of a row differ, so that no two lanes write one element.
// tile    1 element a lane, 256 lanes
// bytes   reads 4 + one element, writes one element
const scatterKernel = defineKernel({
  name: 'scatter-rows',
  bindings: { x: read('any'), index: read('u32'), out: write('any') },
  uniforms: { size: 'u32', m: 'u32', n: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { store_out((i / uniforms.m) * uniforms.n + load_index(i), load_x(i)); }
    }`,
});

/** Elements of contiguous rows x [rows, n] by index [rows, m]. */
export function gatherRows(x: Tensor, index: Tensor): Tensor {
  const out = empty(x.device, index.shape, x.dtype);
  const m = index.dim(-1);
  gatherKernel.run(x.device, {
    spec: {},
    tensors: { x, index, out },
    uniforms: { size: index.size, m, n: x.dim(-1) },
    grid: [Math.ceil(index.size / 256)],
  });
  return out;
}

/** The reverse for indices that differ within a row: a tensor of `shape`, zero elsewhere; f32. */
export function scatterRows(x: Tensor, index: Tensor, shape: readonly number[]): Tensor {
  const out = zeros(x.device, shape);
  const m = index.dim(-1);
  scatterKernel.run(x.device, {
    spec: {},
    tensors: { x, index, out },
    uniforms: { size: index.size, m, n: shape.at(-1) ?? 1 },
    grid: [Math.ceil(index.size / 256)],
  });
  return out;
}
