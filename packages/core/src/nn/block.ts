import type { Params } from '../autodiff/grad.js';
import type { Device } from '../device/device.js';
import { add } from '../ops/arithmetic.js';
import { rmsNorm } from '../ops/norm.js';
import type { RandomStream } from '../random/stream.js';
import type { MixContext, State, TokenMixer } from '../seams/mixer.js';
import { full } from '../tensor/create.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { gatedMlp, type GatedMlpParams, initGatedMlp } from './mlp.js';

/** A pre-norm block: x + mixer(norm(x)), then x + mlp(norm(x)). */
export interface BlockParams {
  [name: string]: Params;
  mixerNorm: Tensor;
  mixer: Params;
  mlpNorm: Tensor;
  mlp: GatedMlpParams;
}

export interface BlockConfig {
  dim: number;
  /** Width of the feed-forward layer. */
  hidden: number;
  /** Layers of the model: ways back into the residual stream start smaller by sqrt(2 layers). Default 1. */
  layers?: number;
  /** Operands of products. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** A transformer block around any token mixer. */
export class Block<P extends Params, S extends State> {
  constructor(
    readonly mixer: TokenMixer<P, S>,
    readonly config: BlockConfig,
  ) {}

  init(device: Device, random: RandomStream): BlockParams {
    const { dim, hidden, layers = 1 } = this.config;
    return {
      mixerNorm: full(device, [dim], 1),
      mixer: this.mixer.init(device, random.stream('mixer')),
      mlpNorm: full(device, [dim], 1),
      mlp: initGatedMlp(device, random.stream('mlp'), { dim, hidden, outStd: 1 / Math.sqrt(hidden * 2 * layers) }),
    };
  }

  /** x [B, T, dim] to the same; `aux` is the mixer's. */
  apply(params: BlockParams, x: Tensor, context: MixContext): { out: Tensor; aux?: Record<string, Tensor> } {
    return scope(() => {
      const { out, aux } = this.mixer.apply(params.mixer as P, rmsNorm(x, params.mixerNorm), context);
      const result = this.feedForward(params, add(x, out));
      return aux ? { out: result, aux } : { out: result };
    });
  }

  /** As `apply`, token by token or piece by piece; the state is updated in place. */
  step(params: BlockParams, x: Tensor, state: S, context: MixContext): Tensor {
    return scope(() => {
      const mixed = this.mixer.step(params.mixer as P, rmsNorm(x, params.mixerNorm), state, context);
      return this.feedForward(params, add(x, mixed));
    });
  }

  private feedForward(params: BlockParams, x: Tensor): Tensor {
    const { precision = 'f32' } = this.config;
    return gatedMlp(params.mlp, rmsNorm(x, params.mlpNorm), { addTo: x, precision });
  }
}
