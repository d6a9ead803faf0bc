import {
  concat,
  type Device,
  type DType,
  full,
  HeedError,
  type MixContext,
  type Params,
  type RandomStream,
  reshape,
  rmsNorm,
  scope,
  slice,
  split,
  type State,
  type Tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { attentionMixer, type AttentionMixerParams, initLinear, linear, type LinearParams, projectQkv } from '@heed/core/nn';
import { type BaseConvConfig, baseConvMixer } from './conv.js';
import { based } from './forward.js';
import { HeldTensors } from '../scan/held-tensors.js';
import { type BasedState, basedStart, basedStep } from './stream.js';
import { slidingWindow } from './window.js';

/** Settings of a Taylor layer. */
export interface BasedMixerConfig {
  dim: number;
  heads: number;
  /** Width of queries and keys. Default 16. */
  featureDim?: number;
  /** Width of values. Default dim / heads. */
  headDim?: number;
  /** A root mean square norm with weights on each head's output (eps 1e-5), as the CUDA path of the official code has it. Default false. */
  headNorm?: boolean;
  /** See `based`. */
  scale?: number;
  eps?: number;
  chunk?: number;
  /** `f16`: products, queries, keys and values in f16. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a Taylor layer. */
export interface BasedMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, heads (2 featureDim + headDim)]. */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/**
 * The Taylor layer of Based as a token mixer: y = based(x Wq, x Wk, x Wv) Wo, no biases, no positions.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim and headDim is not given
 */
export function basedMixer(config: BasedMixerConfig): TokenMixer<BasedMixerParams, BasedState> {
  const { dim, heads, featureDim = 16, headNorm = false, precision = 'f32' } = config;
  const headDim = headDimOf('basedMixer', config);
  const options = {
    ...(config.scale !== undefined && { scale: config.scale }),
    ...(config.eps !== undefined && { eps: config.eps }),
    ...(config.chunk !== undefined && { chunk: config.chunk }),
  };

  function project(params: LinearParams, x: Tensor): [Tensor, Tensor, Tensor] {
    const fused = linear(params, x, { precision, outDType: precision });
    const parts = split(fused, [heads * featureDim, heads * featureDim, heads * headDim], 2);
    return parts.map((part) => reshape(part, [x.dim(0), x.dim(1), heads, part.dim(2) / heads])) as [Tensor, Tensor, Tensor];
  }

  function finish(params: BasedMixerParams, mixed: Tensor): Tensor {
    const normed = headNorm ? rmsNorm(mixed, params['headNorm'] as Tensor, { epsilon: 1e-5 }) : mixed;
    return linear(params.out, reshape(normed, [mixed.dim(0), mixed.dim(1), heads * headDim]), { precision, outDType: 'f32' });
  }

  return {
    name: 'based',
    init(device: Device, random: RandomStream): BasedMixerParams {
      const width = heads * headDim;
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: heads * (2 * featureDim + headDim) }),
        ...(headNorm && { headNorm: full(device, [headDim], 1) }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
      };
    },
    apply(params: BasedMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const [q, k, v] = project(params.qkv, x);
        return { out: finish(params, based(q, k, v, { ...options, ...(context.lengths && { lengths: context.lengths }) })) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): BasedState {
      return basedStart(device, { batch, heads, featureDim, valueDim: headDim, ...options });
    },
    step(params: BasedMixerParams, x: Tensor, state: BasedState): Tensor {
      return scope(() => {
        const [q, k, v] = project(params.qkv, x);
        return finish(params, basedStep(q, k, v, state));
      });
    },
  };
}

/** Settings of a window layer. */
export interface SlidingWindowMixerConfig {
  dim: number;
  heads: number;
  headDim?: number;
  /** Keys before its own that a query sees. Default 64. */
  left?: number;
  /** Rotary positions over the whole head dimension, or false. `base` default 10,000. */
  rope?: { base?: number } | false;
  precision?: 'f32' | 'f16';
}

