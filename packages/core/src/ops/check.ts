import { HeedError } from '../errors.js';
import { type DType, isFloat } from '../dtype.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

// What ops ask of their arguments. Every message says who was given what, what was expected and what to do.

/** `axis` counted from the front. @throws HeedError SHAPE_MISMATCH when x has no such axis */
export function axisOf(who: string, x: Tensor, axis: number): number {
  const at = axis < 0 ? axis + x.rank : axis;
  if (!Number.isInteger(axis) || at < 0 || at >= x.rank) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      x.rank === 0
        ? `${who}: ${x.describe()} has no axes, axis ${axis} was asked for; reshape it to [1] first`
        : `${who}: ${x.describe()} has no axis ${axis}; use an integer from ${-x.rank} to ${x.rank - 1}`,
    );
  }
  return at;
}

/** Axes counted from the front, ascending, all of them by default. @throws HeedError SHAPE_MISMATCH for one that is absent or named twice */
export function axesOf(who: string, x: Tensor, axes: number | readonly number[] | undefined): number[] {
  if (axes === undefined) return Array.from({ length: x.rank }, (_, axis) => axis);
  const list = (typeof axes === 'number' ? [axes] : [...axes]).map((axis) => axisOf(who, x, axis)).sort((a, b) => a - b);
  if (new Set(list).size !== list.length) {
    throw new HeedError('SHAPE_MISMATCH', `${who}: axes [${String(axes)}] of ${x.describe()} name one axis twice; name each once`);
  }
  return list;
}

/** @throws HeedError DTYPE_MISMATCH unless x is f32 or f16 */
export function expectFloat(who: string, name: string, x: Tensor): void {
  if (!isFloat(x.dtype)) {
    throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, convert it with cast()`);
  }
}

/** @throws HeedError DTYPE_MISMATCH unless x has one of the dtypes */
export function expectDType(who: string, name: string, x: Tensor, dtypes: readonly DType[]): void {
  if (!dtypes.includes(x.dtype)) {
    throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be ${dtypes.join(' or ')}, convert it with cast()`);
  }
}

export function sameShape(a: Shape, b: Shape): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** @throws HeedError SHAPE_MISMATCH unless x has this shape */
export function expectShape(who: string, name: string, x: Tensor, shape: Shape, why: string): void {
  if (!sameShape(x.shape, shape)) {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be [${shape.join(', ')}], ${why}`);
  }
}

/** The product of lengths of axes from `start` up to `end`, exclusive. */
export function product(shape: Shape, start = 0, end: number = shape.length): number {
  let size = 1;
  for (let i = start; i < end; i++) size *= shape[i] ?? 1;
  return size;
}
