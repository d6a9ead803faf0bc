import { HeedError, RandomStream, scope, tensor, type Tensor } from '@heed/core';
import { checkTurns, rotatePairs, turningOf } from '../layer/turns.js';
import type { Turning } from '../scan/turning.js';
import { reflected } from './reflection.js';

/** The position encoding of TransNormer. */
export interface TransnormerPositions {
  /** Angle a token of each pair of channels, f32 [floor(headDim / 2)], trained; `transnormerAngles` gives the start. */
  theta: Tensor;
  /** Unit vector of the reflection before the turns, [headDim], fixed. Default: no reflection. */
  householder?: readonly number[] | undefined;
}

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
  return scope(() => rotatePairs(reflected(x, vectorOf(x, householder)), theta, { offset }));
}

/**
 * Queries and keys of a scan, reflected, and the turns that are left to it.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function placedForScan(
  who: string,
  q: Tensor,
  k: Tensor,
  { theta, householder }: TransnormerPositions,
  offset: number,
): { q: Tensor; k: Tensor; turning: Turning } {
  for (const x of [q, k]) checkTurns(who, x, theta, 'rotate', offset);
  const turning = turningOf('rotate', theta, offset);
  if (!householder) return { q, k, turning };
  const h = vectorOf(q, householder);
  return { q: reflected(q, h), k: reflected(k, h), turning };
}

function vectorOf(x: Tensor, householder: readonly number[]): Tensor {
  const headDim = x.dim(3);
  if (householder.length !== headDim)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `transnormer: householder has ${householder.length} values, a head ${headDim} channels; give one a channel`,
    );
  return tensor(x.device, Float32Array.from(householder), [headDim]);
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
