import { HeedError, matmul, pointwise, RandomStream, reshape, scope, tensor, type Tensor } from '@heed/core';
import { rotatePairs } from '../layer/turns.js';

/** The position encoding of TransNormer. */
export interface TransnormerPositions {
  /** Angle a token of each pair of channels, f32 [floor(headDim / 2)], trained; `transnormerAngles` gives the start. */
  theta: Tensor;
  /** Unit vector of the reflection before the turns, [headDim], fixed. Default: no reflection. */
  householder?: readonly number[] | undefined;
}

const reflection: Record<'f32' | 'f16', ReturnType<typeof pointwise>> = {
  f32: pointwise((x, dot, h) => x.sub(dot.mul(h).mul(2)), { name: 'householder', dtype: 'f32' }),
  f16: pointwise((x, dot, h) => x.sub(dot.mul(h).mul(2)), { name: 'householder', dtype: 'f16' }),
};

/**
 * LRPE of TransNormer (official `Urpe`, core "rope", projection "householder"): z - 2 (z.h) h, then pairs of channels turned by
 * theta_c t. Both steps keep lengths, so products of two rows depend on the distance of their positions alone.
 * @param x [batch, tokens, heads, headDim], f32 or f16
 * @param offset position of the first token
 * @returns the shape and dtype of x; differentiable in x and theta
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function placed(x: Tensor, { theta, householder }: TransnormerPositions, offset: number): Tensor {
  if (!householder) return rotatePairs(x, theta, { offset });
  const headDim = x.dim(3);
  if (householder.length !== headDim)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `transnormer: householder has ${householder.length} values, a head ${headDim} channels; give one a channel`,
    );
  return scope(() => {
    const h = tensor(x.device, Float32Array.from(householder), [headDim]);
    const dots = matmul(x, reshape(h, [headDim, 1]), { outDType: 'f32' });
    return rotatePairs(reflection[x.dtype === 'f16' ? 'f16' : 'f32'](x, dots, h), theta, { offset });
  });
}

/** The angles that training starts from: 10000^(-2c / headDim), [floor(headDim / 2)]. */
export function transnormerAngles(headDim: number): Float32Array {
  return Float32Array.from({ length: Math.floor(headDim / 2) }, (_, c) => 10000 ** ((-2 * c) / headDim));
}

/** A random unit vector of `headDim` channels, the same for the same seed. */
export function randomHouseholder(headDim: number, seed: number): number[] {
  const values = [...new RandomStream(seed, 'householder').normal(headDim)];
  const length = Math.hypot(...values);
  return values.map((x) => x / length);
}
