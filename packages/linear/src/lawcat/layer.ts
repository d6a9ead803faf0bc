import { broadcastTo, concat, conv1d, HeedError, matmul, reshape, rope, scope, silu, type Tensor, transpose, unsqueeze } from '@heed/core';
import { lawcatFeatures } from './features.js';
import { lawcat } from './forward.js';
import type { LawcatForm } from './options.js';
import { lawcatWindow } from './window.js';

/** What LAWCAT puts between projections and output projection. */
export interface LawcatBranch {
  /** Depthwise filters over tokens, [heads headDim, taps]; the last tap is the current token. */
  convQ: Tensor;
  /** Default: `convQ`. */
  convK?: Tensor | undefined;
  /** Feature maps, [heads, headDim, features]; 2 features = headDim. */
  featureQ: Tensor;
  /** Default: `featureQ` (tied). */
  featureK?: Tensor | undefined;
  /** Weight of the softmax window a head, before the sigmoid, [heads]; only with `window`. */
  windowFactor?: Tensor | undefined;
}

/** Settings of the branch. */
export interface LawcatBranchOptions extends LawcatForm {
  /** Least feature. Default 1e-12. */
  featureEpsilon?: number;
  /** Behind the convolutions. Default `none`, as the released configurations. */
  activation?: 'none' | 'silu';
  /** Keys of a softmax window beside the linear part, the own one included. Default 0: none. */
  window?: number;
  /** The linear part has weight 1 - beta beside the window. Default false. */
  affine?: boolean;
  /** Rotary positions of the window's queries and keys, as the teacher's; `base` default 10,000. */
  rope?: { base?: number } | undefined;
  /** `f16` rounds operands of products to f16 where the device has tensor cores. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Keys, values or gates of kvHeads for all heads: head h takes floor(h heads / kvHeads). */
export function repeatHeads(x: Tensor, heads: number): Tensor {
  const [batch, tokens, kvHeads, width] = x.shape as [number, number, number, number];
  if (kvHeads === heads) return x;
  if (heads % kvHeads !== 0)
    throw new HeedError('SHAPE_MISMATCH', `lawcat: ${kvHeads} heads of keys and values do not divide ${heads} heads`);
  const group = heads / kvHeads;
  return reshape(broadcastTo(unsqueeze(x, 3), [batch, tokens, kvHeads, group, width]), [batch, tokens, heads, width]);
}

/**
 * Causal depthwise convolution over tokens a head and channel.
 * @param x [batch, tokens, heads, width]
 * @param weight [heads width, taps]
 * @param before rows in front of x, [batch, taps - 1, heads, width]; default zeros
 */
export function convTokens(x: Tensor, weight: Tensor, options: { before?: Tensor; activation?: 'none' | 'silu' } = {}): Tensor {
  const [batch, tokens, heads, width] = x.shape as [number, number, number, number];
  const channels = heads * width;
  if (weight.rank !== 2 || weight.dim(0) !== channels)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `lawcat: the filter is ${weight.describe()}; it must be [${channels}, taps], one a head and channel`,
    );
  if (tokens === 0) return x;
  const filter = reshape(transpose(weight), [weight.dim(1), 1, channels]);
  const input = reshape(options.before ? concat([options.before, x], 1) : x, [
    batch,
    tokens + (options.before ? weight.dim(1) - 1 : 0),
    channels,
  ]);
  const out = reshape(conv1d(input, filter, { groups: channels, padding: options.before ? 0 : 'causal' }), [batch, tokens, heads, width]);
  return options.activation === 'silu' ? silu(out) : out;
}

