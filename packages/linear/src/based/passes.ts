import { type Tensor, zeros } from '@heed/core';
import { asContiguous, empty } from '@heed/core/~internal';
import { tuningFor } from '../scan/scan.js';
import { runSegmentScan } from '../scan/segment-scan.js';
import { type FeatureKernels, featureKernels } from '../scan/features/forward.js';
import { compressState } from './kernels/state-layout.js';
import { runSweep, type TaylorState } from './kernels/sweep.js';
import type { BasedSweep } from './kernels/sweep-uniforms.js';
import { type BasedPlan, fullFeatures, planBased, symmetricFeatures } from './layout.js';
import type { BasedOptions, BasedStates } from './options.js';
import { taylorMap } from './taylor-map.js';

/** The forward pass on fragments, for f16. */
const taylorKernels: FeatureKernels = /* @__PURE__ */ featureKernels('based', ['scale'], taylorMap);

/** What the passes share. */
export interface BasedProblem {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  scale: number;
  causal: boolean;
  normalize: boolean;
  eps: number;
  /** Compressed. */
  initial: TaylorState | undefined;
  chunk: number | undefined;
  lengths: Tensor | undefined;
}

/** A problem from arguments; makes tensors in the current scope. */
export function problemOf(q: Tensor, k: Tensor, v: Tensor, options: BasedOptions): BasedProblem {
  const { scale = 1 / Math.sqrt(q.dim(3)), causal = true, normalize = true, eps = 1e-12, initialState, chunk, lengths } = options;
  return { q, k, v, scale, causal, normalize, eps, initial: initialState && compressed(initialState, q.dim(3)), chunk, lengths };
}

/** States in the compressed order, contiguous. */
export function compressed({ kvState, kState }: BasedStates, featureDim: number): TaylorState {
  // one coordinate: both orders are one
  if (kvState.dim(2) === fullFeatures(featureDim) && featureDim > 1)
    return { kv: compressState(kvState, featureDim), z: compressState(kState, featureDim) };
  return { kv: asContiguous(kvState), z: asContiguous(kState) };
}

/** Plan of a problem on its device. */
export function planOf({ k, v, chunk }: Pick<BasedProblem, 'k' | 'v' | 'chunk'>): BasedPlan {
  const shape = { batch: k.dim(0), tokens: k.dim(1), heads: k.dim(2), featureDim: k.dim(3), valueDim: v.dim(3), chunk };
  // four of its workgroups fit a multiprocessor: one wave; two waves took 0.5 ms more for states, measured on an H100
  return planBased(shape, k.device.limits.maxComputeWorkgroupStorageSize, tuningFor(k.device).fill);
}

/** The sweep of a problem by a plan. */
export function sweepOf(problem: BasedProblem, plan: Pick<BasedPlan, 'segments' | 'segmentTokens'>): BasedSweep {
  const { k, scale, eps, lengths } = problem;
  const { segments, segmentTokens } = plan;
  return {
    batch: k.dim(0),
    tokens: k.dim(1),
    heads: k.dim(2),
    segments,
    segmentTokens,
    stateSegments: segments,
    featureScale: Math.sqrt(scale),
    epsilon: eps,
    reverse: false,
    lengths,
  };
}

/** States of segments of a sweep: what each adds, summed to the state before each; `final` is the sum of all. */
export function segmentStates(
  source: { sweep: BasedSweep; plan: BasedPlan; k: Tensor; v: Tensor; weights?: Tensor | undefined; normaliser: boolean },
  initial: TaylorState | undefined,
  withFinal: boolean,
): { before: TaylorState; final: TaylorState | undefined } {
  const { sweep, plan, k, v, weights, normaliser } = source;
  const features = symmetricFeatures(k.dim(3));
  const lead = [sweep.batch, sweep.heads];
  const before: TaylorState = {
    kv: empty(k.device, [...lead, sweep.segments, features, v.dim(3)]),
    z: normaliser ? empty(k.device, [...lead, sweep.segments, features]) : undefined,
  };
  runSweep({ sweep, columns: plan.columns, tile: plan.tile, k, v, weights, state: before, normalise: false });
  const final: TaylorState | undefined = withFinal
    ? { kv: empty(k.device, [...lead, features, v.dim(3)]), z: normaliser ? empty(k.device, [...lead, features]) : undefined }
    : undefined;
  const scan = { ...sweep, tokensBefore: 0, queryScale: 1, keyScale: 1, lengths: undefined, decay: zeros(k.device, [sweep.heads]) };
  runSegmentScan(scan, features * v.dim(3), { states: before.kv, initial: initial?.kv, final: final?.kv });
  if (before.z) runSegmentScan(scan, features, { states: before.z, initial: initial?.z, final: final?.z });
  return { before, final };
}

/**
 * Outputs, denominators and the final state where they are wanted.
 * @returns out; norm f32 [batch, tokens, heads], empty without a normaliser; the state compressed
 */
export function basedForward(
  problem: BasedProblem,
  { withState, withNorm }: { withState: boolean; withNorm: boolean },
): { out: Tensor; norm: Tensor | undefined; state: TaylorState | undefined } {
  const { q, k, v, normalize, causal, initial } = problem;
  const features = symmetricFeatures(k.dim(3));
  const out = empty(v.device, v.shape, v.dtype);
  const norm = withNorm ? empty(v.device, normalize ? v.shape.slice(0, 3) : [0]) : undefined;
  if (out.size === 0) {
    const lead = [q.dim(0), q.dim(2), features];
    const state = initial
      ? { kv: initial.kv.alias(), z: initial.z?.alias() }
      : { kv: zeros(v.device, [...lead, v.dim(3)]), z: zeros(v.device, lead) };
    return { out, norm, state: withState ? state : undefined };
  }
  const onFragments = taylorKernels.tile(k, v);
  if (onFragments) {
    const lead = [q.dim(0), q.dim(2), features];
    const final = withState ? { kv: empty(v.device, [...lead, v.dim(3)]), z: empty(v.device, lead) } : undefined;
    const given = initial && { kv: initial.kv, z: initial.z ?? zeros(v.device, lead) };
    const values = { scale: problem.scale };
    const { eps, lengths, chunk } = problem;
    taylorKernels.run(
      { q, k, v, causal, normalise: normalize, eps, lengths, chunk, values },
      { out, norm: normalize ? norm : undefined, initial: given, final },
      onFragments,
    );
    return { out, norm, state: final };
  }
  const plan = planOf(problem);
  const sweep = sweepOf(problem, plan);
  const segmented = plan.segments > 1 || withState || !causal;
  // a stream keeps z whether or not it divides by it
  const states = segmented
    ? segmentStates({ sweep, plan, k, v, normaliser: normalize || withState }, initial, withState || !causal)
    : undefined;
  const before = causal ? (states?.before ?? initial) : states?.final;
  runSweep({
    sweep: causal ? sweep : { ...sweep, stateSegments: 1 },
    columns: plan.columns,
    tile: plan.tile,
    q,
    k,
    v,
    initial: before,
    update: causal,
    normalise: normalize,
    norm: normalize ? norm : undefined,
    out,
  });
  return { out, norm, state: withState ? states?.final : undefined };
}
