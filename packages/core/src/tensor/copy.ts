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

type CopySpec = { width: number };

// Copies a strided tensor into row-major order.
// tile    4 neighbouring elements a lane where rows start at multiples of 4, else 1; 256 lanes
// bytes   reads and writes one element each
const gatherStrided = defineKernel({
  name: 'strided-copy',
  bindings: { x: read<CopySpec>('any', { width: (s) => s.width }), out: write<CopySpec>('any', { width: (s) => s.width }) },
  uniforms: { shape: 'u32x8', strides: 'u32x8', rank: 'u32', items: 'u32' },
  modules: [stridedOffset],
  wgsl: (_: CopySpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.items) { store_out(i, load_x(stridedOffset(i, uniforms.rank, uniforms.shape, uniforms.strides))); }
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

/** How a strided tensor is copied: axes merged, in items of `width` elements; pure. */
export interface StridedCopyPlan {
  width: 1 | 4;
  shape: number[];
  strides: number[];
  items: number;
}

/** Items of 4 where the last axis runs along memory and every row starts at a multiple of 4 elements. */
export function planStridedCopy(x: { shape: Shape; strides: Shape; offset: number; size: number }): StridedCopyPlan {
  const { shape, strides } = mergeAxes(x.shape, x.strides);
  const last = shape.length - 1;
  const aligned =
    strides[last] === 1 && (shape[last] ?? 1) % 4 === 0 && x.offset % 4 === 0 && strides.every((s, axis) => axis === last || s % 4 === 0);
  if (!aligned) return { width: 1, shape, strides, items: x.size };
  return {
    width: 4,
    shape: shape.map((n, axis) => (axis === last ? n / 4 : n)),
    strides: strides.map((s, axis) => (axis === last ? s : s / 4)),
    items: x.size / 4,
  };
}

/** A row-major copy of `x` (always a new buffer). */
export function copyContiguous(x: Tensor): Tensor {
  const out = empty(x.device, x.shape, x.dtype, x.label);
  const { width, shape, strides, items } = planStridedCopy(x);
  gatherStrided.run(x.device, {
    spec: { width },
    tensors: { x, out },
    uniforms: { shape, strides, rank: shape.length, items },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}

/** `x` itself when it is contiguous and starts at a multiple of `align` elements, else a copy. */
export function asContiguous(x: Tensor, align = 4): Tensor {
  return x.contiguous && x.offset % align === 0 ? x : copyContiguous(x);
}
