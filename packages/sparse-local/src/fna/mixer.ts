import {
  type Device,
  type DType,
  HeedError,
  type MixContext,
  type Params,
  type RandomStream,
  reshape,
  scope,
  type Tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams, projectQkv } from '@heed/core/nn';
import { fna } from './fna.js';
import { NeighborhoodState } from './stream.js';

/** Settings of a layer of causal neighborhood attention along a sequence. */
export interface NeighborhoodMixerConfig {
  dim: number;
  heads: number;
  /** Heads of keys and values; divides heads. Default: heads. */
  kvHeads?: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Keys seen, the own one included; sequences shorter than window x dilation see all. */
  window: number;
  /** Default 1. */
  dilation?: number;
  /** Rotary positions; `base` default 10,000. Default: none. */
  rope?: { base?: number };
  /** `f16`: products, queries, keys and values in f16 where the device has it. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface NeighborhoodMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, (heads + 2 kvHeads) headDim]. */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/** Causal neighborhood attention along a sequence as a token mixer. Its stream keeps (window - 1) x dilation tokens, whatever the length. */
export function neighborhoodMixer(config: NeighborhoodMixerConfig): TokenMixer<NeighborhoodMixerParams, NeighborhoodState> {
  const { dim, heads, kvHeads = heads, window, dilation = 1, precision = 'f32' } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `neighborhoodMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`,
    );
  if (heads % kvHeads !== 0) throw new HeedError('SHAPE_MISMATCH', `neighborhoodMixer: kvHeads ${kvHeads} does not divide heads ${heads}`);
  const shape = { heads, kvHeads, headDim, precision, ...(config.rope && { rope: config.rope }) };
  const project = (params: NeighborhoodMixerParams, mixed: Tensor): Tensor =>
    linear(params.out, reshape(mixed, [mixed.dim(0), mixed.dim(1), heads * headDim]), { precision, outDType: 'f32' });
  return {
    name: 'neighborhood',
    init(device: Device, random: RandomStream): NeighborhoodMixerParams {
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: (heads + 2 * kvHeads) * headDim }),
        out: initLinear(device, random.stream('out'), { inputs: heads * headDim, outputs: dim, std: 1 / Math.sqrt(heads * headDim * 8) }),
      };
    },
    apply(params: NeighborhoodMixerParams, x: Tensor): { out: Tensor } {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, 0);
        // what is out of reach at the start of a short sequence stays out of it: causal windows are cut there
        const fitting = Math.max(1, Math.min(window, Math.floor(x.dim(1) / dilation)));
        if (fitting < window && dilation > 1 && x.dim(1) % dilation !== 0) {
          const state = new NeighborhoodState(x.device, { batch: x.dim(0), kvHeads, headDim, window, dilation, dtype: q.dtype });
          const mixed = state.attend(q, k, v);
          state.dispose();
          return { out: project(params, mixed) };
        }
        return { out: project(params, fna(q, k, v, { window: fitting, dilation, causal: true })) };
      });
    },
    start(device: Device, { batch, dtype }: { batch: number; capacity: number; dtype: DType }): NeighborhoodState {
      return new NeighborhoodState(device, { batch, kvHeads, headDim, window, dilation, dtype: precision === 'f16' ? dtype : 'f32' });
    },
    step(params: NeighborhoodMixerParams, x: Tensor, state: NeighborhoodState, _context: MixContext): Tensor {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, state.tokens);
        return project(params, state.attend(q, k, v));
      });
    },
  };
}
