import type { Tensor } from '@heed/core';

/** Elements an item that a kernel can load a row of `x` in: 4 where rows of the view start at multiples of 4, else 1. */
export function rowWidth(x: Tensor | undefined): number {
  if (!x) return 1;
  const outer = x.strides.slice(0, -1).every((stride, axis) => stride % 4 === 0 || x.shape[axis] === 1);
  return outer && x.offset % 4 === 0 && x.dim(-1) % 4 === 0 ? 4 : 1;
}
