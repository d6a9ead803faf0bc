import {
  add,
  concat,
  conv1d,
  conv2d,
  type Device,
  type DType,
  full,
  HeedError,
  type Layer,
  layerNorm,
  type MixContext,
  mul,
  type Params,
  type RandomStream,
  reshape,
  scope,
  silu,
  slice,
  split,
  type Tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { initLinear, linear, type LinearParams, truncatedNormal } from '@heed/core/nn';
import type { RotaryTable } from './feature-kernels.js';
import { nalaformer } from './forward.js';
import type { NalaformerOptions } from './options.js';
import { nalaformerRope } from './rope.js';
import { type NalaformerState, nalaformerStart, nalaformerStep } from './stream.js';

/** Options that a layer hands to the attention. */
type Attention = Pick<NalaformerOptions, 'lambda' | 'tau' | 'keyPower' | 'map' | 'angleScale' | 'eps'>;

/** Parameters of the picture layer. */
export interface NalaformerLayerParams {
  [name: string]: Params;
  /** Queries, keys, values and gate in this order, [dim, 4 dim] and bias. */
  qkvg: LinearParams;
  /** Local positions: depthwise taps [edge, edge, 1, dim] and bias [dim]. */
  lepe: Tensor;
  lepeBias: Tensor;
  norm: Tensor;
  normBias: Tensor;
  /** [dim, dim] and bias */
  out: LinearParams;
}

/**
 * The attention layer of NaLaFormer on pictures: q, k, v, g = x W + b; a = nalaformer(q, k, v) + depthwise convolution of v;
 * y = (LayerNorm(a) * silu(g)) Wout + bout.
 * @param x [batch, height, width, dim]
 * @param options.rope of the numerator, [height width, dim / heads]; absent: no positions but the convolution's
 * @param options.lnEps default 1e-5
 * @returns the shape of x; differentiable in x and every parameter
 */
export function nalaformerLayerForward(
  params: NalaformerLayerParams,
  x: Tensor,
  options: Attention & { heads: number; rope?: RotaryTable; lnEps?: number; precision?: 'f32' | 'f16' },
): Tensor {
  const { heads, lnEps = 1e-5, precision = 'f32', ...attention } = options;
  if (x.rank !== 4 || x.dim(3) % heads !== 0)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `nalaformerLayer: x is ${x.describe()}; it must be [batch, height, width, dim] with ${heads} heads dividing dim`,
    );
  const [batch, height, width, dim] = x.shape as [number, number, number, number];
  return scope(() => {
    const [q, k, v, gate] = split(linear(params.qkvg, x, { precision }), 4, 3) as [Tensor, Tensor, Tensor, Tensor];
    const byHead = (t: Tensor): Tensor => reshape(t, [batch, height * width, heads, dim / heads]);
    const mixed = reshape(nalaformer(byHead(q), byHead(k), byHead(v), attention), x.shape);
    const edge = params.lepe.dim(0);
    const local = conv2d(v, params.lepe, { groups: dim, padding: (edge - 1) / 2, bias: params.lepeBias });
    const normed = layerNorm(add(mixed, local), params.norm, params.normBias, { epsilon: lnEps });
    return linear(params.out, mul(normed, silu(gate)), { precision });
  });
}

/** Settings of the picture layer. */
export interface NalaformerLayerConfig extends Attention {
  dim: number;
  heads: number;
  /** Edge of the local convolution, odd. Default 5. */
  lepeKernel?: number;
  lnEps?: number;
  /** Base of the rotary angles, or false for none. Default 10,000. */
  ropeBase?: number | false;
  precision?: 'f32' | 'f16';
}

/**
 * The attention layer of NaLaFormer as a layer of an image model, x [batch, height, width, dim]. It has no stream: pictures are not read token
 * by token.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim, or the head dimension has no rotary quarters
 */
export function nalaformerLayer(config: NalaformerLayerConfig): Layer<NalaformerLayerParams> {
  const { dim, heads, lepeKernel = 5, ropeBase = 10_000, ...rest } = config;
  const headDim = dim / heads;
  if (!Number.isInteger(headDim) || (ropeBase !== false && headDim % 4 !== 0))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `nalaformerLayer: dim ${dim} with ${heads} heads; heads must divide dim, and rotary positions need a head dimension that is a multiple of 4`,
    );
  return {
    name: 'nalaformer',
    init(device: Device, random: RandomStream): NalaformerLayerParams {
      return {
        qkvg: initLinear(device, random.stream('qkvg'), { inputs: dim, outputs: 4 * dim, bias: true, std: 0.02 }),
        lepe: truncatedNormal(device, random.stream('lepe'), [lepeKernel, lepeKernel, 1, dim], 0.02),
        lepeBias: zeros(device, [dim]),
        norm: full(device, [dim], 1),
        normBias: zeros(device, [dim]),
        out: initLinear(device, random.stream('out'), { inputs: dim, outputs: dim, bias: true, std: 0.02 }),
      };
    },
    apply(params: NalaformerLayerParams, x: Tensor): { out: Tensor } {
      return scope(() => {
        const size = { height: x.dim(1), width: x.dim(2), headDim };
        const rope = ropeBase === false ? {} : { rope: nalaformerRope(x.device, { ...size, base: ropeBase }) };
        return { out: nalaformerLayerForward(params, x, { heads, ...rest, ...rope }) };
      });
    },
  };
}

