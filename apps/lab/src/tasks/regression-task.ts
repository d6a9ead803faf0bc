import { attention, type Device, RandomStream, scope, tensor, type Tensor } from '@heed/core';
import { lla } from '@heed/linear/lla';
import { numberSetting, type Task, type TaskContext, type TaskResult } from './task.js';

const source = 'acceptance figure of local linear attention on this experiment, another 20 draws (a third set: 0.28, 0.44, 0.49)';

type Operator = (q: Tensor, k: Tensor, v: Tensor, ridgeLambda: number) => Tensor;

/** What fits the values at a query from the pairs before it: locally linear, locally constant, globally affine. */
const operators: Readonly<Record<string, Operator>> = {
  lla: (q, k, v, ridgeLambda) => lla(q, k, v, { ridgeLambda, scale: 1 }),
  softmax: (q, k, v) => attention(q, k, v, { causal: true, scale: 1 }),
  // weights that do not depend on the keys: affine ridge regression over all pairs before
  linear: (q, k, v, ridgeLambda) => lla(q, k, v, { ridgeLambda, scale: 0 }),
};

/**
 * In-context regression without training (Zuo et al. 2025): keys N(0, I), values A1 k where the first channel of k is negative and A2 k + 1
 * elsewhere, entries of A1 and A2 N(0, 1) / 2. The query of a token is its key, its pair hidden: every operator predicts the value from
 * the earlier pairs. Squared error over the second half.
 */
export const regression: Task = {
  name: 'regression',
  about: 'in-context regression without training: lla below softmax below linear (global ridge)',
  settings: { tokens: 256, width: 4, draws: 20, ridgeLambda: 0.01 },
  published: [
    { mixer: 'lla', cell: 'second half', metric: 'squared error', value: 0.34, source },
    { mixer: 'softmax', cell: 'second half', metric: 'squared error', value: 0.48, source },
    { mixer: 'linear', cell: 'second half', metric: 'squared error', value: 0.59, source },
  ],
  async run(context) {
    const results: TaskResult[] = [];
    for (const name of context.mixers) for (const seed of context.seeds) results.push(await runOne(context, name, seed));
    return results;
  },
};

async function runOne({ device, settings, report }: TaskContext, name: string, seed: number): Promise<TaskResult> {
  const of = (setting: string): number => numberSetting(settings, setting);
  const operator = operators[name];
  if (!operator)
    throw new RangeError(`task regression: "${name}" is no operator of this task; it has ${Object.keys(operators).join(', ')}`);
  const [tokens, width, draws, ridgeLambda] = [of('tokens'), of('width'), of('draws'), of('ridgeLambda')];
  const { keys, values } = drawPairs(seed, { tokens, width, draws });
  const predicted = await predict(device, operator, { keys, values, tokens, width, draws, ridgeLambda });
  const half = Math.floor(tokens / 2);
  const errors = Array.from({ length: draws }, (_, draw) => {
    let sum = 0;
    for (let t = half; t < tokens; t++)
      for (let c = 0; c < width; c++)
        sum += ((values[(draw * tokens + t) * width + c] ?? 0) - (predicted[(draw * (tokens - 1) + t - 1) * width + c] ?? 0)) ** 2;
    return sum / ((tokens - half) * width);
  });
  const value = errors.reduce((total, error) => total + error, 0) / draws;
  const spread = Math.sqrt(errors.reduce((total, error) => total + (error - value) ** 2, 0) / Math.max(1, draws - 1) / draws);
  report(`${name} seed ${seed}: squared error ${value.toFixed(3)} +- ${spread.toFixed(3)} over ${draws} draws`);
  return { mixer: name, seed, cell: 'second half', metric: 'squared error', value, extra: { draws, standardError: spread } };
}

/** Keys and values, [draws, tokens, width]; a pure function of the seed. */
function drawPairs(seed: number, size: { tokens: number; width: number; draws: number }): { keys: Float32Array; values: Float32Array } {
  const { tokens, width, draws } = size;
  const random = new RandomStream(seed, 'regression/test');
  const keys = random.stream('keys').normal(draws * tokens * width);
  const maps = random.stream('maps').normal(draws * 2 * width * width);
  const values = new Float32Array(keys.length);
  for (let draw = 0; draw < draws; draw++)
    for (let t = 0; t < tokens; t++) {
      const key = keys.subarray((draw * tokens + t) * width, (draw * tokens + t + 1) * width);
      const side = (key[0] ?? 0) > 0 ? 1 : 0;
      for (let c = 0; c < width; c++) {
        let sum = side;
        key.forEach((x, d) => (sum += 0.5 * (maps[((draw * 2 + side) * width + c) * width + d] ?? 0) * x));
        values[(draw * tokens + t) * width + c] = sum;
      }
    }
  return { keys, values };
}

/** Predictions of tokens 1 on, [draws, tokens - 1, width]: query t + 1 over pairs 0 .. t. */
async function predict(
  device: Device,
  operator: Operator,
  given: { keys: Float32Array; values: Float32Array; tokens: number; width: number; draws: number; ridgeLambda: number },
): Promise<ArrayLike<number>> {
  const { tokens, width, draws, ridgeLambda } = given;
  const part = (x: Float32Array, first: number): Tensor => {
    const cut = new Float32Array(draws * (tokens - 1) * width);
    for (let draw = 0; draw < draws; draw++)
      cut.set(x.subarray((draw * tokens + first) * width, (draw * tokens + first + tokens - 1) * width), draw * (tokens - 1) * width);
    return tensor(device, cut, [draws, tokens - 1, 1, width]);
  };
  const out = scope(() => operator(part(given.keys, 1), part(given.keys, 0), part(given.values, 0), ridgeLambda));
  const read = await out.read();
  out.dispose();
  return read;
}
