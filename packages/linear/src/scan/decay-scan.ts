import { copyInto, type FloatDType, HeedError, type Tensor } from '@heed/core';
import { apply, asContiguous } from '@heed/core/~internal';
import type { GatedNeeds, GatedSaved } from './gated-backward.js';
import type { GatedProblem } from './gated.js';
import { checkArguments, decayTensor, isTensorDecay } from './options.js';
import { lightning2Backward } from './scalar-backward.js';
import { scalarForward, turnedDim } from './scalar.js';
import { stepScan } from './scan.js';
import type { Turning } from './turning.js';

/** Options of a scan whose state forgets nothing, or by one constant factor a head. */
export interface DecayScanOptions {
  /** Factor on q.k. Default 1. */
  scale?: number;
  /** Log-decay a head, [heads], <= 0: numbers, or f32; a constant. Default: none. */
  decay?: Tensor | ArrayLike<number>;
  /** State before the first token, f32 [batch, heads, keyDim, valueDim]. Default zeros. Differentiable. */
  initialState?: Tensor;
  /** Tokens a segment. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones leave the state as it is and give zeros. Default: all. */
  lengths?: Tensor;
  /** Dtype of the outputs. Default that of v. */
  outDType?: FloatDType;
  /** Turns of q and k by position; differentiable in the angles. States are as wide as turned keys. */
  turning?: Turning;
}

/**
 * The scan without gates, for techniques that need none and whose bundles then carry no kernels for them:
 * S_t = exp(decay) S_(t-1) + k_t v_t^T, out_t = scale q_t S_t. `linearScan` (linear-scan.ts) is the same with gates.
 * @param q [batch, tokens, heads, keyDim], f32 or f16; views with any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim]
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED when decay is differentiated
 */
export function decayScan(q: Tensor, k: Tensor, v: Tensor, options: DecayScanOptions, who: string): Tensor {
  return scanOp(who, q, k, v, options, false)[0] as Tensor;
}

/** As `decayScan`, and the state behind the last token, f32 [batch, heads, keyDim, valueDim]; both differentiable. */
export function decayScanWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: DecayScanOptions,
  who: string,
): { out: Tensor; state: Tensor } {
  const [out, state] = scanOp(who, q, k, v, options, true);
  return { out: out as Tensor, state: state as Tensor };
}

/** The next tokens of a stream; see `linearScanStep`. */
export function decayScanStep(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  state: Tensor,
  options: Omit<DecayScanOptions, 'initialState'>,
  who: string,
): Tensor {
  return stepOp(who, q, k, v, state, options);
}

/** What gates need, which `linearScan` brings along. */
export interface GateWay {
  gate: Tensor;
  forward(
    problem: GatedProblem,
    initial: Tensor | undefined,
    options: { withState: boolean; outDType: FloatDType },
  ): { out: Tensor; final: Tensor | undefined };
  backward(
    saved: GatedSaved,
    dOut: Tensor | null,
    dState: Tensor | null,
    needs: GatedNeeds,
  ): { readonly [name in keyof GatedNeeds]: Tensor | null };
  step(scan: Omit<GatedProblem, 'scale' | 'chunk'> & { queryScale: number }, state: Tensor, outDType: FloatDType): Tensor;
}

/** Pieces of up to this many tokens are swept in place, one workgroup a head and column tile; longer ones in segments. */
const inPlaceTokens = 64;

/** A step of any scan. */
export function stepOp(
  who: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  state: Tensor,
  options: Omit<DecayScanOptions, 'initialState'>,
  way?: GateWay,
): Tensor {
  checkDecayScan(who, q, k, v, { ...options, initialState: state });
  if (!state.contiguous)
    throw new HeedError('SHAPE_MISMATCH', `${who}: the state ${state.describe()} is a strided view; it is updated in place, copy it first`);
  const { lengths, scale = 1, chunk, outDType = v.dtype as FloatDType, turning } = options;
  return apply({
    name: who,
    inputs: [q, k, v, ...(way ? [way.gate] : []), ...(turning ? [turning.theta] : [])],
    forward: () => {
      const common = { q, k, v, lengths };
      if (q.dim(1) <= inPlaceTokens)
        return way
          ? way.step({ ...common, gate: way.gate, queryScale: scale }, state, outDType)
          : stepScan({ ...common, decay: decayOf(q, options.decay), queryScale: scale, turning }, state, outDType);
      const { out, final } = forwardOf({ ...common, scale, chunk, turning }, options.decay, state, { withState: true, outDType }, way);
      if (final) copyInto(state, final);
      return out;
    },
  });
}