/** Settings of the causal token mixer. */
export interface NalaformerMixerConfig extends Attention {
  dim: number;
  heads: number;
  /** Default dim / heads. */
  headDim?: number;
  /** `silu(x Wg)` behind the norm. Default true. */
  gate?: boolean;
  /**
   * Taps of a causal depthwise convolution of the values, added to the attention as in the picture layer: the attention itself knows
   * no order. 0: none. Default 5.
   */
  lepeKernel?: number;
  /** `f16`: products in f16; features, powers and sums are f32. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of the causal token mixer; `lepe` [lepeKernel, 1, heads headDim] and `lepeBias` where it has a local convolution. */
export interface NalaformerMixerParams {
  [name: string]: Params;
  /** Queries, keys, values and the gate, [dim, 3 or 4 heads headDim]. */
  qkvg: LinearParams;
  norm: Tensor;
  normBias: Tensor;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/**
 * The causal form as a token mixer, for language: y = (LayerNorm(nalaformer(q, k, v) + conv(v)) * silu(g)) Wout. The paper's language
 * experiments use a causal form whose code is not public; this one is the picture layer read in one direction.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim and headDim is not given; INVALID_ARGUMENT for a `lepeKernel` that is no whole number
 */
export function nalaformerMixer(config: NalaformerMixerConfig): TokenMixer<NalaformerMixerParams, NalaformerState> {
  const { dim, heads, headDim = dim / heads, gate = true, lepeKernel = 5, precision = 'f32', ...attention } = config;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `nalaformerMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  if (!Number.isInteger(lepeKernel) || lepeKernel < 0)
    throw new HeedError('INVALID_ARGUMENT', `nalaformerMixer: lepeKernel is ${lepeKernel}; it must be an integer of 0 (none) or more`);
  const width = heads * headDim;
  const parts = gate ? 4 : 3;

  function project(params: LinearParams, x: Tensor): Tensor[] {
    const fused = reshape(linear(params, x, { precision, outDType: 'f32' }), [x.dim(0), x.dim(1), parts * heads, headDim]);
    return split(fused, parts, 2);
  }

  /** The convolution of the values; behind `past`, or from the start of a sequence. */
  function local(params: NalaformerMixerParams, values: Tensor, past?: Tensor): Tensor {
    if (values.dim(1) === 0) return values;
    const taps = params['lepe'] as Tensor;
    const common = { groups: width, bias: params['lepeBias'] as Tensor };
    return past ? conv1d(concat([past, values], 1), taps, common) : conv1d(values, taps, { ...common, padding: 'causal' });
  }

  function finish(params: NalaformerMixerParams, mixed: Tensor, v: Tensor, u: Tensor | undefined, past?: Tensor): Tensor {
    const flat = [mixed.dim(0), mixed.dim(1), width];
    const read = reshape(mixed, flat);
    const a = lepeKernel > 0 ? add(read, local(params, reshape(v, flat), past)) : read;
    const normed = layerNorm(a, params.norm, params.normBias);
    return linear(params.out, u ? mul(normed, silu(reshape(u, flat))) : normed, { precision, outDType: 'f32' });
  }

  return {
    name: 'nalaformer',
    init(device: Device, random: RandomStream): NalaformerMixerParams {
      return {
        qkvg: initLinear(device, random.stream('qkvg'), { inputs: dim, outputs: parts * width }),
        ...(lepeKernel > 0 && {
          lepe: truncatedNormal(device, random.stream('lepe'), [lepeKernel, 1, width], 0.2),
          lepeBias: zeros(device, [width]),
        }),
        norm: full(device, [width], 1),
        normBias: zeros(device, [width]),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
      };
    },
    apply(params: NalaformerMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const [q, k, v, u] = project(params.qkvg, x) as [Tensor, Tensor, Tensor, Tensor?];
        const mixed = nalaformer(q, k, v, { ...attention, causal: true, ...(context.lengths && { lengths: context.lengths }) });
        return { out: finish(params, mixed, v, u) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): NalaformerState {
      const past = lepeKernel > 1 ? zeros(device, [batch, lepeKernel - 1, width]) : undefined;
      return nalaformerStart(device, { batch, heads, headDim, ...attention }, past);
    },
    step(params: NalaformerMixerParams, x: Tensor, state: NalaformerState): Tensor {
      const { out, pastValues } = scope(() => {
        const [q, k, v, u] = project(params.qkvg, x) as [Tensor, Tensor, Tensor, Tensor?];
        const before = lepeKernel > 1 ? state.get('pastValues') : undefined;
        const flat = reshape(v, [x.dim(0), x.dim(1), width]);
        const all = before && concat([before, flat], 1);
        return {
          out: finish(params, nalaformerStep(q, k, v, state), v, u, before),
          ...(all && { pastValues: concat([slice(all, 1, x.dim(1))], 1) }),
        };
      });
      state.advance(0, pastValues && { pastValues });
      return out;
    },
  };
}
