import {
  type Device,
  type DType,
  HeedError,
  type MixContext,
  mul,
  type Params,
  type RandomStream,
  reshape,
  rmsNorm,
  scope,
  silu,
  split,
  type Tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { lightning2 } from './forward.js';
import { decayFromSlopes, lightning2Slopes, type SlopeScheme } from '../scan/slopes.js';
import { type Lightning2State, lightning2Start, lightning2Step } from './stream.js';

/** Settings of a layer of gated linear attention. */
export interface Lightning2MixerConfig {
  dim: number;
  heads: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Index of the layer and their number: low layers forget fast, the last hardly at all. Default: no factor for the layer. */
  layer?: number;
  layers?: number;
  /** Default `alibi`. */
  scheme?: SlopeScheme;
  /** Log-decay a head in place of the slopes, [heads], <= 0. */
  decay?: readonly number[];
  /** Factor on q.k. Default 1 / headDim: the norm behind takes it out again. */
  scale?: number;
  /** Tokens a segment; see `lightning2`. Default: as many segments as fill the device. */
  chunk?: number;
  /** `f16`: products, queries, keys, values and gates in f16; what is summed over tokens stays f32 up to the norm. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface Lightning2MixerParams {
  [name: string]: Params;
  /** Queries, keys, values and gates in one weight, [dim, 4 heads headDim]. */
  qkvu: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/**
 * Lightning Attention-2 as a token mixer: the gated linear attention of TransNormerLLM (Qin et al. 2023, eq. 5 to 7) without its
 * position encoding: q, k = silu(x Wq), silu(x Wk), y = (SRMSNorm(lightning2(q, k, x Wv)) * x Wu) Wo, the norm over all heads
 * and without weights. Positions come from the decay alone.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim and headDim is not given
 */
export function lightning2Mixer(config: Lightning2MixerConfig): TokenMixer<Lightning2MixerParams, Lightning2State> {
  const { dim, heads, layer, layers, scheme = 'alibi', chunk, precision = 'f32' } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `lightning2Mixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  const { scale = 1 / headDim } = config;
  const place = layer === undefined || layers === undefined ? {} : { layer, layers };
  const decay = config.decay ?? decayFromSlopes(lightning2Slopes({ heads, scheme, ...place }));
  const width = heads * headDim;

  function project(params: LinearParams, x: Tensor): { q: Tensor; k: Tensor; v: Tensor; gate: Tensor } {
    const [batch, tokens] = [x.dim(0), x.dim(1)];
    const fused = reshape(linear(params, x, { precision, outDType: precision }), [batch, tokens, 4 * heads, headDim]);
    const [queriesKeys, v, u] = split(fused, [2 * heads, heads, heads], 2) as [Tensor, Tensor, Tensor];
    const [q, k] = split(silu(queriesKeys), 2, 2) as [Tensor, Tensor];
    return { q, k, v, gate: u };
  }

  function finish(params: LinearParams, mixed: Tensor, gate: Tensor): Tensor {
    const [batch, tokens] = [mixed.dim(0), mixed.dim(1)];
    const normed = reshape(rmsNorm(reshape(mixed, [batch, tokens, width])), mixed.shape);
    return linear(params, reshape(mul(normed, gate), [batch, tokens, width]), { precision, outDType: 'f32' });
  }

  return {
    name: 'lightning2',
    init(device: Device, random: RandomStream): Lightning2MixerParams {
      return {
        qkvu: initLinear(device, random.stream('qkvu'), { inputs: dim, outputs: 4 * width }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
      };
    },
    apply(params: Lightning2MixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { q, k, v, gate } = project(params.qkvu, x);
        const mixed = lightning2(q, k, v, {
          decay,
          scale,
          outDType: 'f32',
          ...(chunk !== undefined && { chunk }),
          ...(context.lengths && { lengths: context.lengths }),
        });
        return { out: finish(params.out, mixed, gate) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): Lightning2State {
      return lightning2Start(device, {
        batch,
        heads,
        keyDim: headDim,
        decay,
        scale,
        outDType: 'f32',
        ...(chunk !== undefined && { chunk }),
      });
    },
    step(params: Lightning2MixerParams, x: Tensor, state: Lightning2State): Tensor {
      return scope(() => {
        const { q, k, v, gate } = project(params.qkvu, x);
        return finish(params.out, lightning2Step(q, k, v, state), gate);
      });
    },
  };
}
