// A run can be long, be stopped and go on: nothing grows, and the same seed gives the same numbers.
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  add,
  argmax,
  checkpoint,
  crossEntropy,
  type Device,
  dropout,
  embedding,
  grad,
  matmul,
  mean,
  mul,
  openDevice,
  RandomStream,
  scope,
  silu,
  sum,
  type Tensor,
  tensor,
  valueAndGrad,
  zeros,
} from '../src/index.js';
import { apply, tensorsIn } from '../src/internal.js';
import { accumulate } from '../src/autodiff/accumulate.js';
import { Tape, withTape } from '../src/autodiff/tape.js';
import { arraySink, arraySource, loadTraining, saveTraining } from '../src/io/index.js';
import { truncatedNormal } from '../src/nn/index.js';
import { adamW, type Optimizer } from '../src/optim/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const classes = 8;
interface Model {
  [name: string]: Tensor;
  table: Tensor;
  inner: Tensor;
  outer: Tensor;
}

/** A tiny network: embedding, gated product, dropout, classes. */
function initModel(seed: number): Model {
  const random = new RandomStream(seed, 'model');
  const weight = (shape: number[]): Tensor => truncatedNormal(device, random, shape, 0.3).keep();
  return { table: weight([classes, 8]), inner: weight([8, 16]), outer: weight([16, classes]) };
}

const step = valueAndGrad((p: Model, tokens: Tensor, targets: Tensor, random: RandomStream) => {
  const hidden = silu(matmul(embedding(p.table, tokens), p.inner));
  return crossEntropy(matmul(dropout(hidden, { rate: 0.1, random }), p.outer), targets);
});

/** Steps from `first` up to `end`; everything that a step draws comes from its number. */
async function train(p: Model, optimizer: Optimizer, first: number, end: number, seed: number): Promise<number[]> {
  const losses: Tensor[] = [];
  for (let at = first; at < end; at++) {
    const random = new RandomStream(seed, 'steps', { step: at, op: 0 });
    const draws = random.uniform(12);
    const tokens = Uint32Array.from({ length: 12 }, (_, i) => Math.floor((draws[i] ?? 0) * classes));
    losses.push(
      scope(() => {
        const targets = tensor(
          device,
          tokens.map((t) => (t * 3 + 1) % classes),
        );
        const { value, grads } = step(p, tensor(device, tokens), targets, random);
        optimizer.step(grads, { learningRate: 0.02 });
        return value;
      }).keep(),
    );
  }
  const values = await Promise.all(losses.map(async (loss) => (await loss.read())[0] ?? NaN));
  for (const loss of losses) loss.dispose();
  return values;
}

function disposeAll(...trees: object[]): void {
  for (const t of tensorsIn(trees)) t.dispose();
}

test('an op without a gradient that meets a tracked input throws at once', () => {
  const x = tensor(device, [1, 2, 3]);
  let after = false;
  const opaque = (t: Tensor): Tensor => apply({ name: 'opaque', inputs: [t], forward: () => add(t, 1) });
  expect(() =>
    grad((p: { x: Tensor }) => {
      const y = opaque(p.x);
      after = true;
      return sum(y);
    })({ x }),
  ).toThrow(expect.objectContaining({ code: 'UNSUPPORTED', message: expect.stringMatching(/^opaque: .*stopGradient/) }));
  expect(after).toBe(false);
  x.dispose();
});

test('the backward of a tape runs once, and frees what it saved', () => {
  const before = device.memory().tensors;
  const x = tensor(device, [1, 2, 3]);
  const tape = new Tape();
  tape.track(x);
  const y = withTape(tape, () => scope(() => sum(mul(x, x))));
  const seed = tensor(device, [1], []);
  const grads = tape.backward(new Map([[y.id, seed]]), new Set([x.id]), accumulate);
  expect(() => tape.backward(new Map([[y.id, seed]]), new Set([x.id]), accumulate)).toThrow(/has run already/);
  disposeAll([x, y, seed], [...grads.values()]);
  expect(device.memory().tensors).toBe(before);
});

test('a parameter that the loss does not use gets zeros, an integer one nothing', async () => {
  const p = { used: tensor(device, [1, 2]), unused: tensor(device, [3, 4, 5], [3]), steps: tensor(device, Int32Array.of(1)) };
  const grads = grad((q: typeof p) => sum(mul(q.used, q.used)))(p);
  expect([...(await grads.used.read())]).toEqual([2, 4]);
  expect([...(await grads.unused.read())]).toEqual([0, 0, 0]);
  expect(grads.steps).toBeUndefined();
  disposeAll(p, grads);
});

