import {
  add,
  type Device,
  type DType,
  HeedError,
  type MixContext,
  mul,
  type Params,
  type RandomStream,
  scope,
  silu,
  split,
  type Tensor,
  type TokenMixer,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { srms } from '../layer/srms.js';
import { StackState } from '../layer/stack.js';
import { transnormerMixer, type TransnormerMixerParams } from './mixer.js';
import type { TransnormerMixerConfig } from './options.js';
import type { TransnormerState } from './stream.js';

/** Settings of a layer: those of its attention, and of the gated unit behind it. */
export interface TransnormerBlockConfig extends TransnormerMixerConfig {
  /** Hidden width of the gated unit. Default floor(8 dim / 3). */
  hidden?: number;
  /** `none`: as the published runs were (their configuration's name was not known to the code, which fell back to it); `silu`: repaired. Default `none`. */
  gluActivation?: 'none' | 'silu';
}

/** Parameters of a layer. */
export interface TransnormerBlockParams {
  [name: string]: Params;
  mixer: TransnormerMixerParams;
  /** Both factors of the gated unit, [dim, 2 hidden], and the way back, [hidden, dim], with biases. */
  glu: { factors: LinearParams; down: LinearParams };
}

/**
 * A TransNormer layer (pre-norm, dropout left out): h = x + Attention(SRMS(x)), y = h + GLU(SRMS(h)) with
 * GLU(z) = (g(z W1 + b1) * (z W2 + b2)) W3 + b3. It has the form of a token mixer with the residuals inside.
 */
export function transnormerBlock(config: TransnormerBlockConfig): TokenMixer<TransnormerBlockParams, TransnormerState> {
  const { dim, hidden = Math.floor((8 * dim) / 3), gluActivation = 'none', normEps = 1e-8, precision = 'f32' } = config;
  const mixer = transnormerMixer(config);

  function feedForward({ factors, down }: TransnormerBlockParams['glu'], x: Tensor): Tensor {
    const [first, second] = split(linear(factors, srms(x, normEps), { precision, outDType: precision }), 2, -1) as [Tensor, Tensor];
    return linear(down, mul(gluActivation === 'silu' ? silu(first) : first, second), { precision, outDType: 'f32', addTo: x });
  }

  return {
    name: 'transnormer-block',
    init(device: Device, random: RandomStream): TransnormerBlockParams {
      return {
        mixer: mixer.init(device, random.stream('mixer')),
        glu: {
          factors: initLinear(device, random.stream('factors'), { inputs: dim, outputs: 2 * hidden, bias: true }),
          down: initLinear(device, random.stream('down'), { inputs: hidden, outputs: dim, bias: true }),
        },
      };
    },
    apply(params: TransnormerBlockParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { out } = mixer.apply(params.mixer, srms(x, normEps), context);
        return { out: feedForward(params.glu, add(x, out)) };
      });
    },
    start(device: Device, options: { batch: number; capacity: number; dtype: DType }): TransnormerState {
      return mixer.start(device, options);
    },
    step(params: TransnormerBlockParams, x: Tensor, state: TransnormerState, context: MixContext): Tensor {
      return scope(() => feedForward(params.glu, add(x, mixer.step(params.mixer, srms(x, normEps), state, context))));
    },
  };
}

/** Settings of the two-stage model. */
export interface TransnormerStackConfig extends Omit<TransnormerBlockConfig, 'kind' | 'layer'> {
  layers: number;
}

/** Parameters of the model: a layer each. */
export interface TransnormerStackParams {
  [name: string]: Params;
  blocks: TransnormerBlockParams[];
}

/**
 * The two-stage model between embedding and head: SRMS, the first half of the layers with DiagAttention, the second with
 * NormAttention, SRMS. Blocks see their neighbourhood first, and then the whole (against dilution of attention, section 4.2).
 */
export function transnormerStack(config: TransnormerStackConfig): TokenMixer<TransnormerStackParams, StackState> {
  const { layers, normEps = 1e-8 } = config;
  if (!(Number.isInteger(layers) && layers > 0))
    throw new HeedError('INVALID_ARGUMENT', `transnormerStack: layers is ${layers}; it must be an integer of 1 or more`);
  const blocks = Array.from({ length: layers }, (_, layer) => transnormerBlock({ ...config, layer }));
  return {
    name: 'transnormer-stack',
    init(device: Device, random: RandomStream): TransnormerStackParams {
      return { blocks: blocks.map((block, layer) => block.init(device, random.stream(`block ${layer}`))) };
    },
    apply(params: TransnormerStackParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        let y = srms(x, normEps);
        blocks.forEach((block, layer) => {
          y = block.apply(params.blocks[layer] as TransnormerBlockParams, y, { ...context, layer, layers }).out;
        });
        return { out: srms(y, normEps) };
      });
    },
    start(device: Device, options: { batch: number; capacity: number; dtype: DType }): StackState {
      return new StackState(
        'transnormer-stack',
        blocks.map((block) => block.start(device, options)),
      );
    },
    step(params: TransnormerStackParams, x: Tensor, state: StackState, context: MixContext): Tensor {
      return scope(() => {
        let y = srms(x, normEps);
        blocks.forEach((block, layer) => {
          y = block.step(params.blocks[layer] as TransnormerBlockParams, y, state.layer(layer), { ...context, layer, layers });
        });
        return srms(y, normEps);
      });
    },
  };
}
