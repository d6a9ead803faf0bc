import {
  add,
  attention,
  cast,
  embedding,
  mse,
  mul,
  type Params,
  rmsNorm,
  scope,
  type Tensor,
  valueAndGrad,
  type Device,
  tensor,
} from '@heed/core';
import { gatedMlp, linear, projectQkv, type AttentionMixerParams, type BlockParams } from '@heed/core/nn';
import { adamW, cosineSchedule } from '@heed/core/optim';
import { type LawcatMixerParams, lawcatMixer } from '@heed/linear/lawcat';
import { Carry } from '@heed/core';
import { batchAt } from '../batches.js';
import { headDimension, type LabConfig } from '../config.js';
import type { LoadedModel } from '../model/shipped.js';
import type { Corpus } from '../text/corpus.js';

/** New parameters of one layer: filters, feature maps, gate. */
export type BranchParams = Record<string, Params>;

/** How a stage of a conversion is trained. */
export interface StageOptions {
  readonly steps: number;
  readonly batch: number;
  /** Tokens a sequence. */
  readonly context: number;
  /** Peak of a cosine schedule to 0. */
  readonly learningRate: number;
  readonly warmup: number;
}

/** What both stages are given. */
export interface StageContext {
  readonly device: Device;
  readonly corpus: Corpus;
  readonly shares?: Readonly<Record<string, number>>;
  readonly seed: number;
  report?(line: string): void;
}

/** The layers of a softmax model, each with what the mixer reads and what its attention gives in front of the output projection. */
export function teacherLayers(teacher: LoadedModel, tokens: Tensor): { read: Tensor; attention: Tensor }[] {
  const { model } = teacher.config;
  const { precision } = teacher.model.options;
  const shape = {
    heads: model.heads,
    kvHeads: model.kvHeads ?? model.heads,
    headDim: headDimension(model),
    precision,
    rope: { base: model.ropeBase ?? 10_000 },
  };
  let x = embedding(teacher.params.embedding, tokens);
  return teacher.params.blocks.map((block) => {
    const mixer = block.mixer as AttentionMixerParams;
    const read = rmsNorm(x, block.mixerNorm);
    const { q, k, v } = projectQkv(mixer.qkv, read, shape, 0);
    const attended = attention(q, k, v, { causal: true });
    const merged = attended.view({ shape: [x.dim(0), x.dim(1), shape.heads * shape.headDim] });
    const y = add(x, linear(mixer.out, merged, { precision, outDType: 'f32' }));
    x = gatedMlp(block.mlp, rmsNorm(y, block.mlpNorm), { addTo: y, precision });
    return { read, attention: cast(attended, 'f32') };
  });
}

/**
 * Stage 1 of LAWCAT, attention transfer (Liu et al. 2025, section 3.4): each layer reads the teacher's hidden state, and its output in
 * front of the output projection is held against the teacher's attention; 1000 times the mean squared error, averaged over layers.
 * Only the new parameters are trained, in place.
 * @returns the loss (without the factor) every tenth of the way
 */
export async function transferAttention(
  teacher: LoadedModel,
  student: LabConfig,
  branches: readonly BranchParams[],
  options: StageOptions,
  context: StageContext,
): Promise<number[]> {
  const { device, corpus, seed, shares } = context;
  const { model } = student;
  const precision = teacher.model.options.precision;
  const shape = {
    dim: model.dim,
    heads: model.heads,
    headDim: headDimension(model),
    ...(model.kvHeads !== undefined && { kvHeads: model.kvHeads }),
  };
  const mixer = lawcatMixer({ ...shape, precision, rope: { base: model.ropeBase ?? 10_000 }, ...model.mixerOptions });
  const optimizer = adamW(branches as Params, { weightDecay: 0, clip: 1 });
  const schedule = cosineSchedule({ peak: options.learningRate, warmup: options.warmup, steps: options.steps, floor: 0 });
  const losses: number[] = [];
  try {
    for (let step = 0; step < options.steps; step++) {
      const bytes = batchAt(corpus, { batch: options.batch, context: options.context, seed, ...(shares && { shares }) }, step);
      const loss = scope(() => {
        const layers = teacherLayers(teacher, tensor(device, bytes.inputs, [options.batch, options.context]));
        const lossOf = (own: Params): { loss: Tensor; plain: Tensor } => {
          const each = layers.map(({ read, attention: wanted }, layer) => {
            const params = {
              ...((teacher.params.blocks[layer] as BlockParams).mixer as AttentionMixerParams),
              ...(own as readonly BranchParams[])[layer],
            } as LawcatMixerParams;
            const place = { layer, layers: layers.length, training: true, carry: new Carry() };
            return mse(mixer.apply(params, read, place).aux?.['attention'] as Tensor, wanted);
          });
          const plain = each.reduce((sum, one) => add(sum, one));
          return { loss: mul(plain, 1000 / layers.length), plain: mul(plain, 1 / layers.length) };
        };
        const { value, grads } = valueAndGrad(lossOf)(branches as Params);
        optimizer.step(grads as Params, { learningRate: schedule(step) });
        return value.plain;
      });
      if (step % Math.max(1, Math.floor(options.steps / 10)) === 0 || step === options.steps - 1) {
        losses.push((await loss.read())[0] ?? Number.NaN);
        context.report?.(`transfer ${step + 1} of ${options.steps}: mean squared error ${(losses.at(-1) ?? 0).toExponential(3)}`);
      }
      loss.dispose();
    }
  } finally {
    optimizer.dispose();
  }
  return losses;
}
