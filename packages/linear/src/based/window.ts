import { attention, HeedError, type Tensor } from '@heed/core';
import { kv, maskFrom, q as queryPosition, bandPattern } from '@heed/core/attention';
import { uniform } from '@heed/core/~internal';

/** Options of `slidingWindow`. */
export interface SlidingWindowOptions {
  /** Keys before its own that a query sees; it sees left + 1 in all. */
  left: number;
  /** Keys after its own. Default 0: causal. */
  right?: number;
  /** Factor on q.k. Default 1 / sqrt(headDim). */
  scale?: number;
  /** Valid keys a batch entry, i32 [batch]. Default: all. */
  lengths?: Tensor;
}

/**
 * The window layer of Based: softmax attention over keys i - left .. i + right, by the attention engine.
 * @param q [batch, tokens, heads, headDim], f32 or f16
 * @param k [batch, tokens, kvHeads, headDim]
 * @param v [batch, tokens, kvHeads, valueDim]
 * @returns [batch, tokens, heads, valueDim]; differentiable
 * @throws HeedError INVALID_ARGUMENT for sides that are no whole numbers or a scale that is not finite, and what `attention` throws
 */
export function slidingWindow(q: Tensor, k: Tensor, v: Tensor, options: SlidingWindowOptions): Tensor {
  const { left, right = 0, scale, lengths } = options;
  for (const [name, side] of [
    ['left', left],
    ['right', right],
  ] as const) {
    if (!Number.isInteger(side) || side < 0)
      throw new HeedError('INVALID_ARGUMENT', `slidingWindow: ${name} is ${side}; it counts keys, use a whole number of 0 or more`);
  }
  if (scale !== undefined && !Number.isFinite(scale))
    throw new HeedError('INVALID_ARGUMENT', `slidingWindow: scale is ${scale}; it must be finite`);
  const rest = { ...(scale !== undefined && { scale }), ...(lengths && { lengths }) };
  if (right === 0) return attention(q, k, v, { causal: true, window: left + 1, ...rest });
  const mask = maskFrom({
    predicate: kv
      .sub(queryPosition)
      .le(uniform('keysAfter', 'i32'))
      .and(queryPosition.sub(kv).le(uniform('keysBefore', 'i32'))),
    uniforms: { keysAfter: right, keysBefore: left },
    pattern: bandPattern(left, right),
  });
  return attention(q, k, v, { mask, ...rest });
}

/**
 * `left` of a window size as the reference configurations give it: the official layer sees windowSize / 2 keys before the own one (256: 129
 * keys in all), although the paper speaks of windows of 64 and 128.
 */
export function leftOfWindowSize(windowSize: number): number {
  if (!Number.isInteger(windowSize) || windowSize < 1)
    throw new HeedError('INVALID_ARGUMENT', `leftOfWindowSize: windowSize is ${windowSize}; use a whole number of 1 or more`);
  return Math.floor(windowSize / 2);
}
