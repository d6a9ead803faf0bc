import type { Device } from '../../device/device.js';
import { write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';

// 0, 1, 2, ...
// tile    1 element a lane, 256 lanes
// bytes   writes 4 an element
const counting = defineKernel({
  name: 'count',
  bindings: { out: write('u32') },
  uniforms: { size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { store_out(i, i); }
    }`,
});

/** 0 .. size - 1, u32 [1, size]. */
export function countUp(device: Device, size: number): Tensor {
  const out = empty(device, [1, size], 'u32');
  counting.run(device, { spec: {}, tensors: { out }, uniforms: { size }, grid: [Math.ceil(size / 256)] });
  return out;
}
