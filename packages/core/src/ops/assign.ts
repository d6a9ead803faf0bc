import { currentTape } from '../autodiff/tape.js';
import { type DType, dtypeBytes, isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import { atomic, read, write } from '../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../kernel/define.js';
import { full } from '../tensor/create.js';
import { scope } from '../tensor/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { broadcastShapes, mergeJointly, stridesFor } from './broadcast.js';
import { sameShape } from './check.js';

type Spec = { vector: boolean; splat: boolean };

const place = `
struct Place { out: u32, x: u32 }
fn placeOf(flat: u32) -> Place {
  var rest = flat;
  var place = Place(0u, 0u);
  for (var axis = uniforms.rank; axis > 0u; axis--) {
    let a = (axis - 1u) >> 2u;
    let c = (axis - 1u) & 3u;
    let n = uniforms.shape[a][c];
    place.out += (rest % n) * uniforms.outStrides[a][c];
    place.x += (rest % n) * uniforms.xStrides[a][c];
    rest /= n;
  }
  return place;
}`;

const uniforms = { shape: 'u32x8', outStrides: 'u32x8', xStrides: 'u32x8', rank: 'u32', items: 'u32' } as const;

// Copies a strided tensor into a strided target.
// tile    4 elements a lane where rows of both sides are aligned, else 1; 256 lanes
// bytes   reads and writes each element once
// limits  up to 8 axes after neighbours are merged
const copyItems = defineKernel({
  name: 'copy-into',
  bindings: {
    x: read<Spec>('any', { width: ({ vector, splat }) => (vector && !splat ? 4 : 1) }),
    out: write<Spec>('any', { width: ({ vector }) => (vector ? 4 : 1) }),
  },
  uniforms,
  wgsl: ({ vector, splat }: Spec, { dtypes }: KernelContext) => {
    const scalar = isFloat(dtypes['out'] ?? 'f32') ? 'f32' : dtypes['out'] === 'i32' ? 'i32' : 'u32';
    const value = vector && splat ? `vec4<${scalar}>(load_x(at.x))` : 'load_x(at.x)';
    return `${place}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let at = placeOf(i);
      store_out(at.out, ${value});
    }`;
  },
});

// The same where the target's elements share words and a row does not start at one: neighbours in a word are set by atomics on
// disjoint bits, so the order does not matter.
// tile    1 element a lane, 256 lanes
// bytes   reads each element once; two atomic operations on its word
// limits  u8, and f16 on devices without shader-f16; numbers beyond f16 become its largest
const copyParts = defineKernel({
  name: 'copy-into-words',
  bindings: { x: read('any'), out: atomic<{ to: string }>('u32') },
  uniforms: { ...uniforms, first: 'u32' },
  wgsl: ({ to }: { to: string }) => `${place}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let at = placeOf(i);
      let element = uniforms.first + at.out;
      ${
        to === 'f16'
          ? `let bits = pack2x16float(vec2f(clamp(load_x(at.x), -65504.0, 65504.0), 0.0)) & 0xffffu;
      let word = base_out() + (element >> 1u);
      let shift = (element & 1u) * 16u;
      atomicAnd(&out[word], ~(0xffffu << shift));`
          : `let bits = load_x(at.x) & 0xffu;
      let word = base_out() + (element >> 2u);
      let shift = (element & 3u) * 8u;
      atomicAnd(&out[word], ~(0xffu << shift));`
      }
      atomicOr(&out[word], bits << shift);
    }`,
});

/**
 * Overwrites `target`, which may be a strided view (rows of a cache, columns of a table), with `source`.
 * @param source a tensor that broadcasts to the target's shape, or a number; floats convert among each other
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT when both lie in one buffer, UNSUPPORTED when either is
 *   being differentiated: in-place writes have no gradient
 */
export function copyInto(target: Tensor, source: Tensor | number): void {
  if (typeof source === 'number') {
    scope(() => copyInto(target, full(target.device, [1], source, { dtype: target.dtype })));
    return;
  }
  const tape = currentTape();
  if (tape && (tape.isTracked(target) || tape.isTracked(source))) {
    throw new HeedError(
      'UNSUPPORTED',
      'copyInto: an operand is being differentiated; writes in place have no gradient, wrap it in stopGradient() or build a new tensor',
    );
  }
  if (source.device !== target.device) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `copyInto: ${target.describe()} and ${source.describe()} are of two devices; move one over by read() and tensor()`,
    );
  }
  if (source.dtype !== target.dtype && !(isFloat(source.dtype) && isFloat(target.dtype))) {
    throw new HeedError(
      'DTYPE_MISMATCH',
      `copyInto: the target is ${target.describe()}, the source ${source.describe()}; convert the source with cast()`,
    );
  }
  if (!sameShape(broadcastShapes('copyInto', [target.shape, source.shape]), target.shape)) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `copyInto: the source ${source.describe()} does not broadcast to the target ${target.describe()}; give it that shape`,
    );
  }
  if (target.size === 0) return;
  const { device } = target;
  const plan = planCopy(target, source);
  const shared = { shape: plan.shape, outStrides: plan.outStrides, xStrides: plan.xStrides, rank: plan.shape.length, items: plan.items };
  const grid = [Math.ceil(plan.items / 256)];
  if (!plan.vector && (target.dtype === 'u8' || (target.dtype === 'f16' && !device.capabilities.f16))) {
    const { out, first } = words(target);
    copyParts.run(device, { spec: { to: target.dtype }, tensors: { x: source, out }, uniforms: { first, ...shared }, grid });
    return;
  }
  copyItems.run(device, { spec: { vector: plan.vector, splat: plan.splat }, tensors: { x: source, out: target }, uniforms: shared, grid });
}

