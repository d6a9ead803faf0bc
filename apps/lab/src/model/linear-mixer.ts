import {
  add,
  type Device,
  type DType,
  div,
  elu,
  HeedError,
  type MixContext,
  pad,
  type Params,
  type RandomStream,
  reshape,
  scope,
  slice,
  split,
  type Tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { lightning2, type Lightning2State, lightning2Start, lightning2Step } from '@heed/linear/lightning2';

/** Settings of the baseline. */
export interface LinearMixerConfig {
  dim: number;
  heads: number;
  /** Default: dim / heads. */
  headDim?: number;
  /** Operands of products. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface LinearMixerParams {
  [name: string]: Params;
  /** [dim, 3 heads headDim] */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

/**
 * The baseline of the linear family (Katharopoulos et al. 2020): phi(x) = elu(x) + 1, out_t = phi(q_t) S_t / phi(q_t) z_t, causal, without
 * positions. A scan of `lightning2` without decay whose values carry a column of ones, which is the normaliser.
 * @throws HeedError SHAPE_MISMATCH when heads do not divide dim and headDim is not given
 */
export function linearMixer(config: LinearMixerConfig): TokenMixer<LinearMixerParams, Lightning2State> {
  const { dim, heads, precision = 'f32' } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `linearMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  const decay = Array.from({ length: heads }, () => 0);
  // the largest sums stay clear of the range of f16; the factor cancels in the quotient
  const scale = 1 / headDim;

  function project(params: LinearParams, x: Tensor): { q: Tensor; k: Tensor; v: Tensor } {
    const fused = reshape(linear(params, x, { precision, outDType: 'f32' }), [x.dim(0), x.dim(1), 3 * heads, headDim]);
    const [queriesKeys, values] = split(fused, [2 * heads, heads], 2) as [Tensor, Tensor];
    const [q, k] = split(add(elu(queriesKeys), 1), 2, 2) as [Tensor, Tensor];
    const v = pad(
      values,
      [
        [0, 0],
        [0, 0],
        [0, 0],
        [0, 1],
      ],
      { value: 1 },
    );
    return { q, k, v };
  }

  function finish(params: LinearParams, sums: Tensor): Tensor {
    const mixed = div(slice(sums, 3, 0, headDim), add(slice(sums, 3, headDim, headDim + 1), 1e-6));
    return linear(params, reshape(mixed, [sums.dim(0), sums.dim(1), heads * headDim]), { precision, outDType: 'f32' });
  }

  return {
    name: 'linear',
    init(device: Device, random: RandomStream): LinearMixerParams {
      const width = heads * headDim;
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * width }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
      };
    },
    apply(params: LinearMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { q, k, v } = project(params.qkv, x);
        return { out: finish(params.out, lightning2(q, k, v, { decay, scale, ...(context.lengths && { lengths: context.lengths }) })) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): Lightning2State {
      return lightning2Start(device, { batch, heads, keyDim: headDim, valueDim: headDim + 1, decay, scale });
    },
    step(params: LinearMixerParams, x: Tensor, state: Lightning2State): Tensor {
      return scope(() => {
        const { q, k, v } = project(params.qkv, x);
        return finish(params.out, lightning2Step(q, k, v, state));
      });
    },
  };
}
