import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { checkShape } from '../tensor/create.js';
import { sizeOf, type Shape, type Tensor } from '../tensor/tensor.js';
import { broadcastShapes } from './broadcast.js';
import { axesOf, axisOf, sameShape } from './check.js';
import { expanded, gatherSigned, permuted, reshaped } from './layout.js';
import { sumTo } from './reduce-kernels.js';

// Shapes and axes. Results are views (they share the buffer) wherever the last axis stays contiguous; all dtypes, all with gradients.

/**
 * x in another shape of the same size.
 * @param shape lengths; one may be -1 and is found from the rest
 * @returns a view where strides allow, else a copy
 * @throws HeedError SHAPE_MISMATCH when the sizes differ
 */
export function reshape(x: Tensor, shape: Shape): Tensor {
  const target = resolveShape(x, shape);
  return apply({
    name: 'reshape',
    inputs: [x],
    forward: () => reshaped(x, target),
    backward: gradientBy(x.shape, (g, own) => reshaped(g, own)),
  });
}

function resolveShape(x: Tensor, shape: Shape): Shape {
  const open = shape.indexOf(-1);
  const known = shape.reduce((p, n, axis) => (axis === open ? p : p * n), 1);
  const target = open < 0 ? shape : shape.map((n, axis) => (axis === open ? (known === 0 ? 0 : x.size / known) : n));
  if (target.some((n) => !Number.isInteger(n)) || sizeOf(target) !== x.size) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `reshape: ${x.describe()} has ${x.size} elements and cannot be [${shape.join(', ')}]; the product must be ${x.size}`,
    );
  }
  checkShape('reshape', target);
  return target;
}

/** A backward of one cotangent that depends on the input by its shape only: the input must not be held. */
function gradientBy(shape: Shape, f: (cotangent: Tensor, shape: Shape) => Tensor): (cotangents: (Tensor | null)[]) => (Tensor | null)[] {
  return ([g]) => [g ? f(g, shape) : null];
}

/**
 * x with its axes in another order: axis i of the result is axis `order[i]` of x.
 * @returns a view where the last axis stays, else a copy through tiles
 * @throws HeedError SHAPE_MISMATCH when `order` does not name each axis once
 */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  const axes = order.map((axis) => axisOf('permute', x, axis));
  if (axes.length !== x.rank || new Set(axes).size !== x.rank) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `permute: order [${order.join(', ')}] of ${x.describe()} must name each of its ${x.rank} axes once`,
    );
  }
  const back = axes.map((_, axis) => axes.indexOf(axis));
  return apply({
    name: 'permute',
    inputs: [x],
    forward: () => permuted(x, axes),
    backward: ([g]) => [g ? permuted(g, back) : null],
  });
}

/**
 * x with two axes exchanged, the last two by default.
 * @param x any dtype
 * @param a default -2, negative ones from the end
 * @param b default -1
 * @returns a view where the last axis stays, else a copy through tiles; differentiable
 * @throws HeedError SHAPE_MISMATCH for an absent axis
 */
export function transpose(x: Tensor, a = -2, b = -1): Tensor {
  const [first, second] = [axisOf('transpose', x, a), axisOf('transpose', x, b)];
  return permute(
    x,
    x.shape.map((_, axis) => (axis === first ? second : axis === second ? first : axis)),
  );
}

/**
 * x without axes of length 1: those named, or all such.
 * @param axes one axis or several; default all of length 1
 * @returns a view where strides allow; differentiable
 * @throws HeedError SHAPE_MISMATCH when a named axis is longer, absent or named twice
 */
export function squeeze(x: Tensor, axes?: number | readonly number[]): Tensor {
  const chosen = axes === undefined ? x.shape.flatMap((n, axis) => (n === 1 ? [axis] : [])) : axesOf('squeeze', x, axes);
  for (const axis of chosen) {
    if (x.shape[axis] !== 1)
      throw new HeedError(
        'SHAPE_MISMATCH',
        `squeeze: axis ${axis} of ${x.describe()} has length ${x.shape[axis]}; only axes of length 1 can go`,
      );
  }
  return reshape(
    x,
    x.shape.filter((_, axis) => !chosen.includes(axis)),
  );
}

/**
 * x with a new axis of length 1, which will be axis `axis` of the result (-1: the last).
 * @param axis from -rank - 1 to rank
 * @returns a view where strides allow; differentiable
 * @throws HeedError SHAPE_MISMATCH for another axis
 */
export function unsqueeze(x: Tensor, axis: number): Tensor {
  const at = axis < 0 ? axis + x.rank + 1 : axis;
  if (!Number.isInteger(axis) || at < 0 || at > x.rank) {
    throw new HeedError('SHAPE_MISMATCH', `unsqueeze: axis ${axis} of ${x.describe()}; use an integer from ${-x.rank - 1} to ${x.rank}`);
  }
  return reshape(x, [...x.shape.slice(0, at), 1, ...x.shape.slice(at)]);
}

/**
 * x stretched to a shape that it broadcasts to (lengths of 1 repeat, axes may be added in front).
 * @returns a view with strides of 0, or a copy where the last axis stretches
 * @throws HeedError SHAPE_MISMATCH when it does not broadcast
 */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  checkShape('broadcastTo', shape);
  if (!sameShape(broadcastShapes('broadcastTo', [shape, x.shape]), shape)) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `broadcastTo: ${x.describe()} does not broadcast to [${shape.join(', ')}]; each of its lengths must be 1 or that of the target`,
    );
  }
  const { dtype } = x;
  return apply({
    name: 'broadcastTo',
    inputs: [x],
    forward: () => expanded(x, shape),
    backward: gradientBy(x.shape, (g, own) => (sameShape(g.shape, own) ? g : sumTo(g, own, dtype))),
  });
}

/**
 * x backwards along axes (all by default); a copy.
 * @param axes one axis or several; default all
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError SHAPE_MISMATCH for an axis that is absent or named twice
 */
export function flip(x: Tensor, axes?: number | readonly number[]): Tensor {
  const chosen = axesOf('flip', x, axes);
  return apply({
    name: 'flip',
    inputs: [x],
    forward: () => flipped(x, chosen),
    backward: ([g]) => [g ? flipped(g, chosen) : null],
  });
}

function flipped(x: Tensor, axes: readonly number[]): Tensor {
  const start = axes.reduce((sum, axis) => sum + Math.max(0, (x.shape[axis] ?? 1) - 1) * (x.strides[axis] ?? 0), 0);
  return gatherSigned(
    x,
    x.shape,
    x.strides.map((s, axis) => (axes.includes(axis) ? -s : s)),
    start,
  );
}
