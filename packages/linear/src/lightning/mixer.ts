import {
  type Device,
  type DType,
  full,
  HeedError,
  layerNorm,
  type MixContext,
  type Params,
  pointwise,
  type RandomStream,
  reshape,
  scope,
  split,
  type Tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { activationOf, type LayerActivation } from '../layer/activation.js';
import type { SlopeScheme } from '../scan/slopes.js';
import { lightningDecay } from './decay.js';
import { lightning } from './forward.js';
import { lightningStart, type LightningState, lightningStep } from './stream.js';

/** Settings of the attention module of TNL. */
export interface LightningMixerConfig {
  dim: number;
  heads: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Index of the layer and their number: low layers forget fast, the last hardly at all. Default: no factor for the layer. */
  layer?: number;
  layers?: number;
  /** Convention of the decay. Default `alibi`. */
  scheme?: SlopeScheme;
  /** Log-decay a head in place of the slopes, [heads], <= 0; zeros for none. */
  decay?: readonly number[];
  /** On queries, keys and values. Default `silu`. */
  activation?: LayerActivation;
  /** Width of the gate's waist. Default headDim. */
  gateRank?: number;
  /** Default 1e-5. */
  normEps?: number;
  /** Factor on q.k. Default 1 / headDim in f16 (the norm behind takes it out again but for eps), else 1. */
  scale?: number;
  /** Tokens a segment; see `lightning`. Default: as many segments as fill the device. */
  chunk?: number;
  /** `f16`: products, queries, keys and values in f16. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of the module. */
export interface LightningMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, 3 heads headDim]. */
  qkv: LinearParams;
  /** Norm over all heads, [heads headDim] each. */
  norm: { weight: Tensor; bias: Tensor };
  /** The gate's two weights, [dim, gateRank] and [gateRank, heads headDim]. */
  gateDown: LinearParams;
  gateUp: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

const gated: Record<'f32' | 'f16', ReturnType<typeof pointwise>> = {
  f32: pointwise((x, gate) => x.mul(gate.sigmoid()), { name: 'tnl-gate', dtype: 'f32' }),
  f16: pointwise((x, gate) => x.mul(gate.sigmoid()), { name: 'tnl-gate', dtype: 'f16' }),
};

/**
 * The attention module of TNL as a token mixer (official `TnlAttention`): q, k, v = silu(x W), y = (LayerNorm(lightning(q, k, v))
 * * sigmoid(x Wd Wu)) Wo, the norm over all heads. Positions come from the decay alone.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim and headDim is not given
 */
export function lightningMixer(config: LightningMixerConfig): TokenMixer<LightningMixerParams, LightningState> {
  const { dim, heads, layer, layers, scheme = 'alibi', chunk, normEps = 1e-5, precision = 'f32' } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `lightningMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  const { gateRank = headDim, scale = precision === 'f16' ? 1 / headDim : 1 } = config;
  const activate = activationOf('lightningMixer', config.activation ?? 'silu');
  const place = layer === undefined || layers === undefined ? {} : { layer, layers };
  const decay = config.decay ?? lightningDecay({ heads, scheme, ...place });
  const width = heads * headDim;

  function project(params: LinearParams, x: Tensor): [Tensor, Tensor, Tensor] {
    const fused = activate(linear(params, x, { precision, outDType: precision }));
    return split(reshape(fused, [x.dim(0), x.dim(1), 3 * heads, headDim]), 3, 2) as [Tensor, Tensor, Tensor];
  }

  function finish(params: LightningMixerParams, x: Tensor, mixed: Tensor): Tensor {
    const { weight, bias } = params.norm;
    const normed = layerNorm(reshape(mixed, [x.dim(0), x.dim(1), width]), weight, bias, { epsilon: normEps });
    const gate = linear(params.gateUp, linear(params.gateDown, x, { precision, outDType: precision }), { precision, outDType: precision });
    return linear(params.out, gated[precision](normed, gate), { precision, outDType: 'f32' });
  }

  return {
    name: 'lightning',
    init(device: Device, random: RandomStream): LightningMixerParams {
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * width }),
        norm: { weight: full(device, [width], 1), bias: zeros(device, [width]) },
        gateDown: initLinear(device, random.stream('gateDown'), { inputs: dim, outputs: gateRank }),
        gateUp: initLinear(device, random.stream('gateUp'), { inputs: gateRank, outputs: width }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
      };
    },
    apply(params: LightningMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const [q, k, v] = project(params.qkv, x);
        const options = { decay, scale, ...(chunk !== undefined && { chunk }), ...(context.lengths && { lengths: context.lengths }) };
        return { out: finish(params, x, lightning(q, k, v, options)) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): LightningState {
      return lightningStart(device, { batch, heads, keyDim: headDim, decay, scale, ...(chunk !== undefined && { chunk }) });
    },
    step(params: LightningMixerParams, x: Tensor, state: LightningState): Tensor {
      return scope(() => {
        const [q, k, v] = project(params.qkv, x);
        return finish(params, x, lightningStep(q, k, v, state));
      });
    },
  };
}
