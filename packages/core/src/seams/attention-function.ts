import type { BlockSelection } from '../attention/index.js';
import type { Tensor } from '../tensor/tensor.js';

/** Options of a function: left out where there are none, optional where every one has a default, else required. */
export type OptionsOf<O> = [O] extends [undefined] ? [] : Partial<O> extends O ? [options?: O] : [options: O];

/**
 * A function in the place of `attention(q, k, v)`: q [batch, queries, heads, headDim], k [batch, keys, kvHeads, headDim],
 * v [batch, keys, kvHeads, valueDim] to [batch, queries, heads, valueDim]; on images [batch, ...grid, heads, dim].
 * A model that swaps functions takes `AttentionFn`, its options bound: `(q, k, v) => fna(q, k, v, options)`.
 */
export type AttentionFn<O = undefined> = (q: Tensor, k: Tensor, v: Tensor, ...options: OptionsOf<O>) => Tensor;

/** The same with the natural logsumexp of each row's scores, f32 [batch, queries, heads]: what `mergeAttention` combines. */
export type AttentionWithLseFn<O = undefined> = (q: Tensor, k: Tensor, v: Tensor, ...options: OptionsOf<O>) => { out: Tensor; lse: Tensor };

/** Which key blocks are seen, chosen on the device from queries and keys: what `attention` and `KvCache.attend` then read. */
export type BlockSelector<O = undefined, R = BlockSelection> = (q: Tensor, k: Tensor, ...options: OptionsOf<O>) => R;

/**
 * A change of a trained model's weights or layers: heads sliced away, attention exchanged and distilled, gates learnt. The model
 * that comes out runs like any other; what it was calibrated with is no part of it.
 */
export type ModelSurgery<M, C, R = M> = (model: M, calibration: C) => R | Promise<R>;
