import type { Tensor } from '@heed/core';

/** Elements an item that a kernel can load a row of `x` in: 4 where rows of the view start at multiples of 4, else 1. */
export function rowWidth(x: Tensor | undefined): number {
  return fitsRows(x, 4) ? 4 : 1;
}

/** How a kernel on fragments moves f16 rows between global and workgroup memory: a pair a lane, or one element. */
export type HalfLoad = 'half2' | 'half';

/**
 * Pairs where offset, strides and row length are even. Not more at once: lanes that each put 16 bytes into f16 arrays element by
 * element hit the same banks four times over, and workgroup memory is what these kernels wait for.
 */
export function halfLoad(x: Tensor | undefined): HalfLoad {
  return fitsRows(x, 2) ? 'half2' : 'half';
}

function fitsRows(x: Tensor | undefined, size: number): boolean {
  return (
    x !== undefined &&
    x.offset % size === 0 &&
    x.dim(-1) % size === 0 &&
    x.strides.slice(0, -1).every((stride, axis) => stride % size === 0 || x.shape[axis] === 1)
  );
}
