import type { Tensor } from '../tensor/tensor.js';

/**
 * A function in the place of `attention(q, k, v)`: q [batch, queries, heads, headDim], k [batch, keys, kvHeads, headDim],
 * v [batch, keys, kvHeads, valueDim] to [batch, queries, heads, valueDim].
 */
export type AttentionFn<O = unknown> = (q: Tensor, k: Tensor, v: Tensor, options?: O) => Tensor;

/** The same with the natural logsumexp of each row's scores, f32 [batch, queries, heads]: what `mergeAttention` combines. */
export type AttentionWithLseFn<O = unknown> = (q: Tensor, k: Tensor, v: Tensor, options?: O) => { out: Tensor; lse: Tensor };

/**
 * A change of a trained model's weights or layers: heads sliced away, attention exchanged and distilled, gates learnt. The model
 * that comes out runs like any other; what it was calibrated with is no part of it.
 */
export type ModelSurgery<M, C, R = M> = (model: M, calibration: C) => R | Promise<R>;
