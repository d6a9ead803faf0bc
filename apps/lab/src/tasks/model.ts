import {
  add,
  Carry,
  type Device,
  dropout,
  embedding,
  full,
  HeedError,
  layerNorm,
  matmul,
  type MixContext,
  type Params,
  RandomStream,
  scope,
  type State,
  type Tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { gatedMlp, type GatedMlpParams, initGatedMlp, truncatedNormal } from '@heed/core/nn';
import type { LabelledModel } from './labelled.js';

/** Parameters of a task model, by name; f32. */
export interface TaskModelParams {
  [name: string]: Params;
  /** [vocabulary, dim]; also the head. */
  embedding: Tensor;
  blocks: TaskBlockParams[];
  norm: NormParams;
}

interface NormParams {
  [name: string]: Tensor;
  weight: Tensor;
  bias: Tensor;
}

interface TaskBlockParams {
  [name: string]: Params;
  norm: NormParams;
  mixer: Params;
}

export interface TaskModelOptions {
  vocabulary: number;
  dim: number;
  /** Hidden width of a gated feed-forward layer behind each mixer. Default: none. */
  hidden?: number;
  /** Share of the embedding's elements dropped in training. Default 0. */
  embeddingDropout?: number;
  /** Of the dropout. Default 0. */
  seed?: number;
}

/** The house model of the tasks: token embedding N(0, 0.02) with tied head, pre-LayerNorm residual blocks around any mixers, LayerNorm. */
export class TaskModel implements LabelledModel<TaskModelParams> {
  constructor(
    readonly options: TaskModelOptions,
    readonly mixers: readonly TokenMixer<Params, State>[],
  ) {}

  init(device: Device, random: RandomStream): TaskModelParams {
    const { vocabulary, dim, hidden } = this.options;
    const norm = (): NormParams => ({ weight: full(device, [dim], 1), bias: zeros(device, [dim]) });
    return {
      embedding: truncatedNormal(device, random.stream('embedding'), [vocabulary, dim], 0.02),
      blocks: this.mixers.map((mixer, layer) => ({
        norm: norm(),
        mixer: mixer.init(device, random.stream(`mixers.${layer}`)),
        ...(hidden !== undefined && {
          mlpNorm: norm(),
          mlp: initGatedMlp(device, random.stream(`mlps.${layer}`), {
            dim,
            hidden,
            outStd: 1 / Math.sqrt(hidden * 2 * this.mixers.length),
          }),
        }),
      })),
      norm: norm(),
    };
  }

  hidden(params: TaskModelParams, tokens: Tensor, { training, step }: { training: boolean; step: number }): Tensor {
    return scope(() => {
      const { embeddingDropout = 0, seed = 0 } = this.options;
      let x = embedding(params.embedding, tokens);
      if (training && embeddingDropout > 0)
        x = dropout(x, { rate: embeddingDropout, random: new RandomStream(seed, 'dropout').at({ step }) });
      return this.through(params, x, training);
    });
  }

  /** The blocks and the last norm, for tasks that bring embedded inputs, [B, T, dim]. */
  through(params: TaskModelParams, embedded: Tensor, training: boolean): Tensor {
    return scope(() => {
      const carry = new Carry();
      let x = embedded;
      this.mixers.forEach((mixer, layer) => {
        const block = params.blocks[layer];
        if (!block)
          throw new HeedError('INVALID_ARGUMENT', `tasks: the parameters have ${params.blocks.length} blocks, block ${layer} was wanted`);
        const context: MixContext = { layer, layers: this.mixers.length, training, carry };
        x = add(x, mixer.apply(block.mixer, normed(block.norm, x), context).out);
        if ('mlp' in block) x = gatedMlp(block['mlp'] as GatedMlpParams, normed(block['mlpNorm'] as NormParams, x), { addTo: x });
      });
      return normed(params.norm, x);
    });
  }

  logits(params: TaskModelParams, rows: Tensor): Tensor {
    return matmul(rows, params.embedding, { transposeB: true });
  }
}

function normed(params: NormParams, x: Tensor): Tensor {
  return layerNorm(x, params.weight, params.bias);
}
