import { HeedError, type Tensor } from '@heed/core';
import { type DecayScanOptions, type GateWay, scanOp, stepOp } from './decay-scan.js';
import { gatedBackward } from './gated-backward.js';
import { gatedForward, gatedStep } from './gated.js';

/** Options of a scan. What forgets is one of: nothing (the default), `decay`, `gate`. */
export interface LinearScanOptions extends DecayScanOptions {
  /**
   * Log-decay, <= 0, f32 [batch, tokens, heads] (the whole state of a head) or [batch, tokens, heads, keyDim] (a row of it each):
   * token t multiplies the state before it by exp(gate_t), then adds k_t v_t^T. Views with any outer strides. Differentiable.
   */
  gate?: Tensor;
}

/**
 * The scan that the linear family shares: S_t = exp(decay or gate_t) S_(t-1) + k_t v_t^T, out_t = scale q_t S_t. Inside the package:
 *
 *     import { linearScan, linearScanStep, linearScanWithState } from '../scan/linear-scan.js';
 *     const out = linearScan(q, k, v, { gate });                                   // parallel form
 *     const { out, state } = linearScanWithState(q, k, v, { gate, initialState }); // and the state behind the last token
 *     const next = linearScanStep(q1, k1, v1, state, { gate: gate1 });             // stream: state updated in place, no gradient
 *
 * `normalizedScan`, `normalizedScanWithState` and `normalizedScanStep` (scan/normalized.ts) divide by the scan of a column of ones.
 * Gradients for q, k, v, gate and initialState. Any tokens (0 and 1 too), any head dimensions. Sums, states and gates are f32.
 * Segments of tokens are swept side by side. f32 operands go token by token and form no quotient of decays; f16 operands take products
 * of fragments where the device has them, in steps over which no channel decays by more than 2^-24. Gates of any size are safe.
 * @param q [batch, tokens, heads, keyDim], f32 or f16; views with any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim]
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED when decay is differentiated
 */
export function linearScan(q: Tensor, k: Tensor, v: Tensor, options: LinearScanOptions = {}, who = 'linearScan'): Tensor {
  const { gate: _, ...rest } = options;
  return scanOp(who, q, k, v, rest, false, wayOf(who, q, options))[0] as Tensor;
}

/** As `linearScan`, and the state behind the last token, f32 [batch, heads, keyDim, valueDim]; both differentiable. */
export function linearScanWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: LinearScanOptions = {},
  who = 'linearScanWithState',
): { out: Tensor; state: Tensor } {
  const { gate: _, ...rest } = options;
  const [out, state] = scanOp(who, q, k, v, rest, true, wayOf(who, q, options));
  return { out: out as Tensor, state: state as Tensor };
}

/**
 * The next tokens of a stream, any number. For few tokens it allocates nothing but the outputs (give `decay` as a tensor).
 * @param state f32 [batch, heads, keyDim, valueDim], contiguous, updated in place
 * @returns [batch, n, heads, valueDim]
 * @throws HeedError as `linearScan`; UNSUPPORTED when an input is differentiated
 */
export function linearScanStep(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  state: Tensor,
  options: Omit<LinearScanOptions, 'initialState'> = {},
  who = 'linearScanStep',
): Tensor {
  const { gate: _, ...rest } = options;
  return stepOp(who, q, k, v, state, rest, wayOf(who, q, options));
}

/** How the gate of these options forgets. @throws HeedError: what is wrong with the gate */
export function wayOf(who: string, q: Tensor, { gate, decay }: LinearScanOptions): GateWay | undefined {
  if (gate && decay !== undefined)
    throw new HeedError('INVALID_ARGUMENT', `${who}: both gate and decay were given; add the decay to the gate, or give one of them`);
  if (!gate || q.rank !== 4) return undefined;
  if (gate.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: gate is ${gate.describe()}; log-decays are f32, cast it first`);
  const fits =
    (gate.rank === 3 || (gate.rank === 4 && gate.dim(3) === q.dim(3))) && [0, 1, 2].every((axis) => gate.dim(axis) === q.dim(axis));
  if (!fits)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: gate is ${gate.describe()}; it must be [${q.shape.slice(0, 3).join(', ')}], one a token and head, or [${q.shape.join(', ')}], one a channel too`,
    );
  return { gate, forward: gatedForward, backward: gatedBackward, step: gatedStep };
}