test('a loss that throws, or is no number, leaves nothing behind', () => {
  const x = tensor(device, [1, 2, 3]);
  const before = device.memory();
  for (const loss of [
    (p: { x: Tensor }) => mul(p.x, p.x),
    (p: { x: Tensor }) => {
      mul(p.x, p.x);
      throw new Error('in the loss');
    },
    (p: { x: Tensor }) =>
      sum(
        apply({
          name: 'bad-backward',
          inputs: [p.x],
          forward: () => add(p.x, 1),
          backward: () => {
            throw new Error('in backward');
          },
        }),
      ),
  ]) {
    expect(() => valueAndGrad(loss)({ x })).toThrow(/one number|in the loss|in backward/);
    expect(device.memory().tensors).toBe(before.tensors);
    expect(device.memory().liveBytes).toBe(before.liveBytes);
  }
  x.dispose();
});

test('gradients through checkpoint() are those without it, bit for bit', async () => {
  const p = initModel(3);
  const x = truncatedNormal(device, new RandomStream(4), [6, 8], 1);
  const layer = (h: Tensor, w: Tensor, v: Tensor): Tensor => silu(matmul(silu(matmul(h, w)), v));
  const run = (f: typeof layer): Promise<number[][]> => {
    const { value, grads } = valueAndGrad((q: Model) => mean(f(add(x, matmul(x, matmul(q.inner, q.outer))), q.inner, q.outer)))(p);
    const all = [value, grads.inner, grads.outer, grads.table] as Tensor[];
    return Promise.all(all.map(async (t) => [...(await t.read())])).finally(() => disposeAll(all));
  };
  expect(await run(checkpoint(layer))).toEqual(await run(layer));
  disposeAll(p, [x]);
});

test('a thousand steps leave memory, tensors, pipelines and bind groups as a few steps did', async () => {
  const p = initModel(1);
  const optimizer = adamW(p, { clip: 1 });
  const measure = (): object => {
    const { liveBytes, pooledBytes, tensors, buffers } = device.memory();
    return { liveBytes, pooledBytes, tensors, buffers, pipelines: device.pipelines.size, bindGroups: device.bindGroups.size };
  };
  const seen: object[] = [];
  const losses: number[] = [];
  for (let done = 0; done < 1000; done += 50) {
    losses.push(...(await train(p, optimizer, done, done + 50, 1)));
    seen.push(measure());
  }
  for (const later of seen.slice(2)) expect(later).toEqual(seen[1]);
  expect(losses.every(Number.isFinite)).toBe(true);
  expect(losses.at(-1)).toBeLessThan(0.5 * (losses[0] ?? 0));
  optimizer.dispose();
  disposeAll(p);
});

test('the same seed gives the same losses, another one others', async () => {
  const runs: number[][] = [];
  for (const seed of [5, 5, 6]) {
    const p = initModel(seed);
    const optimizer = adamW(p);
    runs.push(await train(p, optimizer, 0, 12, seed));
    optimizer.dispose();
    disposeAll(p);
  }
  expect(runs[1]).toEqual(runs[0]);
  expect(runs[2]).not.toEqual(runs[0]);
});

test('a run that is saved at step 7 and taken up by another process goes on exactly as if it had not stopped', async () => {
  const whole = initModel(9);
  const first = adamW(whole, { clip: 1, lossScale: 'dynamic' });
  const losses = await train(whole, first, 0, 7, 9);
  const sink = arraySink();
  await saveTraining(sink, whole, first, { step: 7, seed: 9, notes: { mixer: 'none' } });
  losses.push(...(await train(whole, first, 7, 15, 9)));

  const resumed = { table: zeros(device, [classes, 8]), inner: zeros(device, [8, 16]), outer: zeros(device, [16, classes]) };
  const second = adamW(resumed, { clip: 1, lossScale: 'dynamic' });
  const progress = await loadTraining(arraySource(sink.bytes()), resumed, second);
  expect(progress).toEqual({ step: 7, seed: 9, notes: { mixer: 'none' } });
  expect(await train(resumed, second, progress.step, 15, progress.seed)).toEqual(losses.slice(7));
  for (const name of ['table', 'inner', 'outer'] as const)
    expect([...(await resumed[name].read())]).toEqual([...(await (whole[name] as Tensor).read())]);
  expect(second.steps).toBe(first.steps);
  first.dispose();
  second.dispose();
  disposeAll(whole, resumed);
});

test('integers that are searched for carry no gradient, and no error, where none is asked', () => {
  const x = tensor(device, [1, 3, 2]);
  const grads = grad((p: { x: Tensor }) => {
    argmax(p.x);
    return sum(p.x);
  })({ x });
  disposeAll([x], grads);
});
