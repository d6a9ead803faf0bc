import type { Tensor } from '@heed/core';

/** Elements an item that a kernel can load a row of `x` in: 4 where rows of the view start at multiples of 4, else 1. */
export function rowWidth(x: Tensor | undefined): number {
  return fitsRows(x, 4) ? 4 : 1;
}

/** Halves that a lane of a kernel on fragments loads at once from a row: 8, 4 or 1. */
export type HalfLoad = 'half8' | 'half4' | 'half';

/** The widest load that the offset, strides and row length of an f16 view allow. */
export function halfLoad(x: Tensor | undefined): HalfLoad {
  return fitsRows(x, 8) ? 'half8' : fitsRows(x, 4) ? 'half4' : 'half';
}

function fitsRows(x: Tensor | undefined, size: number): boolean {
  return (
    x !== undefined &&
    x.offset % size === 0 &&
    x.dim(-1) % size === 0 &&
    x.strides.slice(0, -1).every((stride, axis) => stride % size === 0 || x.shape[axis] === 1)
  );
}
