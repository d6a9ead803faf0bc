import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { empty, zeros } from '../tensor/create.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { copyInto } from './assign.js';
import { axisOf } from './check.js';
import { gatherSigned } from './layout.js';

/** Where a slice lies along one axis: from `start` up to `end`, exclusive, every `step`-th. Negative places count from the end. */
export type SliceRange = readonly [start?: number, end?: number, step?: number];

interface Cut {
  start: number;
  length: number;
  step: number;
}

/**
 * A part of x: `slice(x, 1, 4, 8)` takes 4..7 of axis 1; `slice(x, [[0, 2], [], [-3]])` a range an axis, the axes that follow whole.
 * @returns a view; a copy where the last axis is stepped through
 * @throws HeedError SHAPE_MISMATCH when a range leaves the axis or ends before it starts
 */
export function slice(x: Tensor, axis: number, start: number, end?: number): Tensor;
export function slice(x: Tensor, ranges: readonly SliceRange[]): Tensor;
export function slice(x: Tensor, first: number | readonly SliceRange[], start = 0, end?: number): Tensor {
  const cuts = x.shape.map((length): Cut => ({ start: 0, length, step: 1 }));
  if (typeof first === 'number') {
    const axis = axisOf('slice', x, first);
    cuts[axis] = resolveRange(x, axis, end === undefined ? [start] : [start, end]);
  } else {
    if (first.length > x.rank) {
      throw new HeedError('SHAPE_MISMATCH', `slice: ${first.length} ranges were given for ${x.describe()}, which has ${x.rank} axes`);
    }
    first.forEach((range, axis) => {
      cuts[axis] = resolveRange(x, axis, range);
    });
  }
  const { shape, dtype, device } = x;
  return apply({
    name: 'slice',
    inputs: [x],
    forward: () => cutOut(x, cuts),
    backward: ([g]) => {
      if (!g) return [null];
      const dx = zeros(device, shape, { dtype });
      copyInto(rawCut(dx, cuts), g);
      return [dx];
    },
  });
}

function resolveRange(x: Tensor, axis: number, [start = 0, end, step = 1]: SliceRange): Cut {
  const n = x.dim(axis);
  const from = start < 0 ? start + n : start;
  const to = end === undefined ? n : end < 0 ? end + n : end;
  if (![from, to, step].every(Number.isInteger) || from < 0 || to > n || to < from || step < 1) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `slice: range [${start}, ${end ?? n}) in steps of ${step} on axis ${axis} of ${x.describe()}; it must lie in 0..${n}, end at or after its start, and step by an integer of 1 or more`,
    );
  }
  return { start: from, length: Math.ceil((to - from) / step), step };
}

/** The view of a cut; its last axis may be stepped, which only kernels of strides can read. */
function rawCut(x: Tensor, cuts: readonly Cut[]): Tensor {
  const shape = cuts.map((c) => c.length);
  const empty = shape.includes(0);
  return x.view({
    shape,
    strides: x.strides.map((s, axis) => s * (cuts[axis]?.step ?? 1)),
    offset: empty ? x.offset : x.offset + cuts.reduce((sum, c, axis) => sum + c.start * (x.strides[axis] ?? 0), 0),
  });
}

function cutOut(x: Tensor, cuts: readonly Cut[]): Tensor {
  const view = rawCut(x, cuts);
  const last = cuts.at(-1);
  if (!last || last.step === 1) return view;
  if (last.length <= 1) return view.view({ strides: [...view.strides.slice(0, -1), 1] });
  return gatherSigned(view, view.shape, view.strides, 0);
}

/**
 * x in parts along an axis, as views.
 * @param sizes lengths of the parts, which add up to that of the axis; or a number of equal parts
 * @param axis default -1
 * @returns the parts in order; differentiable
 * @throws HeedError SHAPE_MISMATCH for an absent axis, or lengths that do not add up to it
 */
export function split(x: Tensor, sizes: number | readonly number[], axis = -1): Tensor[] {
  const at = axisOf('split', x, axis);
  const n = x.dim(at);
  const parts = typeof sizes === 'number' ? Array.from({ length: sizes }, () => n / sizes) : [...sizes];
  if (parts.length === 0 || parts.some((p) => !Number.isInteger(p) || p < 0) || parts.reduce((sum, p) => sum + p, 0) !== n) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `split: axis ${at} of ${x.describe()} into ${typeof sizes === 'number' ? `${sizes} equal parts` : `[${parts.join(', ')}]`}; the parts must be integers that add up to ${n}`,
    );
  }
  const { shape, dtype, device } = x;
  return apply<Tensor[]>({
    name: 'split',
    inputs: [x],
    forward: () => partViews(x, parts, at),
    backward: (cotangents) => {
      const dx = cotangents.includes(null) ? zeros(device, shape, { dtype }) : empty(device, shape, dtype);
      partViews(dx, parts, at).forEach((part, i) => {
        const g = cotangents[i];
        if (g) copyInto(part, g);
      });
      return [dx];
    },
  });
}

/** Views of x of these lengths, one after the other along an axis. */
export function partViews(x: Tensor, parts: readonly number[], axis: number): Tensor[] {
  let start = 0;
  return parts.map((length) => {
    const offset = length === 0 || x.size === 0 ? x.offset : x.offset + start * (x.strides[axis] ?? 0);
    start += length;
    return x.view({ shape: withLength(x.shape, axis, length), offset });
  });
}

/** A shape with another length on one axis. */
export function withLength(shape: Shape, axis: number, length: number): number[] {
  return shape.map((n, i) => (i === axis ? length : n));
}