/**
 * LAWCAT behind the projections (Liu et al. 2025, section 3): keys and gates are repeated for all heads, queries and keys convolved
 * over tokens and mapped to features, then normalised gated linear attention.
 * @param q [batch, tokens, heads, headDim]
 * @param k [batch, tokens, kvHeads, headDim]; v as k
 * @param gate logits, [batch, tokens, kvHeads, headDim]
 * @returns o, [batch, tokens, heads, headDim], f32: what attention transfer holds against the teacher
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function lawcatMix(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, branch: LawcatBranch, options: LawcatBranchOptions = {}): Tensor {
  return scope(() => {
    const heads = q.dim(2);
    const { window = 0, activation = 'none' } = options;
    const [keys, values, logits] = [k, v, gate].map((x) => repeatHeads(x, heads)) as [Tensor, Tensor, Tensor];
    const { phiQ, phiK } = mapped(
      convTokens(q, branch.convQ, { activation }),
      convTokens(keys, branch.convK ?? branch.convQ, { activation }),
      branch,
      options,
    );
    if (window === 0) return lawcat(phiQ, phiK, values, { ...options, gate: logits });
    const turned = (x: Tensor): Tensor => (options.rope ? rope(x, { base: options.rope.base ?? 10_000 }) : x);
    return lawcatWindow(turned(q), turned(keys), values, {
      ...options,
      gate: logits,
      features: { q: phiQ, k: phiK },
      window,
      windowFactor: windowFactorOf(branch),
    });
  });
}

export function windowFactorOf(branch: LawcatBranch): Tensor {
  if (!branch.windowFactor)
    throw new HeedError(
      'INVALID_ARGUMENT',
      'lawcat: a window was asked for and there is no windowFactor; give one a head, zeros at the start',
    );
  return branch.windowFactor;
}

/** Features of convolved queries and keys. */
export function mapped(q: Tensor, k: Tensor, branch: LawcatBranch, options: LawcatBranchOptions): { phiQ: Tensor; phiK: Tensor } {
  const { featureEpsilon: epsilon = 1e-12, precision = 'f32' } = options;
  const [headDim, features] = [q.dim(3), branch.featureQ.shape[2] ?? 0];
  if (2 * features !== headDim)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `lawcat: featureQ is ${branch.featureQ.describe()}; twice its features must be headDim ${headDim}, since a gate logit belongs to each feature`,
    );
  return {
    phiQ: lawcatFeatures(q, branch.featureQ, { epsilon, precision }),
    phiK: lawcatFeatures(k, branch.featureK ?? branch.featureQ, { epsilon, precision }),
  };
}

/** Weights of a whole layer, [outputs, inputs] as the published ones. */
export interface LawcatLayerParams extends LawcatBranch {
  /** [heads headDim, dim] */
  wq: Tensor;
  /** [kvHeads headDim, dim] */
  wk: Tensor;
  wv: Tensor;
  /** [dim, heads headDim] */
  wo: Tensor;
  /** [rank, dim]; absent: a gate of full rank from x. */
  wGateDown?: Tensor | undefined;
  /** [kvHeads headDim, rank or dim] */
  wGateUp: Tensor;
  /** [kvHeads headDim] */
  bGateUp?: Tensor | undefined;
}

/**
 * A layer: projections, gate logits of low rank, `lawcatMix`, output projection.
 * @param x [batch, tokens, dim]
 * @returns y [batch, tokens, dim], and o in front of the output projection
 */
export function lawcatLayer(
  params: LawcatLayerParams,
  x: Tensor,
  options: LawcatBranchOptions & { heads: number; kvHeads?: number },
): { y: Tensor; o: Tensor } {
  const { heads, kvHeads = heads, ...rest } = options;
  const { precision = 'f32' } = options;
  return scope(() => {
    const [batch, tokens] = [x.dim(0), x.dim(1)];
    const times = (input: Tensor, w: Tensor, bias?: Tensor): Tensor =>
      matmul(input, w, { transposeB: true, precision, outDType: 'f32', bias });
    const project = (w: Tensor, count: number): Tensor => reshape(times(x, w), [batch, tokens, count, w.dim(0) / count]);
    const logits = times(params.wGateDown ? times(x, params.wGateDown) : x, params.wGateUp, params.bGateUp);
    const gate = reshape(logits, [batch, tokens, kvHeads, logits.dim(2) / kvHeads]);
    const o = lawcatMix(project(params.wq, heads), project(params.wk, kvHeads), project(params.wv, kvHeads), gate, params, rest);
    return { y: times(reshape(o, [batch, tokens, o.dim(2) * o.dim(3)]), params.wo), o };
  });
}
