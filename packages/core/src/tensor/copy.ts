import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import type { WgslModule } from '../kernel/modules.js';
import { empty } from './create.js';
import type { Shape, Tensor } from './tensor.js';

/** Offset of a flat index in a strided tensor of up to 8 axes: `stridedOffset(flat, rank, shape, strides)`. */
export const stridedOffset: WgslModule = {
  name: 'strided-offset',
  text: `
    fn stridedOffset(flat: u32, rank: u32, shape: array<vec4u, 2>, strides: array<vec4u, 2>) -> u32 {
      var rest = flat;
      var at = 0u;
      for (var axis = rank; axis > 0u; axis--) {
        let i = axis - 1u;
        let n = shape[i >> 2u][i & 3u];
        at += (rest % n) * strides[i >> 2u][i & 3u];
        rest /= n;
      }
      return at;
    }`,
};

// Copies a strided tensor into row-major order.
// tile    1 element a lane, 256 lanes
// bytes   reads and writes one element each
const gatherStrided = defineKernel({
  name: 'strided-copy',
  bindings: { x: read('any'), out: write('any') },
  uniforms: { shape: 'u32x8', strides: 'u32x8', rank: 'u32', size: 'u32' },
  modules: [stridedOffset],
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { store_out(i, load_x(stridedOffset(i, uniforms.rank, uniforms.shape, uniforms.strides))); }
    }`,
});

/** Merges axes that lie behind each other, so that strided loops have fewer. */
export function mergeAxes(shape: Shape, strides: Shape): { shape: number[]; strides: number[] } {
  const outShape: number[] = [];
  const outStrides: number[] = [];
  for (let axis = 0; axis < shape.length; axis++) {
    const n = shape[axis] ?? 1;
    const stride = strides[axis] ?? 0;
    if (n === 1) continue;
    const last = outShape.length - 1;
    if (last >= 0 && outStrides[last] === stride * n) {
      outShape[last] = (outShape[last] ?? 1) * n;
      outStrides[last] = stride;
    } else {
      outShape.push(n);
      outStrides.push(stride);
    }
  }
  if (outShape.length === 0) return { shape: [1], strides: [1] };
  return { shape: outShape, strides: outStrides };
}

/** A row-major copy of `x` (always a new buffer). */
export function copyContiguous(x: Tensor): Tensor {
  const out = empty(x.device, x.shape, x.dtype, x.label);
  const merged = mergeAxes(x.shape, x.strides);
  gatherStrided.run(x.device, {
    spec: {},
    tensors: { x, out },
    uniforms: { shape: merged.shape, strides: merged.strides, rank: merged.shape.length, size: x.size },
    grid: [Math.ceil(x.size / 256)],
  });
  return out;
}

/** `x` itself when it is contiguous and starts at a multiple of `align` elements, else a copy. */
export function asContiguous(x: Tensor, align = 4): Tensor {
  return x.contiguous && x.offset % align === 0 ? x : copyContiguous(x);
}
