import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { checkShape, empty } from '../tensor/create.js';
import { runPad } from './pad-kernel.js';
import type { Tensor } from '../tensor/tensor.js';
import { copyInto } from './assign.js';
import { axisOf, sameShape } from './check.js';
import { unsqueeze } from './shape.js';
import { partViews, withLength } from './slice.js';

/**
 * Tensors one after the other along an axis.
 * @param tensors one or more of one dtype; shapes are equal but for the axis
 * @param axis default 0, negative ones from the end
 * @returns the dtype of the tensors; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT for an empty list
 */
export function concat(tensors: readonly Tensor[], axis = 0): Tensor {
  const [first] = tensors;
  if (!first) throw new HeedError('INVALID_ARGUMENT', 'concat: the list is empty; give at least one tensor');
  const at = axisOf('concat', first, axis);
  for (const t of tensors) {
    if (t.rank !== first.rank || !sameShape(withLength(t.shape, at, 0), withLength(first.shape, at, 0))) {
      throw new HeedError(
        'SHAPE_MISMATCH',
        `concat: ${first.describe()} and ${t.describe()} along axis ${at}; all other lengths must be equal`,
      );
    }
    if (t.dtype !== first.dtype)
      throw new HeedError('DTYPE_MISMATCH', `concat: ${first.describe()} and ${t.describe()}; convert one with cast()`);
  }
  const parts = tensors.map((t) => t.dim(at));
  const shape = withLength(
    first.shape,
    at,
    parts.reduce((sum, n) => sum + n, 0),
  );
  return apply({
    name: 'concat',
    inputs: tensors,
    forward: () => {
      const out = empty(first.device, shape, first.dtype);
      partViews(out, parts, at).forEach((part, i) => copyInto(part, tensors[i] as Tensor));
      return out;
    },
    backward: ([g]) => (g ? partViews(g, parts, at) : parts.map(() => null)),
  });
}

/**
 * Tensors of one shape along a new axis.
 * @param tensors one or more of one shape and dtype
 * @param axis place of the new axis, default 0, negative ones from the end
 * @returns one axis more; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT for an empty list
 */
export function stack(tensors: readonly Tensor[], axis = 0): Tensor {
  const [first] = tensors;
  if (!first) throw new HeedError('INVALID_ARGUMENT', 'stack: the list is empty; give at least one tensor');
  return concat(
    tensors.map((t) => unsqueeze(t, axis)),
    axis < 0 ? axis + first.rank + 1 : axis,
  );
}

/**
 * x with `value` around it.
 * @param x any dtype
 * @param widths elements [before, after] an axis, from the first axis; the axes that follow get none
 * @param options.value default 0
 * @returns a copy, the dtype of x; differentiable
 * @throws HeedError SHAPE_MISMATCH for a negative or fractional width, or more pairs than axes
 */
export function pad(x: Tensor, widths: readonly (readonly [before: number, after: number])[], options: { value?: number } = {}): Tensor {
  const { value = 0 } = options;
  if (widths.length > x.rank || widths.flat().some((n) => !Number.isInteger(n) || n < 0)) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `pad: widths [${widths.map((w) => `[${w.join(', ')}]`).join(', ')}] for ${x.describe()}; give at most ${x.rank} pairs of integers of 0 or more (slice() takes away)`,
    );
  }
  const shape = x.shape.map((n, axis) => n + (widths[axis]?.[0] ?? 0) + (widths[axis]?.[1] ?? 0));
  checkShape('pad', shape);
  const own = x.shape;
  const inside = (t: Tensor): Tensor =>
    t.view({
      shape: own,
      offset: own.includes(0) ? t.offset : t.offset + t.strides.reduce((sum, s, axis) => sum + s * (widths[axis]?.[0] ?? 0), 0),
    });
  return apply({
    name: 'pad',
    inputs: [x],
    forward: () => {
      const out = empty(x.device, shape, x.dtype);
      runPad(x, out, widths, value);
      return out;
    },
    backward: ([g]) => [g ? inside(g) : null],
  });
}
