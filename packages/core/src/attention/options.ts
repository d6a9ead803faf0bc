import type { Tensor } from '../tensor/tensor.js';
import type { Mask } from './mask/index.js';
import type { BlockSelection } from './selection.js';
import type { ScoreMod } from './score.js';

/**
 * Options of `attention`. A query row stands at position `row + queryOffset` in masks, score functions and ALiBi.
 * For each pair: s = scale q.k, softcap, scoreMod, ALiBi, keyBias, mask, softmax (FlexAttention's order).
 */
export interface AttentionOptions {
  /** Factor on q.k. Default 1/sqrt(headDim). */
  scale?: number;
  /** A query sees keys up to its own position. Default false. */
  causal?: boolean;
  /** Keys seen, the own one included: with `causal` the last ones, else floor(window / 2) back and the rest ahead. Default: all. */
  window?: number;
  /** Leading key tokens that stay visible outside of the window. Default 0. */
  sinkTokens?: number;
  /** Which keys a query sees, together with `causal` and `window`. Default: all. */
  mask?: Mask;
  /** Key blocks that query blocks see, chosen on the device; `causal`, `window` and a mask hide more of them. Default: all. */
  selection?: BlockSelection;
  /** Position of the first query row: a number, or i32 [batch]. Default keys - queries (bottom-right aligned). */
  queryOffset?: number | Tensor;
  /** What becomes of each scaled score; see `scoreMod`. */
  scoreMod?: ScoreMod;
  /** c in c tanh(s / c) on the scaled score. Default: none. */
  softcap?: number;
  /** Adds slope_h (key position - query position): true for the paper's slopes, or slopes [heads]. Default false. */
  alibi?: boolean | readonly number[] | Tensor;
  /** Learned logits [heads] that join each row's denominator without a value. Differentiable. */
  sinks?: Tensor;
  /** Additive bias a key, f32: [keys], or [batch or 1, heads or kvHeads or 1, keys]. Differentiable. */
  keyBias?: Tensor;
  /** Valid keys a batch entry, i32 [batch]. Default: all. */
  lengths?: Tensor;
  /**
   * `f16`: products on f16 operands with f32 sums where the device has matrix units, f32 tensors rounded on the way in. Default
   * `f32` for f32 tensors; f16 tensors take them anyway.
   */
  precision?: 'f32' | 'f16';
}
