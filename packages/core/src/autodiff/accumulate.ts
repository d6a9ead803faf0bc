import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

// out = a + b, element by element, for cotangents that arrive from two places.
// tile    4 elements a lane, 256 lanes
// bytes   reads 2, writes 1 element each
const sumPair = defineKernel({
  name: 'accumulate',
  bindings: { a: read('float', { width: 4 }), b: read('float', { width: 4 }), out: write('float', { width: 4 }) },
  uniforms: { items: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.items) { store_out(i, load_a(i) + load_b(i)); }
    }`,
});

/** Sum of two tensors of one shape; the dtype of `a`. */
export function accumulate(a: Tensor, b: Tensor): Tensor {
  const [left, right] = [asContiguous(a), asContiguous(b)];
  const out = empty(a.device, a.shape, a.dtype);
  const items = Math.ceil(a.size / 4);
  sumPair.run(a.device, { spec: {}, tensors: { a: left, b: right, out }, uniforms: { items }, grid: [Math.ceil(items / 256)] });
  if (left !== a) left.dispose();
  if (right !== b) right.dispose();
  return out;
}
