import type { FloatDType } from '../../dtype.js';
import { contiguousStrides, type Tensor } from '../../tensor/tensor.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import { product } from '../check.js';
import { sumMiddle } from './reduce-kernel.js';
import { runProduct } from './run.js';

export interface Factors {
  a: Tensor;
  b: Tensor;
  transposeA: boolean;
  transposeB: boolean;
  precision: 'f32' | 'f16';
}

/** Gradient of a: dZ b^T (or b dZ^T where a is stored transposed), summed over the batch axes that a was stretched along. */
export function gradientOfA({ a, b, transposeA, transposeB, precision }: Factors, dZ: Tensor): Tensor {
  return transposeA
    ? summedProduct({ left: b, right: dZ, transposeA: transposeB, transposeB: true, precision }, a)
    : summedProduct({ left: dZ, right: b, transposeA: false, transposeB: !transposeB, precision }, a);
}

/**
 * Gradient of b: a^T dZ (or dZ^T a where b is stored transposed). Where b is one matrix for all, the batch axes join the
 * rows: one product with K = batch x M in place of a product a batch and a sum.
 */
export function gradientOfB({ a, b, transposeA, transposeB, precision }: Factors, dZ: Tensor): Tensor {
  const shared = product(b.shape, 0, b.rank - 2) === 1 && product(dZ.shape, 0, dZ.rank - 2) > 1;
  const full = product(a.shape, 0, a.rank - 2) === product(dZ.shape, 0, dZ.rank - 2);
  const fold = shared && full && !transposeA;
  const [x, d] = fold ? [asRows(a), asRows(dZ)] : [a, dZ];
  return transposeB
    ? summedProduct({ left: d, right: x, transposeA: true, transposeB: transposeA, precision }, b)
    : summedProduct({ left: x, right: d, transposeA: !transposeA, transposeB: false, precision }, b);
}

/** Sum of dZ over all axes but the last. */
export function gradientOfBias(bias: Tensor, dZ: Tensor): Tensor {
  const N = dZ.dim(-1);
  return sumMiddle(dZ, [1, product(dZ.shape, 0, dZ.rank - 1), N], bias.dtype as FloatDType).view({ shape: bias.shape, strides: [1] });
}

/** [batch, M, K] as [batch x M, K]; a copy where strides do not allow a view. */
function asRows(x: Tensor): Tensor {
  const flat = asContiguous(x);
  const shape = [product(x.shape, 0, x.rank - 1), x.dim(-1)];
  return flat.view({ shape, strides: contiguousStrides(shape) });
}

interface Pair {
  left: Tensor;
  right: Tensor;
  transposeA: boolean;
  transposeB: boolean;
  precision: 'f32' | 'f16';
}

/** left right, summed over the batch axes that `like` does not have, in its shape and dtype. */
function summedProduct({ left, right, ...options }: Pair, like: Tensor): Tensor {
  const dtype = like.dtype as FloatDType;
  const batch = longer(left.shape.slice(0, -2), right.shape.slice(0, -2));
  const shape = [...batch, ...like.shape.slice(-2)];
  const lead = shape.length - like.rank;
  const stretched = batch.flatMap((n, axis) => (n !== 1 && (axis < lead || like.shape[axis - lead] === 1) ? [axis] : []));
  let out = empty(like.device, shape, stretched.length === 0 ? dtype : 'f32');
  runProduct({ a: left, b: right, out, ...options });
  const lengths = [...shape];
  stretched.forEach((axis, i) => {
    const to = i === stretched.length - 1 ? dtype : 'f32';
    const around = [product(lengths, 0, axis), lengths[axis] ?? 1, product(lengths, axis + 1)] as const;
    const summed = sumMiddle(out, around, to);
    out.dispose();
    out = summed;
    lengths[axis] = 1;
  });
  return out.view({ shape: like.shape, strides: contiguousStrides(like.shape) });
}

/** The batch axes of a product; both sides fit already. */
function longer(a: readonly number[], b: readonly number[]): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const [i, j] = [axis - rank + a.length, axis - rank + b.length];
    const [n, m] = [a[i] ?? 1, b[j] ?? 1];
    return n === 1 ? m : n;
  });
}
