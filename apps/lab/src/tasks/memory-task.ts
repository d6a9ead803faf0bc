import { type Device, RandomStream, scope, tensor, type Tensor, zeros } from '@heed/core';
import { lightning2WithState } from '@heed/linear/lightning2';
import { titansRetrieve, titansWithState } from '@heed/linear/titans';
import { numberSetting, type Task, type TaskContext, type TaskResult } from './task.js';

/** What an operator stores, without training: write all pairs, then read them all. */
export const memory: Task = {
  name: 'memory',
  about: 'pairs that an operator stores without training: additive linear attention, delta rule (titans:depth=1), deep memory (titans)',
  settings: {
    width: 16,
    pairs: '8,16,32,64',
    /** Times that a memory with steps of its own reads the pairs, each time in another order. */
    passes: 32,
    /** Step of the delta rule and of deeper memories (mean of squares over the width). */
    linearRate: 4,
    deepRate: 2,
    expansion: 4,
  },
  published: [8, 16, 32, 64].map((pairs) => ({
    mixer: 'linear',
    cell: `pairs ${pairs}`,
    metric: 'squared error',
    value: (pairs - 1) / 16,
    source: 'expected for additive writes of random unit keys of width 16: (pairs - 1) / width',
  })),
  async run(context) {
    const results: TaskResult[] = [];
    for (const spec of context.mixers)
      for (const seed of context.seeds)
        for (const pairs of String(context.settings['pairs']).split(',').map(Number))
          results.push(await runOne(context, spec, seed, pairs));
    return results;
  },
};

async function runOne({ device, settings, report }: TaskContext, spec: string, seed: number, pairs: number): Promise<TaskResult> {
  const width = numberSetting(settings, 'width');
  const [name, option] = spec.split(':');
  const depth = option === undefined ? 2 : Number(option.replace('depth=', ''));
  if ((name !== 'linear' && name !== 'titans') || !Number.isInteger(depth) || depth < 1)
    throw new RangeError(
      `task memory: "${spec}" is no operator of this task; it has linear, titans:depth=1 (delta rule), titans:depth=2, ...`,
    );
  const random = new RandomStream(seed, 'memory').stream(`${pairs}`);
  const keys = random.stream('keys').normal(pairs * width);
  for (let i = 0; i < pairs; i++) {
    const row = keys.subarray(i * width, (i + 1) * width);
    const length = Math.hypot(...row);
    row.forEach((x, j) => (row[j] = x / length));
  }
  const values = random
    .stream('values')
    .normal(pairs * width)
    .map((x) => x / Math.sqrt(width));
  const store = { device, pairs, width, keys, values };
  const read = name === 'linear' ? additive(store) : deep(store, { random, depth, settings });
  const got = await read.read();
  read.dispose();
  let error = 0;
  for (let i = 0; i < pairs; i++) {
    let [wrong, whole] = [0, 0];
    for (let j = i * width; j < (i + 1) * width; j++) {
      wrong += ((got[j] as number) - (values[j] as number)) ** 2;
      whole += (values[j] as number) ** 2;
    }
    error += wrong / whole / pairs;
  }
  report(`${spec} seed ${seed}: ${pairs} pairs, squared error ${error.toFixed(4)}`);
  return { mixer: spec, seed, cell: `pairs ${pairs}`, metric: 'squared error', value: error, chance: 1, extra: { width } };
}

interface Store {
  device: Device;
  pairs: number;
  width: number;
  keys: Float32Array;
  values: Float32Array;
}

const rowsOf = ({ device, width }: Store, values: Float32Array, order: readonly number[]): Tensor =>
  tensor(device, Float32Array.from(order.flatMap((i) => [...values.subarray(i * width, (i + 1) * width)])), [1, order.length, 1, width]);

/** S = sum k v^T, read as q S. */
function additive(store: Store): Tensor {
  return scope(() => {
    const order = Array.from({ length: store.pairs }, (_, i) => i);
    const k = rowsOf(store, store.keys, order);
    const none = zeros(store.device, k.shape);
    const { state } = lightning2WithState(none, k, rowsOf(store, store.values, order), { decay: [0] });
    return lightning2WithState(k, none, none, { decay: [0], initialState: state }).out;
  });
}

/** A memory that reads the pairs several times, one step a token, and is then asked. */
function deep(
  store: Store,
  { random, depth, settings }: { random: RandomStream; depth: number; settings: TaskContext['settings'] },
): Tensor {
  const { device, pairs, width } = store;
  const of = (name: string): number => numberSetting(settings, name);
  return scope(() => {
    const widths = [width, ...Array.from({ length: depth - 1 }, () => of('expansion') * width), width];
    const weights = widths.slice(1).map((outputs, i) => {
      const inputs = widths[i] as number;
      // a matrix starts at zero, a deeper memory at Xavier's numbers
      const bound = depth === 1 ? 0 : Math.sqrt(6 / (inputs + outputs));
      const drawn = random.stream(`weights${i}`).uniform(inputs * outputs);
      return tensor(
        device,
        drawn.map((u) => (2 * u - 1) * bound),
        [1, inputs, outputs],
      );
    });
    const start = { weights };
    const form = { chunkSize: 1, gradientPeriod: 1 };
    const rate = depth === 1 ? of('linearRate') : of('deepRate');
    const constant = (value: number): Tensor => tensor(device, new Float32Array(pairs).fill(value), [1, pairs, 1]);
    const [learningRate, forget] = [constant(rate), constant(0)];
    let state: ReturnType<typeof titansWithState>['state'] | undefined;
    for (let pass = 0; pass < of('passes'); pass++) {
      state = scope(() => {
        const order = [...random.stream('order').at({ step: pass }).permutation(pairs)];
        const [k, v] = [rowsOf(store, store.keys, order), rowsOf(store, store.values, order)];
        return titansWithState(k, k, v, { ...form, memory: start, learningRate, forget, ...(state && { initialState: state }) }).state;
      });
    }
    const asked = rowsOf(
      store,
      store.keys,
      Array.from({ length: pairs }, (_, i) => i),
    );
    return titansRetrieve(asked, state ?? { memory: start }, form);
  });
}
