import {
  add,
  type Device,
  HeedError,
  matmul,
  mul,
  type Params,
  RandomStream,
  scope,
  tensor,
  type Tensor,
  valueAndGrad,
  zeros,
} from '@heed/core';
import type { AttentionMixerParams, BlockParams } from '@heed/core/nn';
import { truncatedNormal } from '@heed/core/nn';
import { adamW, cosineSchedule, namedTensors } from '@heed/core/optim';
import { initLawcat } from '@heed/linear/lawcat';
import { batchAt } from '../batches.js';
import { headDimension, type LabConfig } from '../config.js';
import type { LanguageModel, LanguageModelParams } from '../model/language-model.js';
import { buildModel } from '../model/mixers.js';
import type { LoadedModel } from '../model/shipped.js';
import { nextByteLoss } from '../training/trainer.js';
import { type BranchParams, type StageContext, type StageOptions, transferAttention } from './transfer.js';

/** How a softmax model becomes a linear one. */
export interface ConversionOptions {
  /** Options of the `lawcat` mixer, such as `window`. */
  readonly mixerOptions?: LabConfig['model']['mixerOptions'];
  /** Stage 1. Default 500 steps of 8 sequences of 1,024 tokens, learning rate 0.01. */
  readonly transfer?: Partial<StageOptions>;
  /** Stage 2. Default 500 steps of 16 sequences of 1,024 tokens, learning rate 0.0005. */
  readonly tuning?: Partial<StageOptions> & {
    /** Rank of the low-rank updates of the projections; 0 trains every parameter of the model instead. Default 16. */
    readonly rank?: number;
    /** Updates are alpha / rank times the product. Default 32. */
    readonly alpha?: number;
  };
}

/** A converted model and how its losses went. */
export interface Converted extends LoadedModel {
  /** Mean squared error of the attention outputs on the way through stage 1. */
  transferLosses: number[];
  /** Bits a byte on the way through stage 2. */
  tuningBits: number[];
}

/** The configuration of the student: that of the teacher with another mixer. */
export function studentConfig(teacher: LabConfig, mixerOptions: LabConfig['model']['mixerOptions'] = {}): LabConfig {
  if (teacher.model.mixer !== 'softmax')
    throw new HeedError(
      'INVALID_ARGUMENT',
      `lab: conversion starts from a softmax model; "${teacher.name}" has mixer ${teacher.model.mixer}`,
    );
  const { ropeBase: _, ...model } = teacher.model;
  return {
    ...teacher,
    name: `${teacher.name}-lawcat`,
    model: { ...model, mixer: 'lawcat', ...(Object.keys(mixerOptions).length > 0 && { mixerOptions }) },
  };
}

/**
 * Converts a softmax language model to LAWCAT in two stages (Liu et al. 2025, section 3.4): attention transfer of each layer's output,
 * then next-byte training of the new parameters with low-rank updates of the projections, which are merged at the end. The teacher
 * stays as it is; the result has parameters of its own.
 * @throws HeedError INVALID_ARGUMENT when the teacher has another mixer
 */
export async function convertToLawcat(teacher: LoadedModel, options: ConversionOptions, context: StageContext): Promise<Converted> {
  const config = studentConfig(teacher.config, options.mixerOptions);
  const { device } = context;
  const random = new RandomStream(context.seed).stream('conversion');
  const { dim, heads, kvHeads } = config.model;
  const branches = teacher.params.blocks.map((_, layer) =>
    initLawcat(device, random.stream(`blocks.${layer}`), {
      dim,
      heads,
      headDim: headDimension(config.model),
      ...(kvHeads !== undefined && { kvHeads }),
      ...config.model.mixerOptions,
    }),
  ) as BranchParams[];
  const first: StageOptions = { steps: 500, batch: 8, context: 1024, learningRate: 0.01, warmup: 50, ...options.transfer };
  const transferLosses = await transferAttention(teacher, config, branches, first, context);
  const model = buildModel(config, teacher.model.options.precision);
  const { rank = 16, alpha = 32, ...rest } = options.tuning ?? {};
  const second: StageOptions = { steps: 500, batch: 16, context: 1024, learningRate: 0.0005, warmup: 50, ...rest };
  const student = copyParams(withBranches(teacher.params, branches));
  for (const t of namedTensors(branches as Params).values()) t.dispose();
  const tuningBits = await tune(model, student, { ...second, rank, alpha }, context);
  return { config, model, params: student, transferLosses, tuningBits };
}

function withBranches(params: LanguageModelParams, branches: readonly BranchParams[]): LanguageModelParams {
  return {
    ...params,
    blocks: params.blocks.map((block, layer) => ({ ...block, mixer: { ...(block.mixer as AttentionMixerParams), ...branches[layer] } })),
  };
}

/** The same structure with tensors of its own. */
function copyParams<P>(params: P): P {
  if (params && typeof params === 'object' && 'storage' in params) return scope(() => add(params as unknown as Tensor, 0)) as P;
  if (Array.isArray(params)) return params.map((one: unknown) => copyParams(one)) as P;
  return Object.fromEntries(Object.entries(params as object).map(([name, one]) => [name, copyParams(one as unknown)])) as P;
}