type Problem = Omit<GatedProblem, 'gate'> & { turning?: Turning | undefined };

function forwardOf(
  problem: Problem,
  decay: DecayScanOptions['decay'],
  initial: Tensor | undefined,
  options: { withState: boolean; outDType: FloatDType },
  way: GateWay | undefined,
): { out: Tensor; final: Tensor | undefined } {
  if (way) return way.forward({ ...problem, gate: way.gate }, initial, options);
  return scalarForward({ ...problem, decay: decayOf(problem.q, decay) }, initial, options);
}

/** Any scan as a differentiable op: out, and the final state with `withState`. */
export function scanOp(
  who: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: DecayScanOptions,
  withState: boolean,
  way?: GateWay,
): readonly Tensor[] {
  checkDecayScan(who, q, k, v, options);
  const { initialState, lengths, chunk, scale = 1, outDType = v.dtype as FloatDType, turning } = options;
  const inputs = [q, k, v, ...(way ? [way.gate] : []), ...(initialState ? [initialState] : []), ...(turning ? [turning.theta] : [])];
  const given = options.decay !== undefined && isTensorDecay(options.decay) ? options.decay : undefined;
  const constants = [...(lengths ? [lengths] : []), ...(given ? [given] : [])];
  return apply<readonly Tensor[]>({
    name: who,
    inputs,
    forward: () => {
      const initial = initialState && asContiguous(initialState);
      const { out, final } = forwardOf({ q, k, v, lengths, scale, chunk, turning }, options.decay, initial, { withState, outDType }, way);
      return final ? [out, final] : [out];
    },
    saves: (outputs) => [...inputs, ...constants, ...(way && withState ? outputs.slice(1) : [])],
    backward: ([dOut = null, dState = null], { saved, needs }) => {
      const [savedQ, savedK, savedV] = saved as [Tensor, Tensor, Tensor];
      const rest = saved.slice(3);
      const savedGate = way ? rest.shift() : undefined;
      const common = {
        q: savedQ,
        k: savedK,
        v: savedV,
        scale,
        chunk,
        initialState: initialState ? rest.shift() : undefined,
        turning: turning && { ...turning, theta: rest.shift() as Tensor },
        lengths: lengths ? rest.shift() : undefined,
      };
      const need = (x: Tensor | undefined): boolean => x !== undefined && (needs[inputs.indexOf(x)] ?? false);
      const wanted = { q: need(q), k: need(k), v: need(v), gate: need(way?.gate), initialState: need(initialState) };
      if (way && savedGate) {
        const grads = way.backward({ ...common, gate: savedGate, finalState: rest.at(-1) }, dOut, dState, wanted);
        return [grads.q, grads.k, grads.v, grads.gate, ...(initialState ? [grads.initialState] : [])];
      }
      const decay = given ? (rest[0] as Tensor) : decayOf(savedQ, options.decay);
      const grads = lightning2Backward({ ...common, decay }, dOut, dState, { ...wanted, theta: need(turning?.theta) });
      return [grads.q, grads.k, grads.v, ...(initialState ? [grads.initialState] : []), ...(turning ? [grads.theta] : [])];
    },
  });
}

function decayOf(q: Tensor, decay: DecayScanOptions['decay']): Tensor {
  return decayTensor(q.device, decay ?? new Float32Array(q.dim(2)));
}

/** @throws HeedError: what is wrong with the arguments of a scan */
export function checkDecayScan(who: string, q: Tensor, k: Tensor, v: Tensor, options: DecayScanOptions): void {
  const { decay, initialState, lengths, chunk, scale, turning } = options;
  const given = {
    decay: decay ?? new Float32Array(q.rank === 4 ? q.dim(2) : 0),
    ...(initialState && { initialState }),
    ...(lengths && { lengths }),
    ...(chunk !== undefined && { chunk }),
    ...(scale !== undefined && { scale }),
  };
  checkArguments(who, q, k, v, given, k.rank === 4 ? turnedDim(k, turning) : undefined);
}
