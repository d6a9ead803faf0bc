import { copyInto, type FloatDType, HeedError, type Tensor, zeros } from '@heed/core';
import { apply, asContiguous } from '@heed/core/~internal';
import { lightning2Backward } from './scalar-backward.js';
import { checkArguments, decayTensor, isTensorDecay } from './options.js';
import { gatedBackward } from './gated-backward.js';
import { gatedForward, gatedStep } from './gated.js';
import { scalarForward } from './scalar.js';
import { stepScan } from './scan.js';

/**
 * Options of a scan. What forgets is one of: nothing (the default), `decay`, `gate`.
 */
export interface LinearScanOptions {
  /** Factor on q.k. Default 1. */
  scale?: number;
  /** Log-decay a head, [heads], <= 0: numbers, or f32; a constant. */
  decay?: Tensor | ArrayLike<number>;
  /**
   * Log-decay, <= 0, f32 [batch, tokens, heads] (the whole state of a head) or [batch, tokens, heads, keyDim] (a row of it each):
   * token t multiplies the state before it by exp(gate_t), then adds k_t v_t^T. Views with any outer strides. Differentiable.
   */
  gate?: Tensor;
  /** State before the first token, f32 [batch, heads, keyDim, valueDim]. Default zeros. Differentiable. */
  initialState?: Tensor;
  /** Tokens a segment. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones leave the state as it is and give zeros. Default: all. */
  lengths?: Tensor;
  /** Dtype of the outputs. Default that of v. */
  outDType?: FloatDType;
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
 * Segments of tokens are swept side by side, the state inside a segment token by token: no quotient of decays is ever formed, so
 * gates of any size are safe.
 * @param q [batch, tokens, heads, keyDim], f32 or f16; views with any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim]
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED when decay is differentiated
 */
export function linearScan(q: Tensor, k: Tensor, v: Tensor, options: LinearScanOptions = {}, who = 'linearScan'): Tensor {
  return scanOp(who, q, k, v, options, false)[0] as Tensor;
}

/** As `linearScan`, and the state behind the last token, f32 [batch, heads, keyDim, valueDim]; both differentiable. */
export function linearScanWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: LinearScanOptions = {},
  who = 'linearScanWithState',
): { out: Tensor; state: Tensor } {
  const [out, state] = scanOp(who, q, k, v, options, true);
  return { out: out as Tensor, state: state as Tensor };
}

/** Pieces of up to this many tokens are swept in place, one workgroup a head and column tile; longer ones in segments. */
const inPlaceTokens = 64;