/** The target as words, and its first element counted from the first of them. */
function words(target: Tensor): {
  out: { storage: Tensor['storage']; dtype: DType; offset: number; extent: number; label: string | undefined };
  first: number;
} {
  const perWord = 4 / dtypeBytes(target.dtype);
  const offset = Math.floor(target.offset / perWord);
  const first = target.offset - offset * perWord;
  return {
    out: { storage: target.storage, dtype: 'u32', offset, extent: Math.ceil((first + target.extent) / perWord), label: target.label },
    first,
  };
}

export interface CopyPlan {
  vector: boolean;
  /** The source has one element for four neighbours. */
  splat: boolean;
  shape: number[];
  outStrides: number[];
  xStrides: number[];
  items: number;
}

interface CopyLayout {
  readonly shape: Shape;
  readonly strides: Shape;
  readonly offset: number;
  readonly size: number;
}

/** Vectors of 4 where every row of the target, and of the source unless it is stretched along rows, starts at a multiple of 4. */
export function planCopy(target: CopyLayout, source: CopyLayout): CopyPlan {
  const merged = mergeJointly(target.shape, [stridesFor(target.shape, target), stridesFor(target.shape, source)]);
  const [outStrides = [], xStrides = []] = merged.strides;
  const last = merged.shape.length - 1;
  const length = merged.shape[last] ?? 1;
  const rowsAligned = (strides: readonly number[], offset: number): boolean =>
    offset % 4 === 0 && strides.every((s, i) => i === last || s % 4 === 0);
  const splat = xStrides[last] === 0;
  const vector =
    length % 4 === 0 &&
    outStrides[last] === 1 &&
    rowsAligned(outStrides, target.offset) &&
    (splat || (xStrides[last] === 1 && rowsAligned(xStrides, source.offset)));
  if (!vector) return { vector, splat, shape: merged.shape, outStrides, xStrides, items: target.size };
  const scaled = (strides: readonly number[]): number[] => strides.map((s, i) => (i === last ? s : s / 4));
  return {
    vector,
    splat,
    shape: merged.shape.map((n, i) => (i === last ? n / 4 : n)),
    outStrides: scaled(outStrides),
    xStrides: splat ? xStrides : scaled(xStrides),
    items: target.size / 4,
  };
}
