import { broadcastTo, HeedError, reshape, scope, type Tensor } from '@heed/core';
import { currentTape } from '@heed/core/~internal';
import { isTensorDecay } from '../scan/options.js';
import { everyToken } from '../scan/every-token.js';
import { linearScan, type LinearScanOptions, linearScanWithState } from '../scan/linear-scan.js';

/** Options of `lightning`. */
export interface LightningOptions {
  /** Factor on q.k. Default 1: there is no 1/sqrt(headDim). */
  scale?: number;
  /**
   * Log-decay a head, [heads], <= 0: numbers, or an f32 tensor. `lightningDecay({ heads, scheme, layer, layers })` gives both papers'
   * conventions. Default: none, plain linear attention. A tensor that is differentiated is trained; the paper keeps it constant,
   * because trained ones gave unstable gradients.
   */
  decay?: Tensor | ArrayLike<number>;
  /** Token t sees tokens up to t. Default true; false sees all, and takes neither decay nor state. */
  causal?: boolean;
  /** State before the first token, f32 [batch, heads, keyDim, valueDim]. Default zeros. Differentiable. */
  initialState?: Tensor;
  /** Tokens that one workgroup sweeps before the state crosses to the next. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones leave the state as it is and give zeros. Default: all. */
  lengths?: Tensor;
}

/**
 * Lightning Attention (Qin et al. 2024, arXiv 2405.17381): out_t = scale sum_(s <= t) lambda^(t - s) (q_t.k_s) v_s, exact, at a cost
 * a token that does not depend on the length. No softmax, no normaliser: follow it by a norm.
 * @param q [batch, tokens, heads, keyDim], f32 or f16; views with any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim], dtype of v; states and sums are f32
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function lightning(q: Tensor, k: Tensor, v: Tensor, options: LightningOptions = {}): Tensor {
  const { causal = true, ...rest } = options;
  if (!causal) return withoutMask(q, k, v, rest);
  return scope(() => linearScan(q, k, v, forgetting(q, rest), 'lightning'));
}

/**
 * As `lightning`, and the state behind the last token, f32 [batch, heads, keyDim, valueDim]; both differentiable.
 * @returns out as `lightning`, and state, which is `initialState` of what follows
 * @throws HeedError what `lightning` throws
 */
export function lightningWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: Omit<LightningOptions, 'causal'> = {},
): { out: Tensor; state: Tensor } {
  return scope(() => linearScanWithState(q, k, v, forgetting(q, options), 'lightningWithState'));
}

/** A decay that is being trained goes the way of a gate, which has a gradient: ds = -sum (i - j) lambda^(i-j) (q_i.k_j) (dO_i.v_j). */
function forgetting(q: Tensor, options: Omit<LightningOptions, 'causal'>): LinearScanOptions {
  const { decay, ...rest } = options;
  if (decay === undefined || !isTensorDecay(decay) || !currentTape()?.isTracked(decay)) return options;
  if (decay.rank !== 1 || decay.size !== q.dim(2))
    throw new HeedError('SHAPE_MISMATCH', `lightning: decay is ${decay.describe()}; it must be [${q.dim(2)}], one a head`);
  return { ...rest, gate: broadcastTo(reshape(decay, [1, 1, decay.size]), q.shape.slice(0, 3)) };
}

/** Without a mask it is q (k^T v), and nothing has a direction. */
function withoutMask(q: Tensor, k: Tensor, v: Tensor, options: Omit<LightningOptions, 'causal'>): Tensor {
  const { decay, initialState, lengths, scale = 1 } = options;
  if (decay || initialState || lengths)
    throw new HeedError(
      'UNSUPPORTED',
      'lightning: decay, initialState or lengths were given with causal: false; a decay has a direction, leave them out or use causal: true',
    );
  return everyToken(q, k, v, scale, 'lightning');
}