/** The window layer of Based as a token mixer: causal softmax attention over left + 1 keys with rotary positions. The stream keeps `left` keys and values. */
export function slidingWindowMixer(config: SlidingWindowMixerConfig): TokenMixer<AttentionMixerParams, HeldTensors> {
  const { dim, heads, left = 64, rope = {}, precision = 'f32' } = config;
  const headDim = headDimOf('slidingWindowMixer', config);
  const shape = { heads, kvHeads: heads, headDim, precision, ...(rope && { rope }) };
  const inner = attentionMixer({ dim, heads, headDim, window: left + 1, precision, ...(rope && { rope }) });
  return {
    name: 'sliding-window',
    init: inner.init.bind(inner),
    apply: inner.apply.bind(inner),
    start(device: Device, { batch, dtype }: { batch: number; capacity: number; dtype: DType }): HeldTensors {
      const none = (): Tensor => zeros(device, [batch, 0, heads, headDim], { dtype: precision === 'f16' ? dtype : 'f32' });
      return new HeldTensors(device, 'sliding-window', { k: none(), v: none() }, [], true);
    },
    step(params: AttentionMixerParams, x: Tensor, state: HeldTensors): Tensor {
      const { out, k, v } = scope(() => {
        const made = projectQkv(params.qkv, x, shape, state.tokens);
        const all = (name: 'k' | 'v'): Tensor => (state.get(name).dim(1) === 0 ? made[name] : concat([state.get(name), made[name]], 1));
        const [keys, values] = [all('k'), all('v')];
        const mixed = slidingWindow(made.q, keys, values, { left });
        const last = (t: Tensor): Tensor => concat([slice(t, 1, Math.max(0, t.dim(1) - left), t.dim(1))], 1);
        const y = linear(params.out, reshape(mixed, [x.dim(0), x.dim(1), heads * headDim]), { precision, outDType: 'f32' });
        return { out: y, k: last(keys), v: last(values) };
      });
      state.advance(x.dim(1), { k, v });
      return out;
    },
  };
}

/** Which of the three layers stands where. */
export type BasedKind = 'taylor' | 'window' | 'conv';

/** The layer's kind in the reference stack: of every five the second is Taylor, the third a window, the others convolve; a deep stack ends with one. */
export function basedKind(layer: number, layers: number): BasedKind {
  if (layers > 5 && layer === layers - 1) return 'conv';
  return layer % 5 === 1 ? 'taylor' : layer % 5 === 2 ? 'window' : 'conv';
}

/** Settings of a layer of the hybrid model; each kind takes its own of them. */
export interface BasedLayerConfig
  extends BasedMixerConfig, Pick<SlidingWindowMixerConfig, 'left' | 'rope'>, Pick<BaseConvConfig, 'kernelSize' | 'expandProj'> {
  /** Index of the layer and their number. */
  layer: number;
  layers: number;
  /** In place of that of the reference stack. */
  kind?: BasedKind;
}

/**
 * One layer of the hybrid model of Based as a token mixer: Taylor, window or short convolution by its place, as in the reference stack of 27
 * layers (Taylor 1, 6, 11, 16, 21, window 2, 7, 12, 17, 22).
 */
export function basedLayerMixer(config: BasedLayerConfig): TokenMixer<Params, State> {
  const { layer, layers, kind = basedKind(layer, layers), left, rope, kernelSize, expandProj, ...taylor } = config;
  const { dim, heads, headDim, precision = 'f32' } = config;
  if (kind === 'taylor') return basedMixer(taylor) as TokenMixer<Params, State>;
  if (kind === 'window') {
    const given = { ...(headDim !== undefined && { headDim }), ...(left !== undefined && { left }), ...(rope !== undefined && { rope }) };
    return slidingWindowMixer({ dim, heads, precision, ...given }) as TokenMixer<Params, State>;
  }
  const given = { ...(kernelSize !== undefined && { kernelSize }), ...(expandProj !== undefined && { expandProj }) };
  return baseConvMixer({ dim, precision, ...given }) as unknown as TokenMixer<Params, State>;
}

function headDimOf(who: string, { dim, heads, headDim = dim / heads }: { dim: number; heads: number; headDim?: number }): number {
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `${who}: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  return headDim;
}