interface LowRank {
  [name: string]: Tensor;
  qkvDown: Tensor;
  qkvUp: Tensor;
  outDown: Tensor;
  outUp: Tensor;
}

/** Stage 2, in place: next-byte training of the new parameters and the low-rank updates, or of everything. */
async function tune(
  model: LanguageModel,
  params: LanguageModelParams,
  options: StageOptions & { rank: number; alpha: number },
  context: StageContext,
): Promise<number[]> {
  const { device, corpus, seed, shares } = context;
  const { rank, alpha } = options;
  const mixers = params.blocks.map((block) => block.mixer as AttentionMixerParams);
  const random = new RandomStream(seed).stream('tuning');
  const updates = rank > 0 ? mixers.map((mixer, layer) => lowRank(device, random.stream(`${layer}`), mixer, rank)) : [];
  const own = mixers.map(({ qkv: _, out: __, ...branch }) => branch);
  const trained: Params = rank > 0 ? { updates, branches: own as Params } : (params as unknown as Params);
  const optimizer = adamW(trained, { weightDecay: 0, clip: 1, lossScale: model.options.precision === 'f16' ? 'dynamic' : 1 });
  const schedule = cosineSchedule({ peak: options.learningRate, warmup: options.warmup, steps: options.steps, floor: 0 });
  const bits: number[] = [];
  const assembled = (given: Params): LanguageModelParams => {
    if (rank === 0) return given as unknown as LanguageModelParams;
    const { updates: low, branches } = given as unknown as { updates: readonly LowRank[]; branches: readonly BranchParams[] };
    return withUpdates(params, low, branches, alpha / rank);
  };
  try {
    for (let step = 0; step < options.steps; step++) {
      // batches that stage 1 has not seen
      const bytes = batchAt(corpus, { batch: options.batch, context: options.context, seed: seed + 1, ...(shares && { shares }) }, step);
      const loss = scope(() => {
        const inputs = tensor(device, bytes.inputs, [options.batch, options.context]);
        const targets = tensor(device, bytes.targets, [options.batch, options.context]);
        const lossOf = (given: Params): Tensor => nextByteLoss(model, assembled(given), inputs, targets);
        const { value, grads } = valueAndGrad(lossOf, { scale: optimizer.lossScale })(trained);
        optimizer.step(grads as Params, { learningRate: schedule(step) });
        return value;
      });
      if (step % Math.max(1, Math.floor(options.steps / 10)) === 0 || step === options.steps - 1) {
        bits.push(((await loss.read())[0] ?? Number.NaN) / Math.LN2);
        context.report?.(`tuning ${step + 1} of ${options.steps}: ${(bits.at(-1) ?? 0).toFixed(4)} bits a byte`);
      }
      loss.dispose();
    }
  } finally {
    optimizer.dispose();
  }
  updates.forEach((update, layer) => merge(mixers[layer] as AttentionMixerParams, update, alpha / rank));
  for (const t of namedTensors(updates as Params).values()) t.dispose();
  return bits;
}

function lowRank(device: Device, random: RandomStream, { qkv, out }: AttentionMixerParams, rank: number): LowRank {
  const down = (name: string, weight: Tensor): Tensor =>
    truncatedNormal(device, random.stream(name), [weight.dim(0), rank], 1 / Math.sqrt(weight.dim(0)));
  return {
    qkvDown: down('qkv', qkv.weight),
    qkvUp: zeros(device, [rank, qkv.weight.dim(1)]),
    outDown: down('out', out.weight),
    outUp: zeros(device, [rank, out.weight.dim(1)]),
  };
}

const updated = (weight: Tensor, down: Tensor, up: Tensor, factor: number): Tensor => add(weight, mul(matmul(down, up), factor));

function withUpdates(
  params: LanguageModelParams,
  updates: readonly LowRank[],
  branches: readonly BranchParams[],
  factor: number,
): LanguageModelParams {
  const blocks = params.blocks.map((block, layer): BlockParams => {
    const { qkv, out } = block.mixer as AttentionMixerParams;
    const low = updates[layer] as LowRank;
    const mixer = {
      ...branches[layer],
      qkv: { weight: updated(qkv.weight, low.qkvDown, low.qkvUp, factor) },
      out: { weight: updated(out.weight, low.outDown, low.outUp, factor) },
    };
    return { ...block, mixer: mixer as Params };
  });
  return { ...params, blocks };
}

/** Puts the update into the weights. */
function merge(mixer: AttentionMixerParams, low: LowRank, factor: number): void {
  for (const [own, down, up] of [
    [mixer.qkv, low.qkvDown, low.qkvUp],
    [mixer.out, low.outDown, low.outUp],
  ] as const) {
    const before = own.weight;
    own.weight = scope(() => updated(before, down, up, factor)).keep();
    before.dispose();
  }
}
