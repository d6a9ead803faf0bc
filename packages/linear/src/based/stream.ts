import { type Device, HeedError, scope, type Tensor, zeros } from '@heed/core';
import { apply, copyContiguous, empty } from '@heed/core/~internal';
import { tuningFor } from '../scan/scan.js';
import { basedForward, compressed, problemOf, sweepOf } from './passes.js';
import { HeldTensors } from '../scan/held-tensors.js';
import { expandState } from './kernels/state-layout.js';
import { runBasedStep } from './kernels/step.js';
import { runSweep } from './kernels/sweep.js';
import { planBased, symmetricFeatures } from './layout.js';
import { type BasedOptions, type BasedStates, checkBased, checkStates } from './options.js';

/** What a stream is started with. */
export interface BasedStreamOptions extends Pick<BasedOptions, 'scale' | 'normalize' | 'eps' | 'initialState' | 'chunk'> {
  batch: number;
  heads: number;
  featureDim: number;
  valueDim: number;
}

/** Pieces of up to this many tokens are swept in place; longer ones go by the plan of `based`. */
const inPlaceTokens = 64;

/**
 * State of a stream: the sums of phi(k) v^T and phi(k) in the compressed order, 1 + f + f (f + 1) / 2 features, whatever the length. Made by
 * `basedStart`, updated in place by `basedStep`, freed by `dispose()`.
 */
export class BasedState extends HeldTensors {
  /** Takes over both tensors: kv f32 [batch, heads, features, valueDim], z f32 [batch, heads, features]. */
  constructor(
    device: Device,
    tensors: { kv: Tensor; z: Tensor },
    readonly options: Pick<BasedOptions, 'scale' | 'normalize' | 'eps' | 'chunk'> & { featureDim: number },
  ) {
    super(device, 'based', tensors);
  }

  /** The sums in the official order; the caller disposes them. */
  full(): BasedStates {
    const { featureDim } = this.options;
    return { kvState: expandState(this.get('kv'), featureDim), kState: expandState(this.get('z'), featureDim) };
  }
}

/**
 * An empty stream, or one that goes on from `initialState`. The caller disposes it.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function basedStart(device: Device, options: BasedStreamOptions): BasedState {
  const { batch, heads, featureDim, valueDim, initialState, ...rest } = options;
  if ([batch, heads, featureDim, valueDim].some((n) => !Number.isInteger(n) || n < 1))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `based: a stream of batch, heads, featureDim, valueDim [${[batch, heads, featureDim, valueDim].join(', ')}]; each is an integer of 1 or more`,
    );
  const lead = [batch, heads, symmetricFeatures(featureDim)];
  if (!initialState)
    return new BasedState(device, { kv: zeros(device, [...lead, valueDim]), z: zeros(device, lead) }, { featureDim, ...rest });
  checkStates('basedStart', initialState, [batch, heads], featureDim, valueDim);
  const tensors = scope(() => {
    const { kv, z } = compressed(initialState, featureDim);
    return { kv: copyContiguous(kv), z: copyContiguous(z as Tensor) };
  });
  return new BasedState(device, tensors, { featureDim, ...rest });
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `based` gives for the whole sequence, whatever the pieces. No gradient.
 * @param q [batch, n, heads, featureDim], f32 or f16
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @returns [batch, n, heads, valueDim], dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; DISPOSED after `state.dispose()`; UNSUPPORTED when an input is differentiated
 */
export function basedStep(q: Tensor, k: Tensor, v: Tensor, state: BasedState): Tensor {
  const { featureDim: _, ...options } = state.options;
  const initialState = { kvState: state.get('kv'), kState: state.get('z') };
  checkBased('basedStep', q, k, v, { ...options, initialState });
  const tokens = q.dim(1);
  const made = apply<readonly Tensor[]>({
    name: 'basedStep',
    inputs: [q, k, v],
    forward: () => {
      const problem = problemOf(q, k, v, { ...options, initialState });
      if (tokens > inPlaceTokens || tokens === 0) {
        const whole = basedForward(problem, { withState: true, withNorm: false });
        return [whole.out, whole.state?.z as Tensor, whole.state?.kv as Tensor];
      }
      const out = empty(v.device, v.shape, v.dtype);
      const z = empty(v.device, initialState.kState.shape);
      if (tokens === 1) {
        const { normalize, scale, eps } = problem;
        const step = { q, k, v, normalise: normalize, featureScale: Math.sqrt(scale), epsilon: eps };
        runBasedStep(step, initialState.kvState, { before: initialState.kState, after: z }, out);
        return [out, z];
      }
      const shape = { batch: q.dim(0), tokens, heads: q.dim(2), featureDim: q.dim(3), valueDim: v.dim(3), chunk: tokens };
      const plan = planBased(shape, q.device.limits.maxComputeWorkgroupStorageSize, tuningFor(q.device).fill);
      runSweep({
        sweep: sweepOf(problem, { segments: 1, segmentTokens: tokens }),
        columns: plan.columns,
        tile: plan.tile,
        q,
        k,
        v,
        out,
        initial: { kv: initialState.kvState, z: initialState.kState },
        state: { kv: initialState.kvState, z },
        inPlace: true,
        normalise: problem.normalize,
      });
      return [out, z];
    },
  });
  const [out, z, kv] = made as [Tensor, Tensor, Tensor?];
  state.advance(tokens, { z, ...(kv && { kv }) });
  return out;
}
