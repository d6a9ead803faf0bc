import { crossEntropy, type Device, type Params, RandomStream, reshape, scope, type Tensor, tensor, valueAndGrad } from '@heed/core';
import { adamW, constantSchedule, cosineSchedule, namedTensors, type Optimizer, type Schedule } from '@heed/core/optim';
import { batchAt } from '../batches.js';
import type { LabConfig } from '../config.js';
import type { LanguageModel, LanguageModelParams } from '../model/language-model.js';
import type { Corpus } from '../text/corpus.js';

/** Parameters as far as gradients need to know them. */
type Named = Readonly<Record<string, Params>>;

/** One training run: model, optimiser and data, step by step. A step is a function of the configuration and its number. */
export class Trainer {
  readonly params: LanguageModelParams;
  readonly optimizer: Optimizer;
  /** Steps done. */
  step = 0;
  private readonly schedule: Schedule;

  constructor(
    readonly device: Device,
    readonly model: LanguageModel,
    readonly config: LabConfig,
    private readonly corpus: Corpus,
  ) {
    const { training } = config;
    this.params = model.init(device, new RandomStream(training.seed).stream('init'));
    this.optimizer = adamW(this.params, {
      weightDecay: training.weightDecay,
      clip: training.clip,
      lossScale: training.precision === 'f16' ? 'dynamic' : 1,
      groups: [{ match: /embedding|decay|theta/, weightDecay: 0 }],
    });
    this.schedule =
      training.schedule === 'cosine'
        ? cosineSchedule({ peak: training.learningRate, warmup: training.warmup, steps: training.steps, floor: training.finalShare })
        : constantSchedule({ peak: training.learningRate, warmup: training.warmup });
  }

  get learningRate(): number {
    return this.schedule(this.step);
  }

  /** One step. @returns the mean loss of its batch in nats, f32 []; the caller disposes it */
  next(): Tensor {
    const { batch, context, seed } = this.config.training;
    const { shares } = this.config.corpus;
    const bytes = batchAt(this.corpus, { batch, context, seed, ...(shares && { shares }) }, this.step);
    return scope(() => {
      const inputs = tensor(this.device, bytes.inputs, [batch, context]);
      const targets = tensor(this.device, bytes.targets, [batch, context]);
      const loss = (params: Named): Tensor => nextByteLoss(this.model, params as unknown as LanguageModelParams, inputs, targets);
      const { value, grads } = valueAndGrad(loss, { scale: this.optimizer.lossScale })(this.params as unknown as Named);
      this.optimizer.step(grads, { learningRate: this.learningRate });
      this.step++;
      return value;
    }).keep();
  }

  /** Number of weights. */
  get parameters(): number {
    return [...namedTensors(this.params).values()].reduce((sum, t) => sum + t.size, 0);
  }

  dispose(): void {
    this.optimizer.dispose();
    for (const t of namedTensors(this.params).values()) t.dispose();
  }
}

/** Mean cross-entropy of the next byte, in nats. */
export function nextByteLoss(model: LanguageModel, params: LanguageModelParams, inputs: Tensor, targets: Tensor): Tensor {
  return scope(() => {
    const logits = model.apply(params, inputs, { training: true });
    return crossEntropy(reshape(logits, [inputs.size, logits.dim(-1)]), reshape(targets, [targets.size]));
  });
}
