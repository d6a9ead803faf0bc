import { Carry, type Device, type Params, RandomStream, scope, type State, type TokenMixer, zeros } from '@heed/core';
import { makeMixer } from '../model/mixers.js';
import { labelledAccuracy, type LabelledBatch, labelledLoss } from './labelled.js';
import { TaskModel, type TaskModelParams } from './model.js';
import { mqarBatch, type MqarOptions } from './mqar.js';
import { numberSetting, type Task, type TaskContext, type TaskResult } from './task.js';
import { countParameters, disposeParameters, trainTask } from './train.js';
import { zoologyConv } from './zoology-conv.js';

const reference = 'definition of the task, one seed, measured in another implementation';

/** Multi-query associative recall on the small cell: two layers (gated short convolution, the mixer under test), no positions, no MLP. */
export const mqar: Task = {
  name: 'mqar',
  about: 'multi-query associative recall: softmax > taylor > elu+1 at equal width',
  settings: {
    vocabulary: 1024,
    tokens: 64,
    pairs: 8,
    examples: 20_000,
    epochs: 5,
    batch: 256,
    learningRate: 0.01,
    width: 64,
    testPairs: '4,8,16',
    testExamples: 1000,
    embeddingDropout: 0.1,
    /** Accuracy on the trained cell at which a run stops; above 1: never. */
    stop: 2,
  },
  published: [
    ...figures('softmax', [0.9995, 0.9985, 0.9995]),
    ...figures('based', [0.9985, 0.997, 0.9911]),
    ...figures('linear', [0.919, 0.866, 0.751]),
  ],
  comparable: (settings) =>
    ['vocabulary', 'tokens', 'pairs', 'examples', 'batch', 'width'].every((name) => String(settings[name]) === String(mqar.settings[name])),
  async run(context) {
    const results: TaskResult[] = [];
    for (const seed of context.seeds) {
      const drawn = drawAll(context.settings, seed);
      for (const spec of context.mixers) results.push(...(await runOne(context, spec, seed, drawn)));
    }
    return results;
  },
};

function figures(mixer: string, values: readonly [number, number, number]): Task['published'] {
  return values.map((value, i) => ({ mixer, cell: `pairs ${[4, 8, 16][i]}`, metric: 'accuracy', value, source: reference }));
}

/** The sequences of a seed, which every mixer sees. */
interface Drawn {
  cell: MqarOptions;
  train: LabelledBatch;
  /** By number of pairs. */
  tests: ReadonlyMap<number, readonly LabelledBatch[]>;
}

function drawAll(settings: TaskContext['settings'], seed: number): Drawn {
  const of = (name: string): number => numberSetting(settings, name);
  const cell: MqarOptions = { vocabulary: of('vocabulary'), tokens: of('tokens'), pairs: of('pairs') };
  const perBatch = Math.ceil(of('testExamples') / 4);
  const tests = String(settings['testPairs'])
    .split(',')
    .map(Number)
    .map((pairs): [number, LabelledBatch[]] => [
      pairs,
      [0, 1, 2, 3].map((part) => mqarBatch({ ...cell, pairs }, { seed, split: `test-${pairs}` }, part * perBatch, perBatch)),
    ]);
  return { cell, train: mqarBatch(cell, { seed, split: 'train' }, 0, of('examples')), tests: new Map(tests) };
}

