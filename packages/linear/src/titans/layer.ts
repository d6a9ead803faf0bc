import {
  concat,
  conv1d,
  HeedError,
  l2Normalize,
  matmul,
  mean,
  mul,
  pointwise,
  reshape,
  rmsNorm,
  scope,
  sigmoid,
  silu,
  slice,
  split,
  type Tensor,
  unsqueeze,
} from '@heed/core';
import { titans } from './forward.js';
import type { TitansMemory } from './memory.js';
import type { TitansForm, TitansOptions } from './options.js';

/** Weights of a memory layer, [outputs, inputs] as the published ones; heads are the slow axis of rows. */
export interface TitansLayerParams {
  /** Gains of the norms in front of what is stored and what is asked, [dim]. */
  storeNorm: Tensor;
  retrieveNorm: Tensor;
  /** [heads headDim, dim] */
  wq: Tensor;
  wk: Tensor;
  wv: Tensor;
  /** Taps of causal depthwise convolutions behind the projections of q, k and v, [taps, 3, heads headDim]; the last is the own token's. */
  taps?: Tensor | undefined;
  /** Step of each token, [heads, dim] and [heads]. */
  wRate: Tensor;
  bRate: Tensor;
  /** Share of momentum that stays, a chunk; [heads * orders, dim]. None: no momentum. */
  wMomentum?: Tensor | undefined;
  bMomentum?: Tensor | undefined;
  /** Share of the memory that goes, a chunk. */
  wForget: Tensor;
  bForget: Tensor;
  /** Gains - 1 of the norms of queries and keys, [heads, headDim]. */
  qGain?: Tensor | undefined;
  kGain?: Tensor | undefined;
  /** Gain - 1 of a norm a head on what was retrieved, [heads, headDim]. */
  outGain?: Tensor | undefined;
  /** Gate a head on what was retrieved, [heads, dim]. */
  wGate?: Tensor | undefined;
  /** [dim, heads headDim] */
  wOut?: Tensor | undefined;
  memory: TitansMemory;
}

/** Settings of a memory layer. */
export interface TitansLayerOptions extends TitansForm {
  heads: number;
  /** Factor on the sigmoid of a token's step. Default 1. */
  maxRate?: number;
  /** On queries and keys a head: `rms`, then the gain where there is one; `l2`: the paper's Euclidean length. Default `rms` with gains, else `none`. */
  qkNorm?: 'rms' | 'l2' | 'none';
  /** Behind the projections of q, k and v; the paper has `silu`. Default `none`. */
  projectionActivation?: 'none' | 'silu';
  /** Of the RMS norms. Default 2^-23, the epsilon of f32. */
  rmsEpsilon?: number;
}

const rated = pointwise((x, b, most) => x.add(b).sigmoid().mul(most), { name: 'titans-rate' });
const gained = pointwise((x, gain) => x.mul(gain.add(1)), { name: 'titans-gain' });

/** What a layer drives its memory with. */
export interface TitansDrive {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** [batch, tokens, heads] */
  rate: Tensor;
  /** The normed input that is stored, [batch, tokens, dim]. */
  stored: Tensor;
  /** The normed input that asks. */
  asking: Tensor;
  /** The last projections, which the convolution of the next tokens reads: f32 [batch, taps - 1, 3 heads headDim]. */
  past?: Tensor;
}

/**
 * Queries, keys, values and steps of tokens.
 * @param past what the tokens before gave, where `params.taps` are; default zeros
 */
export function titansDrive(params: TitansLayerParams, x: Tensor, options: TitansLayerOptions, past?: Tensor): TitansDrive {
  const { heads, maxRate = 1, rmsEpsilon: epsilon = 2 ** -23, precision = 'f32' } = options;
  const [batch, tokens] = [x.dim(0), x.dim(1)];
  const width = params.wq.dim(0);
  if (width % heads !== 0)
    throw new HeedError('SHAPE_MISMATCH', `titansLayer: wq is ${params.wq.describe()}; its rows must be a multiple of heads ${heads}`);
  const stored = rmsNorm(x, params.storeNorm, { epsilon });
  const asking = rmsNorm(x, params.retrieveNorm, { epsilon });
  const project = (input: Tensor, w: Tensor): Tensor => matmul(input, w, { transposeB: true, precision, outDType: 'f32' });
  const projected = [project(asking, params.wq), project(stored, params.wk), project(stored, params.wv)];
  const [mixed, left] = params.taps ? convolved(projected, params.taps, past) : [projected, undefined];
  const [q, k, v] = mixed.map((one) => {
    const made = reshape(one, [batch, tokens, heads, width / heads]);
    return options.projectionActivation === 'silu' ? silu(made) : made;
  }) as [Tensor, Tensor, Tensor];
  const normed = (t: Tensor, gain: Tensor | undefined): Tensor => {
    const kind = options.qkNorm ?? (gain ? 'rms' : 'none');
    const unit = kind === 'rms' ? rmsNorm(t, undefined, { epsilon }) : kind === 'l2' ? l2Normalize(t) : t;
    return gain ? gained(unit, gain) : unit;
  };
  return {
    q: normed(q, params.qGain),
    k: normed(k, params.kGain),
    v,
    rate: rated(reshape(matmul(stored, params.wRate, { transposeB: true }), [batch, tokens, heads]), params.bRate, maxRate),
    stored,
    asking,
    ...(left && { past: left }),
  };
}

