import { concat, HeedError, matmul, maximum, neg, permute, scope, softmax, type Tensor } from '@heed/core';

/**
 * The feature map of LAWCAT (Hedgehog's): phi(u) = [softmax(u W_h), softmax(-u W_h)], at least `epsilon`.
 * @param u [batch, tokens, heads, headDim], f32 or f16
 * @param weight f32 [heads, headDim, features]
 * @param options.epsilon default 1e-12
 * @returns f32 [batch, tokens, heads, 2 features]: positive, each half sums to 1; differentiable
 * @throws HeedError SHAPE_MISMATCH
 */
export function lawcatFeatures(u: Tensor, weight: Tensor, options: { epsilon?: number; precision?: 'f32' | 'f16' } = {}): Tensor {
  const { epsilon = 1e-12, precision = 'f32' } = options;
  if (u.rank !== 4 || weight.rank !== 3 || weight.dim(0) !== u.dim(2) || weight.dim(1) !== u.dim(3))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `lawcatFeatures: u is ${u.describe()}, weight ${weight.describe()}; they are [batch, tokens, heads, headDim] and [heads, headDim, features]`,
    );
  return scope(() => {
    const y = matmul(permute(u, [0, 2, 1, 3]), weight, { precision, outDType: 'f32' });
    return permute(maximum(concat([softmax(y), softmax(neg(y))], 3), epsilon), [0, 2, 1, 3]);
  });
}
