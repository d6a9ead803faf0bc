import type { Params } from '../autodiff/grad.js';
import { attention } from '../attention/index.js';
import { createKvCache } from '../cache/index.js';
import type { Device } from '../device/device.js';
import type { DType, FloatDType } from '../dtype.js';
import { HeedError } from '../errors.js';
import { reshape } from '../ops/shape.js';
import { rope } from '../ops/rope.js';
import { split } from '../ops/slice.js';
import type { RandomStream } from '../random/stream.js';
import type { KvCache } from '../seams/kv.js';
import type { MixContext, TokenMixer } from '../seams/mixer.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { initLinear, linear, type LinearParams } from './linear.js';

/** Settings of a causal softmax-attention layer. */
export interface AttentionMixerConfig {
  dim: number;
  heads: number;
  /** Heads of keys and values; divides heads. Default: heads. */
  kvHeads?: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Rotary positions; `base` default 10,000. Default: none. */
  rope?: { base?: number };
  /** Keys seen, the own one included. Default: all. */
  window?: number;
  /** `f16`: products, queries, keys and values in f16 where the device has it. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of an attention layer. */
export interface AttentionMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, (heads + 2 kvHeads) headDim]. */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/** Queries, keys and values of a layer, [B, T, heads, headDim] each, as views of one product, rotated where positions are wanted. */
export interface Projected {
  q: Tensor;
  k: Tensor;
  v: Tensor;
}

/**
 * Projections of x [B, T, dim] to queries, keys and values.
 * @param offset position of the first token
 */
export function projectQkv(
  params: LinearParams,
  x: Tensor,
  config: Required<Pick<AttentionMixerConfig, 'heads' | 'kvHeads' | 'headDim'>> & Pick<AttentionMixerConfig, 'rope' | 'precision'>,
  offset: number,
): Projected {
  const { heads, kvHeads, headDim, precision = 'f32' } = config;
  const outDType: FloatDType = precision;
  const fused = reshape(linear(params, x, { precision, outDType }), [x.dim(0), x.dim(1), heads + 2 * kvHeads, headDim]);
  const [q, k, v] = split(fused, [heads, kvHeads, kvHeads], 2) as [Tensor, Tensor, Tensor];
  const turned = (t: Tensor): Tensor => (config.rope ? rope(t, { base: config.rope.base ?? 10_000, offset }) : t);
  return { q: turned(q), k: turned(k), v };
}

/**
 * Causal softmax attention as a token mixer: fused projection, rotary positions, attention, projection.
 * The stream is core's KV cache.
 */
export function attentionMixer(config: AttentionMixerConfig): TokenMixer<AttentionMixerParams, KvCache> {
  const { dim, heads, kvHeads = heads, window, precision = 'f32' } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `attentionMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  if (heads % kvHeads !== 0) throw new HeedError('SHAPE_MISMATCH', `attentionMixer: kvHeads ${kvHeads} does not divide heads ${heads}`);
  const shape = { heads, kvHeads, headDim, precision, ...(config.rope && { rope: config.rope }) };
  const project = (params: AttentionMixerParams, mixed: Tensor): Tensor =>
    linear(params.out, reshape(mixed, [mixed.dim(0), mixed.dim(1), heads * headDim]), { precision, outDType: 'f32' });
  return {
    name: 'softmax',
    init(device: Device, random: RandomStream): AttentionMixerParams {
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: (heads + 2 * kvHeads) * headDim }),
        out: initLinear(device, random.stream('out'), { inputs: heads * headDim, outputs: dim, std: 1 / Math.sqrt(heads * headDim * 8) }),
      };
    },
    apply(params: AttentionMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, 0);
        const mixed = attention(q, k, v, {
          causal: true,
          ...(window !== undefined && { window }),
          ...(context.lengths && { lengths: context.lengths }),
        });
        return { out: project(params, mixed) };
      });
    },
    start(device: Device, { batch, capacity, dtype }: { batch: number; capacity: number; dtype: DType }): KvCache {
      return createKvCache(device, { batch, kvHeads, headDim, capacity, dtype: precision === 'f16' ? dtype : 'f32' });
    },
    step(params: AttentionMixerParams, x: Tensor, cache: KvCache): Tensor {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, cache.tokens);
        cache.append(k, v);
        return project(params, cache.attend(q, { causal: true, ...(window !== undefined && { window }) }));
      });
    },
  };
}
