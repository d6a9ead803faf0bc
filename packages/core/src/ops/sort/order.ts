import { apply } from '../../autodiff/tape.js';
import { HeedError } from '../../errors.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import { contiguousStrides, type Tensor } from '../../tensor/tensor.js';
import type { KeyKind } from './keys.js';
import { radixKeys, radixSort } from './radix.js';
import { smallSortLength, sortSmallRows } from './small.js';

export interface SortOptions {
  /** Largest first. Default false. Equal values keep their order either way. */
  descending?: boolean;
}

/** How x is compared. */
export function kindOf(who: string, x: Tensor): KeyKind {
  if (x.dtype === 'u8') throw new HeedError('DTYPE_MISMATCH', `${who}: x is ${x.describe()}; cast u8 to u32 first`);
  return x.dtype === 'f16' ? 'f32' : x.dtype;
}

/**
 * Order of each row along the last axis: `argsort(x)[..., i]` is the index of the i-th smallest element. Stable.
 * @param x [..., n], f32, f16, i32 or u32
 * @returns u32 [..., n]
 * @throws HeedError SHAPE_MISMATCH when x has no axis, UNSUPPORTED when x is being differentiated (use `sort`)
 */
export function argsort(x: Tensor, options: SortOptions = {}): Tensor {
  return apply({ name: 'argsort', inputs: [x], forward: () => orderRows(x, x.dim(-1), options.descending ?? false) });
}

/** Indices of the first `m` elements in order, [..., m]. */
export function orderRows(x: Tensor, m: number, descending: boolean): Tensor {
  const n = x.dim(-1);
  const kind = kindOf('sort', x);
  const source = asContiguous(x, 1);
  const rows = n === 0 ? 0 : x.size / n;
  const outShape = [...x.shape.slice(0, -1), m];
  if (n <= smallSortLength) {
    const out = empty(x.device, outShape, 'u32');
    if (rows > 0) sortSmallRows(source, kind, descending, rows, n, n, out);
    return out;
  }
  const { keys, values } = radixKeys(source, kind, descending, rows, n, n);
  const sorted = radixSort(keys, values, 32);
  const whole = sorted.values.view({
    shape: [...x.shape.slice(0, -1), n],
    strides: contiguousStrides(x.shape),
  });
  if (m === n) return whole;
  return asContiguous(whole.view({ shape: outShape }), 1);
}
