import {
  type Device,
  embedding,
  HeedError,
  type MixContext,
  type Params,
  rmsNorm,
  type RandomStream,
  scope,
  type State,
  type Tensor,
  type TokenMixer,
  Carry,
  full,
} from '@heed/core';
import { Block, type BlockParams, initLinear, linear, type LinearParams, truncatedNormal } from '@heed/core/nn';

/** Byte values, the vocabulary of every model here. */
export const BYTES = 256;

/** Parameters of a model, by name; f32. */
export interface LanguageModelParams {
  [name: string]: Params;
  /** [256, dim] */
  embedding: Tensor;
  blocks: BlockParams[];
  norm: Tensor;
  /** [dim, 256] */
  head: LinearParams;
}

export interface LanguageModelOptions {
  name: string;
  dim: number;
  /** Hidden width of the gated feed-forward layers. */
  hidden: number;
  /** Operands of products. */
  precision: 'f32' | 'f16';
}

/** What a stream keeps, one state a layer. */
export interface ModelState {
  readonly layers: readonly State[];
  /** Tokens read so far. */
  tokens: number;
}

/** A byte-level language model: embedding, pre-norm blocks around any token mixer, norm, projection to 256 logits. */
export class LanguageModel {
  readonly name: string;
  private readonly blocks: readonly Block<Params, State>[];

  constructor(
    readonly options: LanguageModelOptions,
    mixers: readonly TokenMixer<Params, State>[],
  ) {
    this.name = options.name;
    const { dim, hidden, precision } = options;
    this.blocks = mixers.map((mixer) => new Block(mixer, { dim, hidden, layers: mixers.length, precision }));
  }

  get layers(): number {
    return this.blocks.length;
  }

  init(device: Device, random: RandomStream): LanguageModelParams {
    const { dim } = this.options;
    return {
      embedding: truncatedNormal(device, random.stream('embedding'), [BYTES, dim], 0.02),
      blocks: this.blocks.map((block, layer) => block.init(device, random.stream(`blocks.${layer}`))),
      norm: full(device, [dim], 1),
      head: initLinear(device, random.stream('head'), { inputs: dim, outputs: BYTES, std: 0.02 }),
    };
  }

  /**
   * Parallel form.
   * @param tokens u32 [B, T], byte values
   * @returns logits, f32 [B, T, 256]
   */
  apply(params: LanguageModelParams, tokens: Tensor, options: { training?: boolean } = {}): Tensor {
    return scope(() => {
      let x = embedding(params.embedding, tokens);
      const carry = new Carry();
      this.blocks.forEach((block, layer) => {
        x = block.apply(blockOf(params, layer), x, this.context(layer, options.training ?? false, carry)).out;
      });
      return this.logits(params, x);
    });
  }

  /** Empty states for reading `capacity` tokens. */
  start(device: Device, options: { batch: number; capacity: number }): ModelState {
    const dtype = this.options.precision === 'f16' && device.capabilities.f16 ? 'f16' : 'f32';
    return { layers: this.blocks.map((block) => block.mixer.start(device, { ...options, dtype })), tokens: 0 };
  }

  /**
   * Stream form: reads further tokens; the state is updated in place.
   * @param tokens u32 [B, n]
   * @param options.last only the logits of the last token, [B, 1, 256]. Default false
   * @returns logits, f32 [B, n, 256]
   */
  step(params: LanguageModelParams, tokens: Tensor, state: ModelState, options: { last?: boolean } = {}): Tensor {
    const logits = scope(() => {
      let x = embedding(params.embedding, tokens);
      const carry = new Carry();
      this.blocks.forEach((block, layer) => {
        const own = state.layers[layer];
        if (!own)
          throw new HeedError(
            'INVALID_ARGUMENT',
            `lab: the state has ${state.layers.length} layers, model "${this.name}" has ${this.layers}; make it by start() of this model`,
          );
        x = block.step(blockOf(params, layer), x, own, this.context(layer, false, carry));
      });
      const n = x.dim(1);
      return this.logits(
        params,
        options.last && n > 1 ? x.view({ shape: [x.dim(0), 1, x.dim(2)], offset: x.offset + (n - 1) * x.dim(2) }) : x,
      );
    });
    state.tokens += tokens.dim(1);
    return logits;
  }

  private logits(params: LanguageModelParams, x: Tensor): Tensor {
    return linear(params.head, rmsNorm(x, params.norm), { precision: this.options.precision, outDType: 'f32' });
  }

  private context(layer: number, training: boolean, carry: Carry): MixContext {
    return { layer, layers: this.layers, training, carry };
  }
}

/** Bytes that the states of a stream take on the device. */
export function stateBytes(state: ModelState): number {
  return state.layers.reduce((sum, layer) => {
    const { payload, metadata, padding } = layer.bytes();
    return sum + payload + metadata + padding;
  }, 0);
}

export function disposeState(state: ModelState): void {
  for (const layer of state.layers) layer.dispose();
}

function blockOf(params: LanguageModelParams, layer: number): BlockParams {
  const block = params.blocks[layer];
  if (!block) throw new HeedError('INVALID_ARGUMENT', `lab: the parameters have ${params.blocks.length} blocks, block ${layer} was wanted`);
  return block;
}
