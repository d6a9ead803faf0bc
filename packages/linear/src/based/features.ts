import { concat, full, HeedError, mul, reshape, scope, type Tensor } from '@heed/core';

/**
 * The feature map of Based in the official order: 1, x_i / f^(1/4), x_i x_j / sqrt(2 f) row-major over i, j, so that
 * phi(q).phi(k) = 1 + s + s^2 / 2 with s = q.k / sqrt(f). For inspection and for tests: `based` never makes it in memory.
 * @param x [..., f], f32 or f16
 * @returns [..., 1 + f + f^2]; differentiable
 * @throws HeedError DTYPE_MISMATCH, SHAPE_MISMATCH when x has no axis
 */
export function taylorFeatures(x: Tensor): Tensor {
  if (x.rank === 0 || (x.dtype !== 'f32' && x.dtype !== 'f16'))
    throw new HeedError('SHAPE_MISMATCH', `taylorFeatures: x is ${x.describe()}; it must be [..., featureDim], f32 or f16`);
  const f = x.dim(-1);
  const lead = x.shape.slice(0, -1);
  return scope(() => {
    const second = mul(reshape(x, [...lead, f, 1]), reshape(x, [...lead, 1, f]));
    return concat(
      [
        full(x.device, [...lead, 1], 1, { dtype: x.dtype }),
        mul(x, f ** -0.25),
        mul(reshape(second, [...lead, f * f]), 1 / Math.sqrt(2 * f)),
      ],
      lead.length,
    );
  });
}
