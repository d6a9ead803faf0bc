import { cast, type FloatDType, mean, pointwise, sqrt, type Tensor } from '@heed/core';
import { apply } from '@heed/core/~internal';

const product = pointwise((a, b) => a.mul(b), { name: 'srms-product', dtype: 'f32' });
const quotients: Record<FloatDType, ReturnType<typeof pointwise>> = {
  f32: pointwise((x, root, eps) => x.div(root.add(eps)), { name: 'srms', dtype: 'f32' }),
  f16: pointwise((x, root, eps) => x.div(root.add(eps)), { name: 'srms', dtype: 'f16' }),
};
// dx = (dy - x (x.dy / n) / (r (r + eps))) / (r + eps); for a row of zeros the second term is zero. The bound on r keeps its product with
// eps a normal number: hardware rounds smaller ones to 0, and 0 / 0 is NaN.
const pullback = pointwise((x, dy, root, dot, eps) => dy.sub(x.mul(dot).div(root.max(1e-20).mul(root.add(eps)))).div(root.add(eps)), {
  name: 'srms-backward',
  dtype: 'f32',
});

/**
 * The norm without weights of TransNormer: y = x / (|x| / sqrt(n) + eps) over the last axis, eps beside the root (official
 * `SimpleRMSNorm`; with eps inside the root it is `rmsNorm(x, undefined, eps)` of core). A row of zeros gives zeros, and its
 * gradient is dy / eps.
 * @param x [..., n], f32 or f16; statistics are f32
 * @param eps default 1e-8
 * @returns the shape and dtype of x
 * @throws HeedError SHAPE_MISMATCH when x has no axis, DTYPE_MISMATCH
 */
export function srms(x: Tensor, eps = 1e-8): Tensor {
  const dtype = x.dtype as FloatDType;
  const rowMean = (a: Tensor, b: Tensor): Tensor => mean(product(a, b), -1, { keepDims: true });
  return apply({
    name: 'srms',
    inputs: [x],
    forward: () => quotients[dtype](x, sqrt(rowMean(x, x)), eps),
    saves: () => [x],
    backward: ([dy], { saved: [z] }) => (dy && z ? [cast(pullback(z, dy, sqrt(rowMean(z, z)), rowMean(z, dy), eps), dtype)] : [null]),
  });
}
