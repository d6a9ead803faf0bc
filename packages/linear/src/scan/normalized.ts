import { type FloatDType, full, pointwise, scope, type Tensor, zeros } from '@heed/core';
import { currentTape } from '@heed/core/~internal';
import { checkDecayScan } from './decay-scan.js';
import { checkState } from './options.js';
import { canNormalizeGated, normalizedGated } from './gated-normalized.js';
import { linearScan, type LinearScanOptions, linearScanStep, linearScanWithState, wayOf } from './linear-scan.js';

/** Options of a scan with a normaliser. */
export interface NormalizedScanOptions extends LinearScanOptions {
  /** Added to the normaliser. Default 1e-10. */
  eps?: number;
  /** Sum of decayed keys before the first token, f32 [batch, heads, keyDim, 1]; with `initialState`. Default zeros. Differentiable. */
  initialKeySum?: Tensor;
}

/**
 * `linearScan` divided by the scan of a column of ones: out_t = (q_t S_t) / (q_t z_t + eps), where the key sum z forgets as S does.
 * Features must be positive for the quotient to be an average. Numerator and normaliser are f32, out has the dtype of v. With a gate,
 * f16 operands and fragments, and where nothing is differentiated, both are made by the dispatches of one scan.
 * @param options.scale multiplies numerator and normaliser: only `eps` notices
 */
export function normalizedScan(q: Tensor, k: Tensor, v: Tensor, options: NormalizedScanOptions = {}, who = 'normalizedScan'): Tensor {
  const fused = inOneScan(q, k, v, options, false, who);
  if (fused) return fused.out;
  const { values, sums } = split(options);
  return scope(() => quotient(linearScan(q, k, v, values, who), linearScan(q, k, ones(v), sums, who), v, options));
}

/**
 * As `normalizedScan`, and both states behind the last token: state f32 [batch, heads, keyDim, valueDim] and keySum f32
 * [batch, heads, keyDim, 1]. `concat([state, keySum], 3)` is the state of v with a column of ones.
 */
export function normalizedScanWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: NormalizedScanOptions = {},
  who = 'normalizedScanWithState',
): { out: Tensor; state: Tensor; keySum: Tensor } {
  const fused = inOneScan(q, k, v, options, true, who);
  if (fused?.states) return { out: fused.out, ...fused.states };
  const { values, sums } = split(options);
  return scope(() => {
    const scanned = linearScanWithState(q, k, v, values, who);
    const normalizer = linearScanWithState(q, k, ones(v), sums, who);
    return { out: quotient(scanned.out, normalizer.out, v, options), state: scanned.state, keySum: normalizer.state };
  });
}

/** The next tokens of a stream; state and keySum, contiguous f32, are updated in place. No gradient. */
export function normalizedScanStep(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  states: { state: Tensor; keySum: Tensor },
  options: Omit<NormalizedScanOptions, 'initialState' | 'initialKeySum'> = {},
  who = 'normalizedScanStep',
): Tensor {
  const { values, sums } = split(options);
  return scope(() =>
    quotient(linearScanStep(q, k, v, states.state, values, who), linearScanStep(q, k, ones(v), states.keySum, sums, who), v, options),
  );
}

/** Numerator and normaliser in the dispatches of one scan, where fragments hold the state and nothing is differentiated. */
function inOneScan(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: NormalizedScanOptions,
  withState: boolean,
  who: string,
): { out: Tensor; states: { state: Tensor; keySum: Tensor } | undefined } | undefined {
  const { gate, initialState, initialKeySum, lengths, chunk, scale = 1, eps = 1e-10, outDType = v.dtype as FloatDType, ...rest } = options;
  const inputs = [q, k, v, gate, initialState, initialKeySum].flatMap((x) => (x ? [x] : []));
  const tape = currentTape();
  if (!gate || inputs.some((x) => tape?.isTracked(x)) || [q, k, v].some((x) => x.dtype !== 'f16' || x.rank !== 4)) return undefined;
  checkDecayScan(who, q, k, v, split(options).values);
  wayOf(who, q, { ...rest, gate });
  if (initialKeySum) checkState(who, initialKeySum, [q.dim(0), q.dim(2), q.dim(3), 1]);
  const problem = { q, k, v, gate, lengths, scale, chunk };
  if (!canNormalizeGated(problem)) return undefined;
  return scope(() => {
    const missing = (columns: number): Tensor => zeros(q.device, [q.dim(0), q.dim(2), q.dim(3), columns]);
    const given = initialState ?? initialKeySum;
    const initial = given && { state: initialState ?? missing(v.dim(3)), keySum: initialKeySum ?? missing(1) };
    const { out, final } = normalizedGated(problem, initial, { eps, withState, outDType });
    return { out, states: final };
  });
}

function split(options: NormalizedScanOptions): { values: LinearScanOptions; sums: LinearScanOptions } {
  const { eps: _, initialState, initialKeySum, outDType: __, ...rest } = options;
  // an unnormalised sum over tokens leaves the range of f16
  const common = { ...rest, outDType: 'f32' as const };
  return {
    values: { ...common, ...(initialState && { initialState }) },
    sums: { ...common, ...(initialKeySum && { initialState: initialKeySum }) },
  };
}

/** One column of ones: a view without strides. */
function ones(v: Tensor): Tensor {
  const one = full(v.device, [1], 1, { dtype: v.dtype as FloatDType });
  return one.view({ shape: [v.dim(0), v.dim(1), v.dim(2), 1], strides: [0, 0, 0, 1] });
}

function quotient(
  out: Tensor,
  normalizer: Tensor,
  v: Tensor,
  { eps = 1e-10, outDType = v.dtype as FloatDType }: NormalizedScanOptions,
): Tensor {
  return quotients[outDType](out, normalizer, eps);
}

const divided = (dtype: FloatDType): ReturnType<typeof pointwise> =>
  pointwise((n, z, eps) => n.div(z.add(eps)), { name: 'scan-quotient', dtype });
const quotients: Record<FloatDType, ReturnType<typeof pointwise>> = { f32: divided('f32'), f16: divided('f16') };