async function runOne(
  { device, settings, report }: TaskContext,
  spec: string,
  seed: number,
  { cell, train: all, tests }: Drawn,
): Promise<TaskResult[]> {
  const of = (name: string): number => numberSetting(settings, name);
  const [width, batch, examples, epochs, pairs] = [of('width'), of('batch'), of('examples'), of('epochs'), of('pairs')];
  // no positions, and of based the Taylor layer alone: the convolution before it is the other half of the model
  const mixer = makeMixer(
    spec,
    { dim: width, heads: 1, layers: 2, layer: 1 },
    // a memory that is written every few tokens: chunks of 64 would end with the sequence
    { softmax: { rope: false }, based: { kind: 'taylor' }, titans: { chunkSize: 4, expansion: 2 } },
  );
  const model = new TaskModel({ vocabulary: cell.vocabulary, dim: width, embeddingDropout: of('embeddingDropout'), seed }, [
    zoologyConv({ dim: width }),
    mixer,
  ]);
  const params = model.init(device, new RandomStream(seed, 'mqar/init').stream(spec));
  const begin = performance.now();
  const stepsPerEpoch = Math.floor(examples / batch);
  const curve: number[] = [];
  const latest = new Map<number, number>();
  const order = { epoch: -1, rows: new Uint32Array(0) };
  try {
    const { steps } = await trainTask(
      params,
      (p: TaskModelParams, step) => {
        const epoch = Math.floor(step / stepsPerEpoch);
        if (epoch !== order.epoch)
          Object.assign(order, { epoch, rows: new RandomStream(seed, 'mqar/order').at({ step: epoch }).permutation(examples) });
        const start = (step % stepsPerEpoch) * batch;
        return labelledLoss(model, p, chosen(all, order.rows.subarray(start, start + batch)), device, step);
      },
      { steps: stepsPerEpoch * epochs, learningRate: of('learningRate'), evaluateEvery: stepsPerEpoch },
      async (step, loss) => {
        for (const [n, batches] of tests) latest.set(n, (await labelledAccuracy(model, params, batches, device)).accuracy);
        const own = latest.get(pairs) ?? [...latest.values()][0] ?? 0;
        curve.push(own);
        report(`${spec} seed ${seed} epoch ${step / stepsPerEpoch}: loss ${loss.toFixed(3)}, accuracy ${own.toFixed(4)}`);
        return own >= of('stop');
      },
    );
    const seconds = (performance.now() - begin) / 1000;
    const extra = {
      width,
      parameters: countParameters(params),
      stateBytes: stateBytesOf(device, mixer, params.blocks[1]?.mixer as Params, { dim: width, tokens: cell.tokens }),
      steps,
      seconds: Number(seconds.toFixed(2)),
      curve: curve.map((value) => value.toFixed(4)).join(' '),
    };
    return [...latest].map(([n, value]) => ({
      mixer: spec,
      seed,
      cell: `pairs ${n}`,
      metric: 'accuracy',
      value,
      chance: 1 / (cell.vocabulary - Math.floor(cell.vocabulary / 2)),
      extra,
    }));
  } finally {
    disposeParameters(params);
  }
}

function chosen(all: LabelledBatch, rows: Uint32Array): LabelledBatch {
  const { tokens } = all;
  const each = all.labels.length / all.batch;
  const inputs = new Uint32Array(rows.length * tokens);
  const positions = new Uint32Array(rows.length * each);
  const labels = new Uint32Array(rows.length * each);
  rows.forEach((from, row) => {
    inputs.set(all.inputs.subarray(from * tokens, (from + 1) * tokens), row * tokens);
    labels.set(all.labels.subarray(from * each, (from + 1) * each), row * each);
    for (let i = 0; i < each; i++) positions[row * each + i] = (all.positions[from * each + i] as number) + (row - from) * tokens;
  });
  return { batch: rows.length, tokens, inputs, positions, labels };
}

/** Bytes that a stream of the mixer holds after `tokens` tokens of one sequence. */
function stateBytesOf(device: Device, mixer: TokenMixer<Params, State>, params: Params, size: { dim: number; tokens: number }): number {
  const state = mixer.start(device, { batch: 1, capacity: size.tokens, dtype: 'f32' });
  try {
    scope(() =>
      mixer.step(params, zeros(device, [1, size.tokens, size.dim]), state, { layer: 1, layers: 2, training: false, carry: new Carry() }),
    ).dispose();
    return state.bytes().payload;
  } finally {
    state.dispose();
  }
}
