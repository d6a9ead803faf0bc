import {
  type Device,
  type DType,
  HeedError,
  type MixContext,
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
import { activationOf } from '../layer/activation.js';
import { srms } from '../layer/srms.js';
import { transnormerDiagAttention, transnormerNormAttention } from './forward.js';
import { settingsOf, type TransnormerMixerConfig } from './options.js';
import { transnormerAngles, type TransnormerPositions } from './positions.js';
import { startOf, stepOf, type TransnormerState } from './stream.js';

/** Parameters of a layer's attention; with LRPE also its angles, f32 [floor(headDim / 2)], under the name `theta`. */
export interface TransnormerMixerParams {
  [name: string]: Params;
  /** Queries, keys and values in one weight, [dim, 3 heads headDim], with biases. */
  qkv: LinearParams;
  /** [heads headDim, dim], with biases. */
  out: LinearParams;
}

/**
 * A TransNormer layer's attention as a token mixer (official `NormLinearAttention`, `NormLocalAttention`): NormAttention
 * y = SRMS(NormAttention(LRPE(f(x Wq)), LRPE(f(x Wk)), x Wv)) Wo, or DiagAttention in blocks, with the same norm in T1 and none in T2.
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED for positions of one's own
 */
export function transnormerMixer(config: TransnormerMixerConfig): TokenMixer<TransnormerMixerParams, TransnormerState> {
  const settings = settingsOf(config);
  const { dim, heads, headDim, kind, causal, lrpe, householder, normEps, precision, softmax, scale, chunk } = settings;
  const activate = activationOf('transnormerMixer', settings.activation);
  const width = heads * headDim;
  const normed = kind === 'norm' || !softmax;

  function project(params: LinearParams, x: Tensor): { q: Tensor; k: Tensor; v: Tensor } {
    const fused = reshape(linear(params, x, { precision, outDType: precision }), [x.dim(0), x.dim(1), 3 * heads, headDim]);
    if (kind === 'diag') {
      const [q, k, v] = split(fused, 3, 2) as [Tensor, Tensor, Tensor];
      return { q, k, v };
    }
    const [queriesKeys, v] = split(fused, [2 * heads, heads], 2) as [Tensor, Tensor];
    const [q, k] = split(activate(queriesKeys), 2, 2) as [Tensor, Tensor];
    return { q, k, v };
  }

  function positionsOf(params: TransnormerMixerParams, context: MixContext): TransnormerPositions | undefined {
    if (!lrpe) return undefined;
    if (context.positions)
      throw new HeedError(
        'UNSUPPORTED',
        'transnormerMixer: positions were given; LRPE counts tokens from the start of the sequence, stream or block, leave them out',
      );
    return { theta: params['theta'] as Tensor, householder };
  }

  function finish(params: LinearParams, mixed: Tensor): Tensor {
    const flat = reshape(mixed, [mixed.dim(0), mixed.dim(1), width]);
    return linear(params, normed ? srms(flat, normEps) : flat, { precision, outDType: 'f32' });
  }

  return {
    name: 'transnormer',
    init(device: Device, random: RandomStream): TransnormerMixerParams {
      // Xavier, with gain 1/sqrt(2) before NormAttention
      const std = (inputs: number, outputs: number): number => Math.sqrt(2 / (inputs + outputs));
      const gain = kind === 'norm' ? Math.SQRT1_2 : 1;
      return {
        qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * width, bias: true, std: gain * std(dim, width) }),
        out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, bias: true, std: std(width, dim) }),
        ...(lrpe && { theta: tensor(device, transnormerAngles(headDim)) }),
      };
    },
    apply(params: TransnormerMixerParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { q, k, v } = project(params.qkv, x);
        const positions = positionsOf(params, context);
        if (kind === 'diag') {
          // later tokens never enter a causal block, so that lengths need nothing
          if (context.lengths && !causal)
            throw new HeedError('UNSUPPORTED', 'transnormerMixer: lengths with causal: false; cut the padding off, or use causal: true');
          return { out: finish(params.out, transnormerDiagAttention(q, k, v, { ...settings, ...(positions && { positions }) })) };
        }
        const options = {
          causal,
          scale,
          ...(positions && { positions }),
          ...(chunk !== undefined && { chunk }),
          ...(context.lengths && { lengths: context.lengths }),
        };
        return { out: finish(params.out, transnormerNormAttention(q, k, v, options)) };
      });
    },
    start(device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): TransnormerState {
      return startOf(device, settings, batch);
    },
    step(params: TransnormerMixerParams, x: Tensor, state: TransnormerState, context: MixContext): Tensor {
      return scope(() => finish(params.out, stepOf(settings, project(params.qkv, x), state, positionsOf(params, context))));
    },
  };
}