/**
 * The next tokens of a stream, any number. For few tokens it allocates nothing but the outputs (give `decay` as a tensor, or none).
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
  checkScan(who, q, k, v, { ...options, initialState: state });
  if (!state.contiguous)
    throw new HeedError('SHAPE_MISMATCH', `${who}: the state ${state.describe()} is a strided view; it is updated in place, copy it first`);
  const { gate, lengths, scale = 1, chunk, outDType = v.dtype as FloatDType } = options;
  return apply({
    name: who,
    inputs: [q, k, v, ...(gate ? [gate] : [])],
    forward: () => {
      const decay = gate ? undefined : decayOf(q, options.decay);
      if (q.dim(1) <= inPlaceTokens) {
        if (gate) return gatedStep({ q, k, v, gate, lengths, queryScale: scale }, state, outDType);
        if (decay && outDType === v.dtype) return stepScan({ q, k, v, decay, lengths, queryScale: scale }, state);
        if (decay) return gatedStep({ q, k, v, gate: spread(decay, q), lengths, queryScale: scale }, state, outDType);
      }
      const { out, final } = scanForward({ q, k, v, gate, decay, lengths, scale, chunk }, state, true, outDType);
      if (final) copyInto(state, final);
      return out;
    },
  });
}

interface Problem {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  gate: Tensor | undefined;
  decay: Tensor | undefined;
  lengths: Tensor | undefined;
  scale: number;
  chunk: number | undefined;
}

function scanForward(
  problem: Problem,
  initial: Tensor | undefined,
  withState: boolean,
  outDType: FloatDType,
): { out: Tensor; final: Tensor | undefined } {
  const { gate, decay } = problem;
  if (gate) return gatedForward({ ...problem, gate }, initial, { withState, outDType });
  return scalarForward({ ...problem, decay: decay as Tensor }, initial, { withState, outDType });
}

function scanOp(who: string, q: Tensor, k: Tensor, v: Tensor, options: LinearScanOptions, withState: boolean): readonly Tensor[] {
  checkScan(who, q, k, v, options);
  const { initialState, gate, lengths, chunk, scale = 1, outDType = v.dtype as FloatDType } = options;
  const inputs = [q, k, v, ...(gate ? [gate] : []), ...(initialState ? [initialState] : [])];
  const given = options.decay !== undefined && isTensorDecay(options.decay) ? options.decay : undefined;
  const constants = [...(lengths ? [lengths] : []), ...(given ? [given] : [])];
  return apply<readonly Tensor[]>({
    name: who,
    inputs,
    forward: () => {
      const decay = gate ? undefined : decayOf(q, options.decay);
      const problem = { q, k, v, gate, decay, lengths, scale, chunk };
      const { out, final } = scanForward(problem, initialState && asContiguous(initialState), withState, outDType);
      return final ? [out, final] : [out];
    },
    saves: (outputs) => [...inputs, ...constants, ...(gate && withState ? outputs.slice(1) : [])],
    backward: ([dOut = null, dState = null], { saved, needs }) => {
      const [savedQ, savedK, savedV] = saved as [Tensor, Tensor, Tensor];
      const rest = saved.slice(3);
      const savedGate = gate ? rest.shift() : undefined;
      const common = {
        q: savedQ,
        k: savedK,
        v: savedV,
        scale,
        chunk,
        initialState: initialState ? rest.shift() : undefined,
        lengths: lengths ? rest.shift() : undefined,
      };
      const need = (x: Tensor | undefined): boolean => x !== undefined && (needs[inputs.indexOf(x)] ?? false);
      const wanted = { q: need(q), k: need(k), v: need(v), gate: need(gate), initialState: need(initialState) };
      if (savedGate) {
        const grads = gatedBackward({ ...common, gate: savedGate, finalState: rest.at(-1) }, dOut, dState, wanted);
        return [grads.q, grads.k, grads.v, grads.gate, ...(initialState ? [grads.initialState] : [])];
      }
      const decay = given ? (rest[0] as Tensor) : decayOf(savedQ, options.decay);
      const grads = lightning2Backward({ ...common, decay }, dOut, dState, wanted);
      return [grads.q, grads.k, grads.v, ...(initialState ? [grads.initialState] : [])];
    },
  });
}

function decayOf(q: Tensor, decay: LinearScanOptions['decay']): Tensor {
  return decay === undefined ? zeros(q.device, [q.dim(2)]) : decayTensor(q.device, decay);
}

/** A decay a head as a gate a token and head: a view without strides over batch and tokens. */
export function spread(decay: Tensor, q: Tensor): Tensor {
  return decay.view({ shape: [q.dim(0), q.dim(1), q.dim(2)], strides: [0, 0, decay.strides[0] ?? 1] });
}

/** @throws HeedError: what is wrong with the arguments of a scan */
export function checkScan(who: string, q: Tensor, k: Tensor, v: Tensor, options: LinearScanOptions): void {
  const { gate, decay, initialState, lengths, chunk, scale } = options;
  if (gate && decay !== undefined)
    throw new HeedError('INVALID_ARGUMENT', `${who}: both gate and decay were given; add the decay to the gate, or give one of them`);
  checkArguments(who, q, k, v, {
    decay: decay ?? new Float32Array(q.rank === 4 ? q.dim(2) : 0),
    ...(initialState && { initialState }),
    ...(lengths && { lengths }),
    ...(chunk !== undefined && { chunk }),
    ...(scale !== undefined && { scale }),
  });
  if (!gate) return;
  if (gate.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: gate is ${gate.describe()}; log-decays are f32, cast it first`);
  const fits =
    (gate.rank === 3 || (gate.rank === 4 && gate.dim(3) === q.dim(3))) && [0, 1, 2].every((axis) => gate.dim(axis) === q.dim(axis));
  if (!fits)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: gate is ${gate.describe()}; it must be [${q.shape.slice(0, 3).join(', ')}], one a token and head, or [${q.shape.join(', ')}], one a channel too`,
    );
}
