import { attention, broadcastTo, concat, HeedError, reshape, scope, type Tensor, unsqueeze } from '@heed/core';
import { blockDiagonalCausal } from './segment-mask.js';

/** Options of `titansSegmentAttention`. */
export interface TitansSegmentOptions {
  /** Tokens a segment; with `sliding` the distance to the furthest key. */
  segment: number;
  /** Each query sees the `segment` tokens before it and itself, in place of its segment so far. Default false. */
  sliding?: boolean;
  /** Learned keys and values that every query sees, [tokens, heads, headDim] each. Default none. */
  persistent?: { k: Tensor; v: Tensor };
  /** Factor on q.k. Default 1 / sqrt(headDim). */
  scale?: number;
  /** `f16`: products on f16 operands where the device has matrix units. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/**
 * The short attention of MAC, MAG and MAL (Behrouz et al. 2024, section 4): causal inside of segments, or over a sliding window
 * of segment + 1 keys, with persistent memory in front (section 3.3). Runs on core's attention engine: tiles outside are skipped.
 * @param q [batch, tokens, heads, headDim], f32 or f16
 * @param k as q, heads may be fewer
 * @param v as k
 * @returns the shape of q
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function titansSegmentAttention(q: Tensor, k: Tensor, v: Tensor, options: TitansSegmentOptions): Tensor {
  const { segment, sliding = false, persistent, scale, precision } = options;
  if (!Number.isInteger(segment) || segment < 1)
    throw new HeedError('INVALID_ARGUMENT', `titansSegmentAttention: segment is ${segment}; it must be an integer of 1 or more`);
  const count = persistent?.k.dim(0) ?? 0;
  if (persistent)
    for (const [name, x] of Object.entries(persistent))
      if (x.shape.join() !== [count, k.dim(2), k.dim(3)].join())
        throw new HeedError(
          'SHAPE_MISMATCH',
          `titansSegmentAttention: persistent ${name} is ${x.describe()}; it must be [tokens, ${k.dim(2)}, ${k.dim(3)}], as k has heads and headDim`,
        );
  if (q.dim(1) === 0) return scope(() => reshape(q, [...q.shape.slice(0, 3), v.dim(3)]));
  return scope(() => {
    const joined = (own: Tensor | undefined, x: Tensor): Tensor =>
      own && count > 0 ? concat([broadcastTo(unsqueeze(own, 0), [x.dim(0), ...own.shape]), x], 1) : x;
    const common = { ...(scale !== undefined && { scale }), ...(precision && { precision }) };
    const seen = sliding
      ? { causal: true, window: segment + 1, sinkTokens: count }
      : { mask: blockDiagonalCausal({ segment, persistent: count }) };
    return attention(q, joined(persistent?.k, k), joined(persistent?.v, v), { ...common, ...seen });
  });
}
