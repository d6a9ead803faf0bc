import { HeedError, rmsNorm, scope, type Tensor } from '@heed/core';
import { checkTurns, turningOf } from '../layer/turns.js';
import { decayScan, type DecayScanOptions, decayScanWithState } from '../scan/decay-scan.js';

/** Options of `transnormerllm`. */
export interface TransnormerllmOptions {
  /** Factor on q.k. Default 1. */
  scale?: number;
  /**
   * Log-decay a head, [heads], <= 0, a constant: numbers, or an f32 tensor. `lightningDecay({ heads, layer, layers })` of
   * `@heed/linear/lightning` gives it in both conventions. Default: none.
   */
  decay?: Tensor | ArrayLike<number>;
  /** Angles of LRPE, f32 [heads, headDim], trained; `lrpeAngles` gives the start. Default: no LRPE (every layer but the first). */
  theta?: Tensor;
  /** Position of the first token, for LRPE. Default 0. */
  offset?: number;
  /** State before the first token, f32 [batch, heads, keyDim, valueDim], keyDim = 2 headDim with LRPE. Default zeros. Differentiable. */
  initialState?: Tensor;
  /** Tokens a segment. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones leave the state as it is and give zeros. Default: all. */
  lengths?: Tensor;
}

/**
 * Linear attention with LRPE-d (Qin et al. 2023, arXiv 2307.14995, section 3.1): out_s = scale sum_(t <= s) lambda^(s - t) a_st v_t with
 * a_st = sum_c q_sc k_tc cos(theta_c (s - t)), or q_s.k_t without angles. No denominator: follow it by a norm.
 * @param q [batch, tokens, heads, headDim], f32 or f16
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim], dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function transnormerllm(q: Tensor, k: Tensor, v: Tensor, options: TransnormerllmOptions = {}): Tensor {
  return scope(() => {
    return decayScan(q, k, v, scanOptions('transnormerllm', q, options), 'transnormerllm');
  });
}

/**
 * As `transnormerllm`, and the state behind the last token; both differentiable.
 * @returns out as `transnormerllm`, and state f32, which is `initialState` of what follows
 * @throws HeedError what `transnormerllm` throws
 */
export function transnormerllmWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: TransnormerllmOptions = {},
): { out: Tensor; state: Tensor } {
  return scope(() => {
    return decayScanWithState(q, k, v, scanOptions('transnormerllmWithState', q, options), 'transnormerllmWithState');
  });
}

/** LRPE is a part of the scan: queries and keys are turned as they are loaded, and saved as they are. */
export function scanOptions(who: string, q: Tensor, options: TransnormerllmOptions): DecayScanOptions {
  const { theta, offset = 0, ...rest } = options;
  if (!theta) return rest;
  checkTurns(who, q, theta, 'concat', offset);
  return { ...rest, turning: turningOf('concat', theta, offset) };
}

/**
 * The angles that LRPE starts from, [heads, headDim]: 10000^(-2 i / (heads headDim)) with i = head headDim + channel, one ladder
 * over all heads (not the rotary schedule).
 * @param options of the layer
 * @param options.base of the ladder. Default 10,000
 * @throws HeedError INVALID_ARGUMENT for heads or headDim that are no integers of 1 or more
 */
export function lrpeAngles({ heads, headDim, base = 10000 }: { heads: number; headDim: number; base?: number }): Float32Array {
  if (![heads, headDim].every((n) => Number.isInteger(n) && n > 0))
    throw new HeedError('INVALID_ARGUMENT', `lrpeAngles: heads ${heads}, headDim ${headDim}; both are integers of 1 or more`);
  return Float32Array.from({ length: heads * headDim }, (_, i) => base ** ((-2 * i) / (heads * headDim)));
}

/**
 * SRMSNorm: x / sqrt(mean(x^2) + eps) over the last axis, without weights. A row of zeros gives zeros and a finite gradient.
 * @param x [..., n], f32 or f16
 * @param options.eps default 1e-6; at least 1.6e-5 for f16, as the released code has it
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError SHAPE_MISMATCH when x has no axis, DTYPE_MISMATCH
 */
export function srmsNorm(x: Tensor, options: { eps?: number } = {}): Tensor {
  const { eps = 1e-6 } = options;
  return rmsNorm(x, undefined, { epsilon: x.dtype === 'f16' ? Math.max(eps, 1.6e-5) : eps });
}
