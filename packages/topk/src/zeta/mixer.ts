import {
  cast,
  concat,
  copyInto,
  type Device,
  type DType,
  gelu,
  HeedError,
  matmul,
  type MixContext,
  type Params,
  permute,
  pointwise,
  type RandomStream,
  reshape,
  scope,
  slice,
  split,
  type Tensor,
  tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { initLinear, linear, type LinearParams, truncatedNormal } from '@heed/core/nn';
import { zeta } from './function.js';
import { causalTaps } from './kernels/taps.js';
import { resolveOptions, type ZetaOptions } from './options.js';
import { type ZetaState, zetaStart, zetaStep } from './stream.js';

/** Settings of a causal ZETA layer; the options of `zeta` besides. */
export interface ZetaMixerConfig extends Omit<ZetaOptions, 'range' | 'causal'> {
  dim: number;
  heads: number;
  /** ZETA has a key head each query head: only `heads` is taken. */
  kvHeads?: number;
  /** Of the values, and the hidden width of f_q and f_k. Default: dim / heads. */
  headDim?: number;
  /** Dimensions of queries and keys on the curve, 1 to 4. Default 3 (the paper's choice). */
  keyDim?: number;
  /** Queries and keys are reach x tanh(...), so they lie in [-reach, reach]. Default 4. */
  reach?: number;
  /** Default 64: together with `localWindow` no token is out of sight. */
  chunk?: number;
  /** Default 64. The paper's form is 0. */
  localWindow?: number;
  /**
   * Taps of a causal convolution along the sequence, channel by channel, behind the first projections. Distances alone know no
   * order: this lets keys stand for short runs of tokens. 1: none, the paper's form. Default 4.
   */
  shortConv?: number;
  /** `f16`: products and values in f16; queries and keys stay f32. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface ZetaMixerParams {
  [name: string]: Params;
  /** First layers of f_q and f_k, and the values, [dim, 3 heads headDim]. */
  into: LinearParams;
  /** Taps of the short convolution, [shortConv, 3 heads headDim]. */
  taps: Tensor;
  /** Second layers of f_q (the first `heads`) and f_k, [2 heads, headDim, keyDim]. */
  curve: Tensor;
  /** [2 heads, 1, keyDim] */
  curveBias: Tensor;
  /** gamma = sigmoid(theta), [heads]. */
  theta: Tensor;
  /** [heads headDim, dim] */
  out: LinearParams;
}

const bounded = pointwise((x, bias, reach) => x.add(bias).tanh().mul(reach), { name: 'zeta-bounded' });

/**
 * A causal ZETA layer as a token mixer (Zeng et al. 2025, section 3): f_q and f_k are MLPs of two layers a head, headDim -> keyDim with
 * GELU, ending in reach x tanh; values are a linear projection.
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function zetaMixer(config: ZetaMixerConfig): TokenMixer<ZetaMixerParams, ZetaState> {
  const { dim, heads, kvHeads = heads, keyDim = 3, reach = 4, chunk = 64, localWindow = 64, shortConv = 4, precision = 'f32' } = config;
  const { bits, topK, window, historyMean, curves } = config;
  const headDim = config.headDim ?? dim / heads;
  if (!Number.isInteger(headDim))
    throw new HeedError('SHAPE_MISMATCH', `zetaMixer: dim ${dim} is no multiple of heads ${heads}; choose a divisor or give headDim`);
  if (kvHeads !== heads)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `zetaMixer: kvHeads is ${kvHeads} with ${heads} heads; each head has keys of its own, leave kvHeads out`,
    );
  if (!Number.isInteger(shortConv) || shortConv < 1)
    throw new HeedError('INVALID_ARGUMENT', `zetaMixer: shortConv is ${shortConv}; it must be an integer of 1 or more (1: none)`);
  const given = Object.fromEntries(Object.entries({ bits, topK, window, historyMean, curves }).filter(([, value]) => value !== undefined));
  const options: ZetaOptions = { range: [-reach, reach], chunk, localWindow, ...given };
  resolveOptions('zetaMixer', options, keyDim);
  const inner = heads * headDim;
  const channels = 3 * inner;

  /** First projections, [batch, tokens, channels]. */
  const enter = (params: ZetaMixerParams, x: Tensor): Tensor => linear(params.into, x, { precision, outDType: precision });

  /** q, k on the curve and v from what came through the convolution. */
  const place = (params: ZetaMixerParams, mixed: Tensor): { q: Tensor; k: Tensor; v: Tensor } => {
    const [batch, tokens] = [mixed.dim(0), mixed.dim(1)];
    const [hidden, values] = split(mixed, [2 * inner, inner], -1) as [Tensor, Tensor];
    const active = reshape(cast(gelu(hidden, { approximate: 'tanh' }), 'f32'), [batch * tokens, 2 * heads, headDim]);
    const points = bounded(matmul(permute(active, [1, 0, 2]), params.curve), params.curveBias, reach);
    const placed = permute(reshape(points, [2 * heads, batch, tokens, keyDim]), [1, 2, 0, 3]);
    const [q, k] = split(placed, [heads, heads], 2) as [Tensor, Tensor];
    return { q, k, v: reshape(values, [batch, tokens, heads, headDim]) };
  };
  const leave = (params: ZetaMixerParams, mixed: Tensor): Tensor =>
    linear(params.out, reshape(mixed, [mixed.dim(0), mixed.dim(1), inner]), { precision, outDType: 'f32' });

  return {
    name: 'zeta',
    init(device: Device, random: RandomStream): ZetaMixerParams {
      // the current token's tap is 1, the others small: a start near the paper's form that already tells orders apart
      const taps = new Float32Array(shortConv * channels).fill(1, 0, channels);
      taps.set(
        random
          .stream('taps')
          .normal((shortConv - 1) * channels)
          .map((x) => 0.3 * x),
        channels,
      );
      return {
        into: initLinear(device, random.stream('into'), { inputs: dim, outputs: channels }),
        taps: tensor(device, taps, [shortConv, channels]),
        curve: truncatedNormal(device, random.stream('curve'), [2 * heads, headDim, keyDim], 1 / Math.sqrt(headDim)),
        curveBias: zeros(device, [2 * heads, 1, keyDim]),
        theta: zeros(device, [heads]),
        out: initLinear(device, random.stream('out'), { inputs: inner, outputs: dim, std: 1 / Math.sqrt(inner * 8) }),
      };
    },
    apply(params: ZetaMixerParams, x: Tensor): { out: Tensor } {
      return scope(() => {
        const entered = enter(params, x);
        const { q, k, v } = place(params, shortConv > 1 ? causalTaps(entered, params.taps) : entered);
        return { out: leave(params, zeta(q, k, v, params.theta, options)) };
      });
    },
    start(device: Device, { batch, capacity, dtype }: { batch: number; capacity: number; dtype: DType }): ZetaState {
      return zetaStart(device, {
        ...options,
        batch,
        heads,
        keyDim,
        valueDim: headDim,
        capacity,
        dtype: precision === 'f16' && dtype === 'f16' ? 'f16' : 'f32',
        ...(shortConv > 1 && { history: { rows: shortConv - 1, width: channels, dtype: precision } }),
      });
    },
    step(params: ZetaMixerParams, x: Tensor, state: ZetaState, _context: MixContext): Tensor {
      return scope(() => {
        let mixed = enter(params, x);
        const { history } = state;
        if (history) {
          const joined = concat([history, mixed], 1);
          copyInto(history, slice(joined, 1, x.dim(1)));
          mixed = causalTaps(joined, params.taps, shortConv - 1);
        }
        const { q, k, v } = place(params, mixed);
        return leave(params, zetaStep(q, k, v, params.theta, state));
      });
    },
  };
}
