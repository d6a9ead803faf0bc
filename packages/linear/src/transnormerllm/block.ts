import {
  add,
  type Device,
  type DType,
  type MixContext,
  mul,
  type Params,
  type RandomStream,
  scope,
  silu,
  split,
  type Tensor,
} from '@heed/core';
import type { TokenMixer } from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { srmsNorm } from './forward.js';
import { transnormerllmMixer, type TransnormerllmMixerConfig, type TransnormerllmMixerParams } from './mixer.js';
import type { TransnormerllmState } from './stream.js';

/** Parameters of `sglu`. */
export interface SgluParams {
  [name: string]: LinearParams;
  /** Both factors in one weight, [dim, 2 hidden]. */
  factors: LinearParams;
  /** [hidden, dim] */
  down: LinearParams;
}

/** How `sglu` computes. */
export interface SgluOptions {
  /** On the first factor. Default `none`: the product alone bends enough (section 3.3). */
  activation?: 'none' | 'silu';
  /** A residual, the shape of x, added by the last product. */
  addTo?: Tensor;
  precision?: 'f32' | 'f16';
}

/**
 * Parameters of `sglu`, normal numbers.
 * @param device where the parameters live
 * @param random drawn on the host: the same weights on every device
 * @param options the widths
 * @param options.dim width of the model
 * @param options.hidden width between the products
 * @param options.outStd standard deviation of the way down. Default 1 / sqrt(hidden)
 */
export function initSglu(
  device: Device,
  random: RandomStream,
  { dim, hidden, outStd = 1 / Math.sqrt(hidden) }: { dim: number; hidden: number; outStd?: number },
): SgluParams {
  return {
    factors: initLinear(device, random.stream('factors'), { inputs: dim, outputs: 2 * hidden }),
    down: initLinear(device, random.stream('down'), { inputs: hidden, outputs: dim, std: outStd }),
  };
}

/**
 * The channel mixer of TransNormerLLM (eq. 8): ((x W1) * (x W2)) W3, a gated unit without activation.
 * @param x [..., dim]
 * @returns [..., dim]; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function sglu(params: SgluParams, x: Tensor, options: SgluOptions = {}): Tensor {
  const { activation = 'none', precision = 'f32', addTo } = options;
  return scope(() => {
    const [first, second] = split(linear(params.factors, x, { precision, outDType: precision }), 2, -1) as [Tensor, Tensor];
    const product = mul(activation === 'silu' ? silu(first) : first, second);
    return linear(params.down, product, { precision, outDType: 'f32', ...(addTo && { addTo }) });
  });
}

/** Settings of a layer: those of its mixer, and of SGLU. */
export interface TransnormerllmBlockConfig extends TransnormerllmMixerConfig {
  /** Hidden width of SGLU. Default 2 dim. */
  hidden?: number;
  /** Default `none`. */
  gluActivation?: 'none' | 'silu';
}

/** Parameters of a layer. */
export interface TransnormerllmBlockParams {
  [name: string]: Params;
  mixer: TransnormerllmMixerParams;
  mlp: SgluParams;
}

/**
 * A layer of TransNormerLLM: x + GLA(SRMSNorm(x)), then x + SGLU(SRMSNorm(x)); the norms have no weights. It has the form of a
 * token mixer with the residuals inside: a model is a row of them (`layer` from 0), an SRMSNorm and a head.
 */
export function transnormerllmBlock(config: TransnormerllmBlockConfig): TokenMixer<TransnormerllmBlockParams, TransnormerllmState> {
  const { dim, hidden = 2 * dim, normEps = 1e-6, precision = 'f32', gluActivation = 'none', layers = 1 } = config;
  const mixer = transnormerllmMixer(config);

  const feedForward = (params: SgluParams, x: Tensor): Tensor =>
    sglu(params, srmsNorm(x, { eps: normEps }), { activation: gluActivation, precision, addTo: x });

  return {
    name: 'transnormerllm-block',
    init(device: Device, random: RandomStream): TransnormerllmBlockParams {
      return {
        mixer: mixer.init(device, random.stream('mixer')),
        mlp: initSglu(device, random.stream('mlp'), { dim, hidden, outStd: 1 / Math.sqrt(hidden * 2 * layers) }),
      };
    },
    apply(params: TransnormerllmBlockParams, x: Tensor, context: MixContext): { out: Tensor } {
      return scope(() => {
        const { out } = mixer.apply(params.mixer, srmsNorm(x, { eps: normEps }), context);
        return { out: feedForward(params.mlp, add(x, out)) };
      });
    },
    start(device: Device, options: { batch: number; capacity: number; dtype: DType }): TransnormerllmState {
      return mixer.start(device, options);
    },
    step(params: TransnormerllmBlockParams, x: Tensor, state: TransnormerllmState, context: MixContext): Tensor {
      return scope(() => {
        const mixed = mixer.step(params.mixer, srmsNorm(x, { eps: normEps }), state, context);
        return feedForward(params.mlp, add(x, mixed));
      });
    },
  };
}
