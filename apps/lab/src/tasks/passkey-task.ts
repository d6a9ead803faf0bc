import { RandomStream } from '@heed/core';
import { makeMixer } from '../model/mixers.js';
import { labelledAccuracy, labelledLoss } from './labelled.js';
import { TaskModel, type TaskModelParams } from './model.js';
import { passkeyBatch, passkeyTokens, shortestPasskey } from './passkey.js';
import { numberSetting, type Task, type TaskContext, type TaskResult } from './task.js';
import { countParameters, disposeParameters, trainTask } from './train.js';

/** Passkey retrieval beyond the trained length: two layers with feed-forward, no positions but those of the mixer. */
export const passkey: Task = {
  name: 'passkey',
  about: 'passkey retrieval at up to 4 times the trained length: linear mixers against softmax with RoPE',
  settings: {
    tokens: 256,
    /** Lengths are drawn from here up to `tokens`, one a step. */
    shortest: 64,
    steps: 2000,
    batch: 64,
    learningRate: 0.001,
    warmup: 100,
    width: 128,
    heads: 4,
    layers: 2,
    testTokens: '256,512,1024',
    testExamples: 256,
  },
  published: [
    {
      mixer: 'lawcat',
      cell: 'tokens 1024',
      metric: 'whole keys',
      value: 0.9,
      source:
        'Liu et al. 2025: over 90 % up to 22 times the trained length (7B, distilled from softmax, 1K trained, 22K tested); here 4 times',
    },
  ],
  async run(context) {
    const results: TaskResult[] = [];
    for (const spec of context.mixers) for (const seed of context.seeds) results.push(...(await runOne(context, spec, seed)));
    return results;
  },
};

async function runOne({ device, settings, report }: TaskContext, spec: string, seed: number): Promise<TaskResult[]> {
  const of = (name: string): number => numberSetting(settings, name);
  const [width, heads, layers, batch, tokens, steps] = [of('width'), of('heads'), of('layers'), of('batch'), of('tokens'), of('steps')];
  const mixers = Array.from({ length: layers }, (_, layer) => makeMixer(spec, { dim: width, heads, layers, layer }));
  const model = new TaskModel({ vocabulary: passkeyTokens.vocabulary, dim: width, hidden: 2 * width, seed }, mixers);
  const params = model.init(device, new RandomStream(seed, 'passkey/init').stream(spec));
  const lengths = new RandomStream(seed, 'passkey/lengths');
  const shortest = Math.max(shortestPasskey, Math.min(of('shortest'), tokens));
  const begin = performance.now();
  try {
    await trainTask(
      params,
      (p: TaskModelParams, step) => {
        // every second step at the full length, the others shorter, in steps of 32 that share their kernels' plans
        const [drawn = 0] = lengths.at({ step }).integers(1, Math.floor((tokens - shortest) / 32) + 1);
        const length = step % 2 === 0 ? tokens : tokens - 32 * drawn;
        return labelledLoss(model, p, passkeyBatch(length, { seed, split: 'train' }, step * batch, batch), device, step);
      },
      { steps, learningRate: of('learningRate'), warmup: of('warmup'), evaluateEvery: Math.max(1, Math.floor(steps / 8)) },
      async (step, loss) => {
        const own = await labelledAccuracy(model, params, [passkeyBatch(tokens, { seed, split: `test-${tokens}` }, 0, 64)], device);
        report(`${spec} seed ${seed} step ${step}: loss ${loss.toFixed(3)}, whole keys ${own.whole.toFixed(3)} at ${tokens} tokens`);
      },
    );
    const seconds = Number(((performance.now() - begin) / 1000).toFixed(2));
    const results: TaskResult[] = [];
    for (const length of String(settings['testTokens']).split(',').map(Number)) {
      const rows = Math.max(1, Math.min(of('testExamples'), Math.floor(65536 / length)));
      const batches = Array.from({ length: Math.ceil(of('testExamples') / rows) }, (_, i) =>
        passkeyBatch(length, { seed, split: `test-${length}` }, i * rows, rows),
      );
      const { whole, accuracy } = await labelledAccuracy(model, params, batches, device);
      const extra = { digits: Number(accuracy.toFixed(4)), parameters: countParameters(params), steps, seconds };
      results.push({ mixer: spec, seed, cell: `tokens ${length}`, metric: 'whole keys', value: whole, chance: 1e-5, extra });
    }
    return results;
  } finally {
    disposeParameters(params);
  }
}
