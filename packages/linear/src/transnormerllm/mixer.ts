import {
  type Device,
  type DType,
  HeedError,
  type MixContext,
  mul,
  type Params,
  type RandomStream,
  reshape,
  scope,
  split,
  type Tensor,
  tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { activationOf, type LayerActivation } from '../layer/activation.js';
import { decayFromSlopes, lightning2Slopes, type SlopeScheme } from '../scan/slopes.js';
import { lrpeAngles, srmsNorm, transnormerllm } from './forward.js';
import { transnormerllmStart, type TransnormerllmState, transnormerllmStep } from './stream.js';

/** Settings of gated linear attention (GLA). */
export interface TransnormerllmMixerConfig {
  dim: number;
  heads: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Index of the layer and their number: the decay's factor, and LRPE in the first layer. Default: no factor, no LRPE. */
  layer?: number;
  layers?: number;
  /** LRPE on queries and keys, with trained angles. Default: in layer 0 alone, as the paper has it. */
  lrpe?: boolean;
  /** Convention of the decay. Default `alibi`. */
  scheme?: SlopeScheme;
  /** Log-decay a head in place of the slopes, [heads], <= 0; zeros for none. */
  decay?: readonly number[];
  /** On queries and keys. Default `silu`. */
  activation?: LayerActivation;
  /** Gate u behind the norm. Default true; false leaves it out (the paper's ablation). */
  gate?: boolean;
  /** Default 1e-6. */
  normEps?: number;
  /** Factor on q.k. Default 1 / headDim in f16 (the norm behind takes it out again but for eps), else 1. */
  scale?: number;
  /** Tokens a segment. Default: as many segments as fill the device. */
  chunk?: number;
  /** `f16`: products, queries, keys, values and gates in f16. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of GLA. */
export interface TransnormerllmMixerParams {
  [name: string]: Params;
  /** Queries, keys, values and gates in one weight, [dim, 4 heads headDim] (3 without a gate). */
  qkvu: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/** With LRPE also its angles, f32 [heads, headDim], under the name `theta`. */
function anglesOf(params: TransnormerllmMixerParams): { theta?: Tensor } {
  const theta = params['theta'] as Tensor | undefined;
  return theta ? { theta } : {};
}

/**
 * GLA of TransNormerLLM as a token mixer (Qin et al. 2023, eq. 5 to 7): q, k = silu(x Wq), silu(x Wk), with LRPE in the first layer;
 * y = (SRMSNorm(transnormerllm(q, k, x Wv)) * x Wu) Wo, the norm over all heads and without weights.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim and headDim is not given; UNSUPPORTED for positions of one's own with LRPE
 */
export function transnormerllmMixer(config: TransnormerllmMixerConfig): TokenMixer<TransnormerllmMixerParams, TransnormerllmState> {
  const { dim, heads, layer, layers, scheme = 'alibi', chunk, normEps = 1e-6, gate = true, precision = 'f32' } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `transnormerllmMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`,
    );
  const { lrpe = layer === 0, scale = precision === 'f16' ? 1 / headDim : 1 } = config;
  const activate = activationOf('transnormerllmMixer', config.activation ?? 'silu');
  const place = layer === undefined || layers === undefined ? {} : { layer, layers };
  const decay = config.decay ?? decayFromSlopes(lightning2Slopes({ heads, scheme, ...place }));
  const width = heads * headDim;
  const parts = gate ? 4 : 3;
  const common = { decay, scale, ...(chunk !== undefined && { chunk }) };

  function project(params: LinearParams, x: Tensor): [Tensor, Tensor, Tensor, Tensor | undefined] {
    const fused = reshape(linear(params, x, { precision, outDType: precision }), [x.dim(0), x.dim(1), parts * heads, headDim]);
    const [queriesKeys, v, u] = split(fused, gate ? [2 * heads, heads, heads] : [2 * heads, heads], 2) as [Tensor, Tensor, Tensor?];
    const [q, k] = split(activate(queriesKeys), 2, 2) as [Tensor, Tensor];
    return [q, k, v, u];
  }

  function finish(params: LinearParams, mixed: Tensor, u: Tensor | undefined): Tensor {
    const flat = [mixed.dim(0), mixed.dim(1), width];
    const normed = reshape(srmsNorm(reshape(mixed, flat), { eps: normEps }), mixed.shape);
    return linear(params, reshape(u ? mul(normed, u) : normed, flat), { precision, outDType: 'f32' });
  }

  function checkPositions(context: MixContext): void {
    if (lrpe && context.positions)
      throw new HeedError(
        'UNSUPPORTED',
        'transnormerllmMixer: positions were given; LRPE counts tokens from the start of the sequence or stream, leave them out',
      );
  }

  return {
    name: 'transnormerllm',
    init(device: Device, random: RandomStream): TransnormerllmMixerParams {
      return {
        qkvu: initLinear(device, random.stream('qkvu'), { inputs: dim, outputs: parts * width }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
        ...(lrpe && { theta: tensor(device, lrpeAngles({ heads, headDim }), [heads, headDim]) }),
      };
    },
    apply(params: TransnormerllmMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      checkPositions(context);
      return scope(() => {
        const [q, k, v, u] = project(params.qkvu, x);
        const lengths = context.lengths && { lengths: context.lengths };
        return { out: finish(params.out, transnormerllm(q, k, v, { ...common, ...anglesOf(params), ...lengths }), u) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): TransnormerllmState {
      return transnormerllmStart(device, { batch, heads, headDim, lrpe, ...common });
    },
    step(params: TransnormerllmMixerParams, x: Tensor, state: TransnormerllmState, context: MixContext): Tensor {
      checkPositions(context);
      return scope(() => {
        const [q, k, v, u] = project(params.qkvu, x);
        return finish(params.out, transnormerllmStep(q, k, v, state, anglesOf(params).theta), u);
      });
    },
  };
}
