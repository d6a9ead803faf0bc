import { apply, type Backward, withoutTape } from '../autodiff/tape.js';
import { type DType, isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { empty } from '../tensor/create.js';
import { contiguousStrides, type Shape, type Tensor } from '../tensor/tensor.js';
import { mul } from './arithmetic.js';
import { axesOf, axisOf, expectFloat, product } from './check.js';
import { cast } from './compare.js';
import { expanded, permuted, reshaped } from './layout.js';
import { pointwise } from './pointwise.js';
import { reduceAxes, type Reduction } from './reduce-kernels.js';
import { asContiguous } from '../tensor/copy.js';

// Reductions over any axes. Accumulation is in f32 (integers in their own width), in an order that is fixed, so results repeat
// bit for bit on one device.

export interface ReduceOptions {
  /** Keeps reduced axes with length 1. Default false. */
  keepDims?: boolean;
}

/** Axes that an op reduces, default all. */
export type Axes = number | readonly number[];

/** Lengths after a reduction. */
function reducedShape(shape: Shape, axes: readonly number[], keepDims: boolean): number[] {
  return keepDims ? shape.map((n, axis) => (axes.includes(axis) ? 1 : n)) : shape.filter((_, axis) => !axes.includes(axis));
}

function reduced(
  kind: Reduction,
  x: Tensor,
  axes: readonly number[],
  options: ReduceOptions & { dtype: DType; factor?: number; finish?: 'sqrt' },
): Tensor {
  const shape = reducedShape(x.shape, axes, options.keepDims ?? false);
  const out = reduceAxes(kind, x, axes, options);
  return out.view({ shape, strides: contiguousStrides(shape) });
}

/** The cotangent of a reduction, stretched back over the reduced axes. */
function stretchBack(g: Tensor, shape: Shape, axes: readonly number[], dtype: DType): Tensor {
  return expanded(reshaped(cast(g, dtype), reducedShape(shape, axes, true)), shape);
}

function expectSome(who: string, x: Tensor, axes: readonly number[]): void {
  if (axes.some((axis) => x.shape[axis] === 0)) {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${x.describe()} has no elements along axes [${axes.join(', ')}]; give at least one`);
  }
}

/**
 * Sum over axes, all by default.
 * @param x any dtype; integers wrap around
 * @param axes one axis or several, negative ones from the end. Default: all
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @param options.dtype of a sum of floats; default that of x. f32 keeps the sum of many f16 exact
 * @returns x without the axes; the dtype of x (u8: u32) or `options.dtype`; differentiable where x is float
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice
 */
export function sum(x: Tensor, axes?: Axes, options: ReduceOptions & { dtype?: 'f32' | 'f16' } = {}): Tensor {
  const chosen = axesOf('sum', x, axes);
  if (!isFloat(x.dtype)) {
    const dtype = x.dtype === 'i32' ? 'i32' : 'u32';
    return withoutTape(() => apply({ name: 'sum', inputs: [x], forward: () => reduced('sum', x, chosen, { ...options, dtype }) }));
  }
  const { shape, dtype } = x;
  return apply({
    name: 'sum',
    inputs: [x],
    forward: () => reduced('sum', x, chosen, { keepDims: options.keepDims ?? false, dtype: options.dtype ?? dtype }),
    backward: ([g]) => [g ? stretchBack(g, shape, chosen, dtype) : null],
  });
}

/**
 * Mean over axes, all by default.
 * @param x f32 or f16
 * @param axes one axis or several, negative ones from the end. Default: all
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @param options.dtype default that of x
 * @returns x without the axes; differentiable
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice, or when there is nothing to average, DTYPE_MISMATCH
 */
export function mean(x: Tensor, axes?: Axes, options: ReduceOptions & { dtype?: 'f32' | 'f16' } = {}): Tensor {
  expectFloat('mean', 'x', x);
  const chosen = axesOf('mean', x, axes);
  expectSome('mean', x, chosen);
  const { shape, dtype } = x;
  const factor = 1 / product(chosen.map((axis) => shape[axis] ?? 1));
  return apply({
    name: 'mean',
    inputs: [x],
    forward: () => reduced('sum', x, chosen, { keepDims: options.keepDims ?? false, dtype: options.dtype ?? dtype, factor }),
    backward: ([g]) => [g ? stretchBack(mul(g, factor), shape, chosen, dtype) : null],
  });
}

/**
 * Greatest element over axes, all by default; any dtype. The gradient goes to the first of equal ones.
 * @param x any dtype
 * @param axes one axis or several, negative ones from the end. Default: all
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @returns x without the axes, its dtype; differentiable where x is float
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice, or when there are no elements
 */
export function max(x: Tensor, axes?: Axes, options: ReduceOptions = {}): Tensor {
  return extreme('max', x, axes, options);
}

/**
 * Least element over axes, all by default; any dtype. The gradient goes to the first of equal ones.
 * @param x any dtype
 * @param axes one axis or several, negative ones from the end. Default: all
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @returns x without the axes, its dtype; differentiable where x is float
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice, or when there are no elements
 */
export function min(x: Tensor, axes?: Axes, options: ReduceOptions = {}): Tensor {
  return extreme('min', x, axes, options);
}

function extreme(kind: 'max' | 'min', x: Tensor, axes: Axes | undefined, options: ReduceOptions): Tensor {
  const chosen = axesOf(kind, x, axes);
  expectSome(kind, x, chosen);
  const forward = (): Tensor => reduced(kind, x, chosen, { ...options, dtype: x.dtype });
  if (!isFloat(x.dtype)) return withoutTape(() => apply({ name: kind, inputs: [x], forward }));
  const backward: Backward = ([g], { saved }) => [g ? routeToFirst(kind, saved[0] as Tensor, chosen, g) : null];
  return apply({ name: kind, inputs: [x], forward, saves: () => [x], backward });
}

// Rows of zeros with one value each: the gradient of a maximum.
// tile    1 element a lane, 256 lanes
// bytes   writes rows x n x size
const routeRows = defineKernel({
  name: 'route-rows',
  bindings: { place: read('u32'), g: read('float'), out: write('float') },
  uniforms: { n: 'u32', size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let row = i / uniforms.n;
      store_out(i, select(0.0, load_g(row), load_place(row) == i % uniforms.n));
    }`,
});

/** The cotangent at the first extreme element of each reduced group, zeros elsewhere. */
function routeToFirst(kind: 'max' | 'min', x: Tensor, axes: readonly number[], g: Tensor): Tensor {
  const order = [...x.shape.map((_, axis) => axis).filter((axis) => !axes.includes(axis)), ...axes];
  const shape = order.map((axis) => x.shape[axis] ?? 1);
  const n = product(axes.map((axis) => x.shape[axis] ?? 1));
  const rows = reshaped(permuted(x, order), [x.size / Math.max(1, n), n]);
  const place = reduceAxes(kind === 'max' ? 'argmax' : 'argmin', rows, [1], { dtype: 'u32' });
  const out = empty(x.device, shape, x.dtype);
  routeRows.run(x.device, {
    spec: {},
    tensors: { place, g: asContiguous(g), out },
    uniforms: { n, size: x.size },
    grid: [Math.ceil(x.size / 256)],
  });
  return permuted(
    out,
    order.map((_, axis) => order.indexOf(axis)),
  );
}

/**
 * Index of the greatest element along an axis, the lowest on ties; over all elements in row-major order without an axis.
 * @param x any dtype
 * @param axis negative ones from the end. Default: none, over all elements
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @returns u32, x without the axis; no gradient flows
 * @throws HeedError SHAPE_MISMATCH for an absent axis, or when there are no elements
 */
export function argmax(x: Tensor, axis?: number, options: ReduceOptions = {}): Tensor {
  return argExtreme('argmax', x, axis, options);
}

/**
 * Index of the least element along an axis, the lowest on ties; over all elements in row-major order without an axis.
 * @param x any dtype
 * @param axis negative ones from the end. Default: none, over all elements
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @returns u32, x without the axis; no gradient flows
 * @throws HeedError SHAPE_MISMATCH for an absent axis, or when there are no elements
 */
export function argmin(x: Tensor, axis?: number, options: ReduceOptions = {}): Tensor {
  return argExtreme('argmin', x, axis, options);
}

function argExtreme(kind: 'argmax' | 'argmin', x: Tensor, axis: number | undefined, options: ReduceOptions): Tensor {
  const chosen = axis === undefined ? axesOf(kind, x, undefined) : [axisOf(kind, x, axis)];
  expectSome(kind, x, chosen);
  const forward = (): Tensor => {
    if (axis !== undefined) return reduced(kind, x, chosen, { ...options, dtype: 'u32' });
    const shape = reducedShape(x.shape, chosen, options.keepDims ?? false);
    return reduceAxes(kind, reshaped(x, [x.size]), [0], { dtype: 'u32' }).view({ shape, strides: contiguousStrides(shape) });
  };
  return withoutTape(() => apply({ name: kind, inputs: [x], forward }));
}

const logsumexpGradient = pointwise((x, lse, g) => x.sub(lse).exp().mul(g), { name: 'logsumexp-gradient' });

/**
 * log(sum(exp(x))) over axes, all by default, without overflow.
 * @param x f32 or f16
 * @param axes one axis or several, negative ones from the end. Default: all
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @returns f32, x without the axes; -1e30 where there are no elements. Differentiable
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice, DTYPE_MISMATCH
 */
export function logsumexp(x: Tensor, axes?: Axes, options: ReduceOptions = {}): Tensor {
  expectFloat('logsumexp', 'x', x);
  const chosen = axesOf('logsumexp', x, axes);
  const { dtype } = x;
  return apply({
    name: 'logsumexp',
    inputs: [x],
    forward: () => reduced('logsumexp', x, chosen, { ...options, dtype: 'f32' }),
    saves: ([out]) => [x, out as Tensor],
    backward: ([g], { saved: [x, out] }) => {
      if (!g || !x || !out) return [null];
      const kept = reducedShape(x.shape, chosen, true);
      return [cast(logsumexpGradient(x, reshaped(out, kept), reshaped(g, kept)), dtype)];
    },
  });
}

const l2normGradient = pointwise((x, norm, g) => x.mul(g).div(norm.max(1e-30)), { name: 'l2norm-gradient' });

/**
 * sqrt(sum(x^2)) over axes, all by default.
 * @param x f32 or f16
 * @param axes one axis or several, negative ones from the end. Default: all
 * @param options.keepDims keeps reduced axes with length 1. Default false
 * @returns f32, x without the axes; differentiable, the gradient at 0 is 0
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice, DTYPE_MISMATCH
 */
export function l2norm(x: Tensor, axes?: Axes, options: ReduceOptions = {}): Tensor {
  expectFloat('l2norm', 'x', x);
  const chosen = axesOf('l2norm', x, axes);
  const { dtype } = x;
  return apply({
    name: 'l2norm',
    inputs: [x],
    forward: () => reduced('sumSquares', x, chosen, { ...options, dtype: 'f32', finish: 'sqrt' }),
    saves: ([out]) => [x, out as Tensor],
    backward: ([g], { saved: [x, out] }) => {
      if (!g || !x || !out) return [null];
      const kept = reducedShape(x.shape, chosen, true);
      return [cast(l2normGradient(x, reshaped(out, kept), reshaped(g, kept)), dtype)];
    },
  });
}
