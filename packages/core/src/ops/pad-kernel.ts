import { isFloat } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../kernel/define.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

type PadSpec = { width: number };

// A tensor with a value around it, written once.
// tile    4 elements of the output a lane where rows, and what stands before them, allow, else 1; 256 lanes
// bytes   reads x once, writes the output once
// limits  up to 8 axes, any strides of x with a contiguous last axis
const padded = defineKernel({
  name: 'pad',
  bindings: {
    x: read<PadSpec>('any', { width: (s) => s.width }),
    out: write<PadSpec>('any', { width: (s) => s.width }),
  },
  uniforms: { shape: 'u32x8', inner: 'u32x8', before: 'u32x8', strides: 'u32x8', rank: 'u32', items: 'u32', value: 'f32' },
  wgsl: ({ width }: PadSpec, { dtypes }: KernelContext) => {
    const dtype = dtypes['x'] ?? 'f32';
    const scalar = isFloat(dtype) ? 'f32' : dtype === 'i32' ? 'i32' : 'u32';
    return `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      var rest = i;
      var at = 0u;
      var within = true;
      for (var axis = uniforms.rank; axis > 0u; axis--) {
        let a = (axis - 1u) >> 2u;
        let c = (axis - 1u) & 3u;
        let n = uniforms.shape[a][c];
        // places before the tensor wrap around to large ones
        let place = rest % n - uniforms.before[a][c];
        within &= place < uniforms.inner[a][c];
        at += place * uniforms.strides[a][c];
        rest /= n;
      }
      var value = ${width === 4 ? `vec4<${scalar}>(${scalar}(uniforms.value))` : `${scalar}(uniforms.value)`};
      if (within) { value = load_x(at); }
      store_out(i, value);
    }`;
  },
});

/** How a tensor is padded: axes that nothing stands around merged with the one before them; pure. */
export interface PadPlan {
  width: 1 | 4;
  shape: number[];
  inner: number[];
  before: number[];
  strides: number[];
}

/** @param x contiguous along its last axis */
export function planPad(
  x: { shape: Shape; strides: Shape; offset: number },
  widths: readonly (readonly [before: number, after: number])[],
): PadPlan {
  const shape: number[] = [];
  const inner: number[] = [];
  const before: number[] = [];
  const strides: number[] = [];
  x.shape.forEach((n, axis) => {
    const [start = 0, end = 0] = widths[axis] ?? [];
    const stride = x.strides[axis] ?? 0;
    const last = shape.length - 1;
    if (start === 0 && end === 0 && last >= 0 && strides[last] === stride * n) {
      shape[last] = (shape[last] ?? 1) * n;
      inner[last] = (inner[last] ?? 1) * n;
      before[last] = (before[last] ?? 0) * n;
      strides[last] = stride;
    } else {
      shape.push(n + start + end);
      inner.push(n);
      before.push(start);
      strides.push(stride);
    }
  });
  if (shape.length === 0) return { width: 1, shape: [1], inner: [1], before: [0], strides: [1] };
  const last = shape.length - 1;
  const fours = (list: readonly number[]): boolean => (list[last] ?? 0) % 4 === 0;
  const aligned =
    strides[last] === 1 &&
    [shape, inner, before].every(fours) &&
    x.offset % 4 === 0 &&
    strides.every((s, axis) => axis === last || s % 4 === 0);
  if (!aligned) return { width: 1, shape, inner, before, strides };
  const scaled = (list: readonly number[], own: boolean): number[] => list.map((n, axis) => ((axis === last) === own ? n / 4 : n));
  return {
    width: 4,
    shape: scaled(shape, true),
    inner: scaled(inner, true),
    before: scaled(before, true),
    strides: scaled(strides, false),
  };
}

/** Writes x into `out` (contiguous, larger by `widths`) with `value` around it. */
export function runPad(x: Tensor, out: Tensor, widths: readonly (readonly [before: number, after: number])[], value: number): void {
  if (out.size === 0) return;
  const { width, ...plan } = planPad(x, widths);
  const items = out.size / width;
  padded.run(x.device, {
    spec: { width },
    tensors: { x, out },
    uniforms: { rank: plan.shape.length, items, value, ...plan },
    grid: [Math.ceil(items / 256)],
  });
}