/** Each channel of q, k and v convolved along the tokens, and what the convolution of later tokens needs of these. */
function convolved(projected: readonly Tensor[], taps: Tensor, past: Tensor | undefined): [readonly Tensor[], Tensor | undefined] {
  const all = concat(projected, 2);
  const channels = all.dim(2);
  if (taps.rank !== 3 || taps.dim(1) * taps.dim(2) !== channels)
    throw new HeedError('SHAPE_MISMATCH', `titansLayer: taps are ${taps.describe()}; they must be [taps, 3, ${channels / 3}]`);
  if (all.dim(1) === 0) return [projected, past];
  const reach = taps.dim(0) - 1;
  const weight = reshape(taps, [reach + 1, 1, channels]);
  const joined = past && concat([past, all], 1);
  const mixed = joined ? conv1d(joined, weight, { groups: channels }) : conv1d(all, weight, { groups: channels, padding: 'causal' });
  return [split(mixed, 3, 2), joined && slice(joined, 1, joined.dim(1) - reach)];
}

/**
 * Momentum and forgetting of chunks from the means of what they store.
 * @param means [batch, chunks, dim]
 */
export function titansGates(params: TitansLayerParams, means: Tensor, heads: number): { momentum: readonly Tensor[]; forget: Tensor } {
  const gate = (w: Tensor, b: Tensor): Tensor => rated(matmul(means, w, { transposeB: true }), b, 1);
  const forget = gate(params.wForget, params.bForget);
  if (!params.wMomentum || !params.bMomentum) return { momentum: [], forget };
  const eta = gate(params.wMomentum, params.bMomentum);
  const orders = eta.dim(2) / heads;
  if (orders === 1) return { momentum: [eta], forget };
  // rows are (head, order): orders of a head lie side by side
  const apart = reshape(eta, [eta.dim(0), eta.dim(1), heads, orders]);
  return { momentum: split(apart, orders, 3).map((one) => reshape(one, [eta.dim(0), eta.dim(1), heads])), forget };
}

/** Norm, gate, merge and projection of what was retrieved, [batch, tokens, heads, headDim]. */
export function titansFinish(params: TitansLayerParams, retrieved: Tensor, asking: Tensor, options: TitansLayerOptions): Tensor {
  const { rmsEpsilon: epsilon = 2 ** -23, precision = 'f32' } = options;
  const [batch, tokens, heads, headDim] = retrieved.shape as [number, number, number, number];
  let o = params.outGain ? gained(rmsNorm(retrieved, undefined, { epsilon }), params.outGain) : retrieved;
  if (params.wGate) o = mul(o, unsqueeze(sigmoid(matmul(asking, params.wGate, { transposeB: true })), 3));
  const merged = reshape(o, [batch, tokens, heads * headDim]);
  return params.wOut ? matmul(merged, params.wOut, { transposeB: true, precision, outDType: 'f32' }) : merged;
}

/** Means of whole chunks, [batch, chunks, dim]. */
export function chunkMeans(stored: Tensor, chunkSize: number): Tensor {
  const [batch, tokens, dim] = stored.shape as [number, number, number];
  const chunks = Math.floor(tokens / chunkSize);
  const whole = chunks * chunkSize === tokens ? stored : (split(stored, [chunks * chunkSize, tokens - chunks * chunkSize], 1)[0] as Tensor);
  return chunks === 0 ? reshape(whole, [batch, 0, dim]) : mean(reshape(whole, [batch, chunks, chunkSize, dim]), 2);
}

/**
 * The memory as a layer (the LMM of the paper's section 4.4, wired as the implementation that the sheet follows): RMS norms, projections, gates
 * by sigmoids, memory, gate a head, projection.
 * @param x [batch, tokens, dim]
 * @returns the shape of x
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function titansLayer(params: TitansLayerParams, x: Tensor, options: TitansLayerOptions): Tensor {
  return scope(() => {
    const { q, k, v, rate, stored, asking } = titansDrive(params, x, options);
    const { momentum, forget } = titansGates(params, chunkMeans(stored, options.chunkSize), options.heads);
    const memory: TitansOptions = {
      ...options,
      memory: params.memory,
      learningRate: rate,
      forget,
      ...(momentum.length > 0 && { momentum }),
    };
    return titansFinish(params, titans(q, k, v, memory), asking, options);
  });
}
