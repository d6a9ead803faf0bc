import { readFile } from 'node:fs/promises';
import {
  add,
  elu,
  type Params,
  RandomStream,
  reshape,
  scope,
  split,
  square,
  stack,
  type State,
  sum,
  type Tensor,
  type TokenMixer,
  valueAndGrad,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { adamW, cosineSchedule, namedTensors } from '@heed/core/optim';
import { lightning } from '@heed/linear/lightning';
import { makeMixer } from '../model/mixers.js';
import { BOOK_FILE } from '../paths.js';
import { type LabelledBatch, labelledLoss } from './labelled.js';
import { TaskModel, type TaskModelParams } from './model.js';
import { numberSetting, type Task, type TaskContext, type TaskResult } from './task.js';
import { disposeParameters } from './train.js';

const source =
  'Qin et al. 2022 (arXiv 2210.10340), relative standard deviation of gradients over 50,000 updates, as reported in a digest of its table';

/**
 * How much the gradient of an attention layer varies from step to step while a small language model trains: the standard deviation of the
 * norm of the mixers' gradients over its mean in the second half of training, where the loss falls slowly enough not to be the variation
 * itself. The paper's order: 1 + elu with a denominator varies most, softmax less, NormAttention least.
 */
export const gradientVariance: Task = {
  name: 'gradient-variance',
  about: 'relative standard deviation of attention gradients in training: linear > softmax > transnormer',
  settings: { width: 32, layers: 2, heads: 2, tokens: 64, batch: 8, steps: 200, warmup: 20, learningRate: 0.002 },
  published: [
    { mixer: 'linear', cell: 'training', metric: 'relative std', value: 0.58, source },
    { mixer: 'softmax', cell: 'training', metric: 'relative std', value: 0.25, source },
    { mixer: 'transnormer:kind=norm', cell: 'training', metric: 'relative std', value: 0.2, source },
  ],
  async run(context) {
    const text = new Uint8Array(await readFile(BOOK_FILE));
    const results: TaskResult[] = [];
    for (const spec of context.mixers) for (const seed of context.seeds) results.push(await runOne(context, text, spec, seed));
    return results;
  },
};

async function runOne({ device, settings, report }: TaskContext, text: Uint8Array, spec: string, seed: number): Promise<TaskResult> {
  const of = (name: string): number => numberSetting(settings, name);
  const [dim, layers, heads, steps, warmup] = [of('width'), of('layers'), of('heads'), of('steps'), of('warmup')];
  const mixers = Array.from({ length: layers }, (_, layer) =>
    spec === 'scaled' ? scaledMixer(dim, heads) : makeMixer(spec, { dim, heads, layer, layers }),
  );
  const model = new TaskModel({ vocabulary: 256, dim, hidden: 2 * dim, seed }, mixers);
  const params = model.init(device, new RandomStream(seed, 'gradient-variance/init'));
  const tree = params as unknown as Readonly<Record<string, Params>>;
  const optimizer = adamW(tree, { weightDecay: 0.01, clip: 1e9 });
  const schedule = cosineSchedule({ peak: of('learningRate'), warmup, steps, floor: 0 });
  const norms: number[] = [];
  const losses: number[] = [];
  try {
    for (let step = 0; step < steps; step++) {
      const batch = textBatch(text, { batch: of('batch'), tokens: of('tokens') }, seed, step);
      const { value, squares } = scope(() => {
        const made = valueAndGrad((p: typeof tree) => labelledLoss(model, p as unknown as TaskModelParams, batch, device, step))(tree);
        const mixing = [...namedTensors(made.grads as typeof tree)].filter(([name]) => /^blocks\.\d+\.mixer\./.test(name));
        const squared = stack(mixing.map(([, gradient]) => sum(square(gradient))));
        optimizer.step(made.grads, { learningRate: schedule(step) });
        return { value: made.value, squares: squared };
      });
      norms.push(Math.sqrt([...(await squares.read())].reduce((total, x) => total + x, 0)));
      losses.push((await value.read())[0] ?? Number.NaN);
      value.dispose();
      squares.dispose();
    }
  } finally {
    optimizer.dispose();
    disposeParameters(params);
  }
  const counted = norms.slice(Math.floor(steps / 2));
  const mean = counted.reduce((total, x) => total + x, 0) / counted.length;
  const std = Math.sqrt(counted.reduce((total, x) => total + (x - mean) ** 2, 0) / counted.length);
  const last = losses.slice(-Math.ceil(steps / 10));
  const loss = last.reduce((total, x) => total + x, 0) / last.length;
  report(
    `${spec} seed ${seed}: relative std ${(std / mean).toFixed(3)}, largest ${(Math.max(...counted) / mean).toFixed(2)} x the mean, loss ${loss.toFixed(3)}`,
  );
  const extra = { meanNorm: mean, largestOverMean: Math.max(...counted) / mean, finalLoss: loss };
  return { mixer: spec, seed, cell: 'training', metric: 'relative std', value: std / mean, extra };
}

/** Stretches of the text, every byte but the first a label; a pure function of seed and step. */
function textBatch(text: Uint8Array, size: { batch: number; tokens: number }, seed: number, step: number): LabelledBatch {
  const { batch, tokens } = size;
  const starts = new RandomStream(seed, 'gradient-variance/train').at({ step }).uniform(batch);
  const inputs = new Uint32Array(batch * tokens);
  const labels = new Uint32Array(batch * tokens);
  starts.forEach((share, row) => {
    const start = Math.floor(share * (text.length - tokens - 1));
    inputs.set(text.subarray(start, start + tokens), row * tokens);
    labels.set(text.subarray(start + 1, start + tokens + 1), row * tokens);
  });
  return { batch, tokens, inputs, labels, positions: Uint32Array.from(inputs, (_, i) => i) };
}

/** Linear attention held back by 1/sqrt(headDim) alone: (1 + elu) features, no denominator, no norm, no positions. */
function scaledMixer(dim: number, heads: number): TokenMixer<Params, State> {
  const headDim = dim / heads;
  return {
    name: 'scaled',
    init: (device, random) => ({
      qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * dim }),
      out: initLinear(device, random.stream('out'), { inputs: dim, outputs: dim }),
    }),
    apply: (params, x) =>
      scope(() => {
        const { qkv, out } = params as unknown as { qkv: LinearParams; out: LinearParams };
        const [features, v] = split(reshape(linear(qkv, x), [x.dim(0), x.dim(1), 3 * heads, headDim]), [2 * heads, heads], 2) as [
          Tensor,
          Tensor,
        ];
        const [q, k] = split(add(elu(features), 1), 2, 2) as [Tensor, Tensor];
        return { out: linear(out, reshape(lightning(q, k, v, { scale: 1 / Math.sqrt(headDim) }), x.shape)) };
      }),
    start: () => {
      throw new RangeError('task gradient-variance: the scaled mixer is only trained; it has no stream');
    },
    step: () => {
      throw new RangeError('task gradient-variance: the scaled mixer is only trained; it has no stream');
    },
  };
}
