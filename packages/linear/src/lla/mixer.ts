import {
  add,
  type Device,
  type DType,
  HeedError,
  type MixContext,
  type Params,
  type RandomStream,
  reshape,
  scope,
  softplus,
  type Tensor,
  tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams, projectQkv } from '@heed/core/nn';
import { lla } from './forward.js';
import type { LlaOptions } from './options.js';
import { type LlaState, llaStart, llaStep } from './stream.js';

/** Settings of a layer of causal local linear attention; the options of `lla` besides. */
export interface LlaMixerConfig extends Omit<LlaOptions, 'causal' | 'ridgeLambda'> {
  dim: number;
  heads: number;
  /** Each head has keys of its own: only `heads` is taken. */
  kvHeads?: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** lambda of the ridge, or its value at the start where it is learned. Default 1. */
  ridgeLambda?: number;
  /** `token`: lambda = softplus(x W + b) a token and head, trained. Default `fixed`. */
  ridge?: 'fixed' | 'token';
  /** Rotary positions; `base` default 10,000. Default: none. */
  rope?: { base?: number };
  /** `f16`: products around the operator in f16; it computes in f32. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface LlaMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, 3 heads headDim]. */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/**
 * Local linear attention as a token mixer, in place of softmax attention: fused projection, rotary positions, `lla`, projection.
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function llaMixer(config: LlaMixerConfig): TokenMixer<LlaMixerParams, LlaState> {
  const { dim, heads, kvHeads = heads, ridgeLambda = 1, ridge = 'fixed', rope, precision = 'f32', headDim: given, ...options } = config;
  const headDim = given ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `llaMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  if (kvHeads !== heads)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `llaMixer: kvHeads is ${kvHeads} with ${heads} heads; each head has keys of its own, leave kvHeads out`,
    );
  if (!(ridgeLambda > 0)) throw new HeedError('INVALID_ARGUMENT', `llaMixer: ridgeLambda is ${ridgeLambda}; it must be above 0`);
  const shape = { heads, kvHeads, headDim, precision, ...(rope && { rope }) };
  const width = heads * headDim;
  const project = (params: LlaMixerParams, mixed: Tensor): Tensor =>
    linear(params.out, reshape(mixed, [mixed.dim(0), mixed.dim(1), width]), { precision, outDType: 'f32' });
  const lambdaOf = (params: LlaMixerParams, x: Tensor): number | Tensor =>
    ridge === 'fixed' ? ridgeLambda : add(softplus(linear(params['ridge'] as LinearParams, x, { outDType: 'f32' })), 1e-3);
  const own = Object.fromEntries(
    Object.entries(options).filter(([name, value]) => value !== undefined && !['dim', 'heads'].includes(name)),
  ) as Omit<LlaOptions, 'causal' | 'ridgeLambda'>;

  return {
    name: 'lla',
    init(device: Device, random: RandomStream): LlaMixerParams {
      const bias = new Float32Array(heads).fill(Math.log(Math.expm1(ridgeLambda)));
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * width }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
        ...(ridge === 'token' && {
          ridge: {
            ...initLinear(device, random.stream('ridge'), { inputs: dim, outputs: heads, std: 0.02 }),
            bias: tensor(device, bias, [heads]),
          },
        }),
      };
    },
    apply(params: LlaMixerParams, x: Tensor): { out: Tensor } {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, 0);
        return { out: project(params, lla(q, k, v, { ...own, ridgeLambda: lambdaOf(params, x) })) };
      });
    },
    start(device: Device, { batch, capacity, dtype }: { batch: number; capacity: number; dtype: DType }): LlaState {
      return llaStart(device, { ...own, batch, heads, headDim, capacity, dtype: precision === 'f16' && dtype === 'f16' ? 'f16' : 'f32' });
    },
    step(params: LlaMixerParams, x: Tensor, state: LlaState, _context: MixContext): Tensor {
      return scope(() => {
        const { q, k, v } = projectQkv(params.qkv, x, shape, state.tokens);
        return project(params, llaStep(q, k, v, state, lambdaOf(params, x)));
      });
    },
  };
}
