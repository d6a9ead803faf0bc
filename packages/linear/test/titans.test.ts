import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, scope, slice, tensor, type Tensor, type Tier } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { titans, titansRetrieve, titansStart, titansStep, titansWithState } from '../src/titans/index.js';
import { planTitans } from '../src/titans/plan.js';
import { referenceTitans } from '../src/titans/reference.js';
import {
  checkForward,
  checkGradients,
  deviceOperands,
  disposeAll,
  formOf,
  operandsOf,
  type Problem,
  referenceOptions,
} from './titans/check.js';

const problems: Problem[] = [
  { tokens: 11, headDim: 8, chunkSize: 4, hidden: [12], gradientPeriod: null },
  { batch: 2, tokens: 13, headDim: 6, chunkSize: 3, hidden: [10, 7], gradientPeriod: 6, activation: 'silu' },
  { tokens: 9, headDim: 5, chunkSize: 2, hidden: [], gradientPeriod: 2, orders: 0, lossReduction: 'sum', heads: 3 },
  { tokens: 7, headDim: 8, chunkSize: 1, hidden: [16], gradientPeriod: 1, residual: false, activation: 'tanh' },
  { tokens: 10, headDim: 8, chunkSize: 3, hidden: [8], gradientPeriod: null, activation: 'relu', orders: 2, inFlight: 2 },
  { tokens: 3, headDim: 8, chunkSize: 4, hidden: [8], gradientPeriod: 4 },
  { tokens: 9, headDim: 5, chunkSize: 2, hidden: [7], gradientPeriod: 4, gradientClamp: 0.05 },
  { tokens: 9, headDim: 6, chunkSize: 2, hidden: [9, 4], gradientPeriod: 2, gate: 0.3, orders: 2 },
];
// the steps make small singular values grow: their rounding too
const orthogonal: Problem = { tokens: 9, headDim: 5, chunkSize: 2, hidden: [7], gradientPeriod: 4, orthogonalize: true };

for (const tier of ['baseline', 'subgroups'] as const satisfies readonly Tier[]) {
  describe(`the memory on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    test('gives outputs, weights and momentum of the float64 recurrence, whatever depth, chunk, period and order', async () => {
      for (const problem of problems) await checkForward(device, problem);
      await checkForward(device, orthogonal, 2e-4);
    });

    test('has the gradients of finite differences in every operand, through the inner gradient', async () => {
      for (const problem of [...problems.filter((p) => p.activation !== 'relu'), orthogonal]) {
        const found = await checkGradients(device, problem);
        for (const [name, [got, expected]] of Object.entries(found))
          expect(
            Math.abs(got - expected) / (Math.abs(expected) + 0.05),
            `${name} of ${JSON.stringify(problem)}: ${got}, ${expected}`,
          ).toBeLessThan(2e-3);
      }
    });
  });
}

describe('titans', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const problem: Problem = { batch: 2, tokens: 22, headDim: 6, chunkSize: 4, hidden: [9], gradientPeriod: 8 };
  const operands = operandsOf(problem);
  const expected = referenceTitans(operands.q, operands.k, operands.v, referenceOptions(operands, problem));

  test('in a stream, prefill in pieces then decode gives the parallel result for every split', async () => {
    const gated = { ...problem, gate: 0.3 };
    const drawn = referenceTitans(operands.q, operands.k, operands.v, referenceOptions(operands, gated));
    const everySplit = [[0, 22], ...Array.from({ length: 21 }, (_, i) => [0, i + 1, 22]), [0, 3, 4, 5, 13, 14, 21, 22]];
    // with a gate the weights of a move must not depend on whether tokens follow it
    const gatedSplits = [[0, 7, 8, 22], [0, 8, 9, 16, 22], [0, 15, 17, 22]]; // prettier-ignore
    for (const [made, wanted, cuts] of [
      ...everySplit.map((cuts) => [problem, expected, cuts] as const),
      ...gatedSplits.map((cuts) => [gated, drawn, cuts] as const),
    ]) {
      const outs = scope(() => {
        const { q, k, v, options } = deviceOperands(device, operands, formOf(made));
        const momentum = (options.momentum as readonly Tensor[])[0] as Tensor;
        const state = titansStart(device, {
          ...formOf(made),
          ...(options.transition && { transition: options.transition }),
          batch: 2,
          heads: 2,
          headDim: 6,
          memory: options.memory,
        });
        const list = cuts.slice(1).map((end, i) => {
          const from = cuts[i] as number;
          const [first, last] = [Math.floor(from / 4), Math.floor(end / 4)];
          const [pq, pk, pv, learningRate] = [q, k, v, options.learningRate].map((x) => slice(x, 1, from, end)) as [
            Tensor,
            Tensor,
            Tensor,
            Tensor,
          ];
          const rates = { learningRate, momentum: slice(momentum, 1, first, last), forget: slice(options.forget, 1, first, last) };
          return titansStep(pq, pk, pv, rates, state);
        });
        expect(state.tokens).toBe(22);
        state.dispose();
        return list;
      });
      for (const [i, out] of outs.entries()) {
        const [from, end] = [cuts[i] as number, cuts[i + 1] as number];
        const rows = [0, 1].flatMap((b) => [...wanted.out.values.subarray((b * 22 + from) * 12, (b * 22 + end) * 12)]);
        expectErrorRatio(
          `tokens ${from} to ${end} of cuts ${cuts.join()}`,
          { shape: out.shape, values: await out.read() },
          f64(out.shape, rows),
          2e-5,
        );
      }
      disposeAll(outs);
    }
  });

  test('cut at a multiple of the chunk goes on from its state, gradients included', async () => {
    const run = (cut: number | undefined): { outputs: Tensor[]; grads: Tensor[] } =>
      scope(() => {
        const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
        const momentum = (options.momentum as readonly Tensor[])[0] as Tensor;
        const part = (x: Tensor, from: number, end: number): Tensor => slice(x, 1, from, end);
        const whole = (): Tensor[] => [titans(q, k, v, options)];
        const cutAt = (at: number): Tensor[] => {
          const piece = (from: number, end: number, state?: ReturnType<typeof titansWithState>['state']) =>
            titansWithState(part(q, from, end), part(k, from, end), part(v, from, end), {
              ...options,
              learningRate: part(options.learningRate, from, end),
              momentum: part(momentum, from / 4, Math.floor(end / 4)),
              forget: part(options.forget, from / 4, Math.floor(end / 4)),
              ...(state && { initialState: state }),
            });
          const first = piece(0, at);
          const second = piece(at, 22, first.state);
          return [first.out, second.out];
        };
        const dOut = tensor(device, Float32Array.from(operands.v.values), q.shape);
        const cotangents = cut === undefined ? [dOut] : [part(dOut, 0, cut), part(dOut, cut, 22)];
        const { outputs, grads } = vjp(
          () => (cut === undefined ? whole() : cutAt(cut)),
          [q, k, v, momentum, ...options.memory.weights],
          cotangents,
        );
        return { outputs, grads };
      });
    const one = run(undefined);
    const two = run(12);
    for (const [i, grad] of one.grads.entries()) {
      const wanted = f64(grad.shape, await grad.read());
      expectErrorRatio(`gradient ${i}`, { shape: grad.shape, values: await (two.grads[i] as Tensor).read() }, wanted, 1e-5);
    }
    disposeAll([...one.outputs, ...one.grads, ...two.outputs, ...two.grads]);
  });

  test('gives the same gradients when groups of chunks run again in the backward pass', async () => {
    const run = (extra: { recompute?: boolean; inFlight?: number }): Tensor[] =>
      scope(() => {
        const { q, k, v, options } = deviceOperands(device, operands, { ...formOf(problem), ...extra });
        const dOut = tensor(device, Float32Array.from(operands.v.values), q.shape);
        return vjp(() => titans(q, k, v, options), [q, k, v, options.learningRate, ...options.memory.weights], [dOut]).grads;
      });
    const [plain, again] = [run({}), run({ recompute: true, inFlight: 1 })];
    for (const [i, grad] of plain.entries())
      expectErrorRatio(
        `gradient ${i}`,
        { shape: grad.shape, values: await (again[i] as Tensor).read() },
        f64(grad.shape, await grad.read()),
        1e-5,
      );
    disposeAll([...plain, ...again]);
  });

  test('without steps only forgets, and a sequence shorter than a chunk reads the learned start', async () => {
    const made = scope(() => {
      const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
      const zero = tensor(device, new Float32Array(2 * 22 * 2), [2, 22, 2]);
      const still = titansWithState(q, k, v, { ...options, learningRate: zero });
      const short = (x: Tensor): Tensor => slice(x, 1, 0, 3);
      const none = tensor(device, new Float32Array(0), [2, 0, 2]);
      const out = titans(short(q), short(k), short(v), {
        ...options,
        momentum: none,
        forget: none,
        learningRate: short(options.learningRate),
      });
      const asked = titansRetrieve(short(q), { memory: options.memory });
      return { weight: still.state.memory.weights[0] as Tensor, out, asked };
    });
    const keep = [0, 1].map((b) =>
      [0, 1].map((h) => [0, 1, 2, 3, 4].reduce((p, n) => p * (1 - operands.forget.values[(b * 5 + n) * 2 + h]!), 1)),
    );
    const wanted = [0, 1].flatMap((b) =>
      [0, 1].flatMap((h) => [...operands.weights[0]!.values.subarray(h * 54, h * 54 + 54)].map((w) => w * keep[b]![h]!)),
    );
    expectErrorRatio('forgotten', { shape: [2, 2, 6, 9], values: await made.weight.read() }, f64([2, 2, 6, 9], wanted), 1e-6);
    expect([...(await made.out.read())]).toEqual([...(await made.asked.read())]);
    disposeAll([made.weight, made.out, made.asked]);
  });

  test('linear, chunk by token and without momentum is the gated delta rule', async () => {
    const linear: Problem = { tokens: 12, headDim: 6, chunkSize: 1, gradientPeriod: 1, residual: false, orders: 0, heads: 1 };
    const given = operandsOf(linear);
    const d = 6;
    const w = [...given.weights[0]!.values];
    const rows: number[] = [];
    for (let t = 0; t < 12; t++) {
      const row = (x: { values: Float64Array }): number[] => [...x.values.subarray(t * d, t * d + d)];
      const [k, v, q] = [row(given.k), row(given.v), row(given.q)];
      const error = v.map((x, j) => k.reduce((sum, y, i) => sum + y * w[i * d + j]!, 0) - x);
      for (let i = 0; i < d; i++)
        for (let j = 0; j < d; j++)
          w[i * d + j] = (1 - given.forget.values[t]!) * w[i * d + j]! - ((2 * given.learningRate.values[t]!) / d) * k[i]! * error[j]!;
      rows.push(...v.map((_, j) => q.reduce((sum, y, i) => sum + y * w[i * d + j]!, 0)));
    }
    const out = scope(() => {
      const { q, k, v, options } = deviceOperands(device, given, formOf(linear));
      return titans(q, k, v, options);
    });
    expectErrorRatio('out', { shape: out.shape, values: await out.read() }, f64(out.shape, rows), 3e-6);
    out.dispose();
  });

  test('with a clamp far off the gradients is the plain one', async () => {
    const huge = scope(() => {
      const { q, k, v, options } = deviceOperands(device, operands, { ...formOf(problem), gradientClamp: 1e6 });
      return titans(q, k, v, options);
    });
    expectErrorRatio('a clamp far off', { shape: huge.shape, values: await huge.read() }, expected.out, 2e-5);
    huge.dispose();
  });

  test('says what does not fit', () => {
    scope(() => {
      const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
      expect(() => titans(q, k, v, { ...options, gradientPeriod: 6 })).toThrow(
        /gradientPeriod is 6; it must be null or a multiple of chunkSize 4/,
      );
      expect(() => titans(q, k, v, { ...options, forget: options.learningRate })).toThrow(
        /forget is .*; it must be \[2, 5, 2\]: batch, whole chunks, heads/,
      );
      expect(() => titans(q, k, v, { ...options, memory: { weights: [] } })).toThrow(/the memory has no weights/);
      expect(() => titans(q, k, v, { ...options, initialState: q as never })).toThrow(/initialState is no state of a memory/);
      expect(() => titans(q, slice(k, 1, 0, 4), v, options)).toThrow(expect.objectContaining({ code: 'SHAPE_MISMATCH' }));
    });
  });
});

describe('a stream', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const problem: Problem = { batch: 2, tokens: 10, headDim: 4, chunkSize: 4, hidden: [6], gradientPeriod: 4 };
  const operands = operandsOf(problem);

  test('decodes bit for bit on from a snapshot, keeps chosen batch entries, and is cut back to where it stands only', async () => {
    const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
    const memory = options.memory;
    const start = () => titansStart(device, { ...formOf(problem), batch: 2, heads: 2, headDim: 4, memory });
    const momentum = (options.momentum as readonly Tensor[])[0] as Tensor;
    const go = (from: number, end: number, state: ReturnType<typeof start>): Tensor =>
      scope(() => {
        const part = (x: Tensor): Tensor => slice(x, 1, from, end);
        const gates = (x: Tensor): Tensor => slice(x, 1, Math.floor(from / 4), Math.floor(end / 4));
        return titansStep(
          part(q),
          part(k),
          part(v),
          { learningRate: part(options.learningRate), momentum: gates(momentum), forget: gates(options.forget) },
          state,
        );
      });
    const state = start();
    go(0, 6, state).dispose();
    const snapshot = await state.snapshot();
    const first = go(6, 10, state);
    const other = start();
    other.restore(snapshot);
    expect(other.tokens).toBe(6);
    const second = go(6, 10, other);
    expect([...(await second.read())]).toEqual([...(await first.read())]);
    expect(() => state.truncate(3)).toThrow(/truncate to 3 of 10 tokens/);
    state.truncate(10);
    const weight = await (state.values.memory.weights[0] as Tensor).read();
    const swap = tensor(device, Uint32Array.of(1, 0));
    state.select(swap);
    const swapped = await (state.values.memory.weights[0] as Tensor).read();
    expect([...swapped.subarray(0, 48)]).toEqual([...weight.subarray(48)]);
    const wrong = titansStart(device, { ...formOf(problem), batch: 1, heads: 2, headDim: 4, memory });
    expect(() => wrong.restore(snapshot)).toThrow(expect.objectContaining({ code: 'INVALID_FILE' }));
    disposeAll([q, k, v, options.learningRate, options.forget, momentum, ...memory.weights, memory.gamma, first, second, swap]);
    for (const s of [state, other, wrong]) s.dispose();
  });

  test('keeps the same live bytes for 300 tokens', async () => {
    const { q, k, v, options } = deviceOperands(device, operands, formOf(problem));
    const state = titansStart(device, { ...formOf(problem), batch: 2, heads: 2, headDim: 4, memory: options.memory, orders: 0 });
    const token = [q, k, v, options.learningRate].map((x) => slice(x, 1, 0, 1)) as [Tensor, Tensor, Tensor, Tensor];
    const [none, one] = [slice(options.forget, 1, 0, 0), slice(options.forget, 1, 0, 1)];
    const run = (steps: number): void => {
      for (let i = 0; i < steps; i++)
        titansStep(token[0], token[1], token[2], { learningRate: token[3], forget: state.completes(1) ? one : none }, state).dispose();
    };
    run(8);
    await device.idle();
    const { liveBytes, tensors } = device.memory();
    const bytes = state.bytes();
    run(300);
    await device.idle();
    expect(device.memory()).toMatchObject({ liveBytes, tensors });
    expect(state.bytes()).toEqual(bytes);
    state.dispose();
    disposeAll([
      q,
      k,
      v,
      options.learningRate,
      options.forget,
      ...(options.momentum as readonly Tensor[]),
      ...options.memory.weights,
      options.memory.gamma,
      ...token,
      none,
      one,
    ]);
  });
});

describe('a plan', () => {
  test('cuts at moves of the gradient point and at the chunks in flight, never storing a tail', () => {
    const base = { pending: 0, tokens: 22, chunkSize: 4, period: 2, chunksBefore: 0, inFlight: 8 };
    expect(planTitans(base)).toEqual({
      groups: [
        { chunks: 2, moves: true, padding: 1 },
        { chunks: 2, moves: true, padding: 0 },
        { chunks: 1, moves: false, padding: 0 },
      ],
      tail: 2,
      padding: 1,
      rest: 3,
    });
    expect(planTitans({ ...base, period: null }).groups).toEqual([{ chunks: 5, moves: false, padding: 1 }]);
    expect(planTitans({ ...base, chunksBefore: 3, inFlight: 1 }).groups.map((g) => g.moves)).toEqual([true, false, true, false, true]);
    // a chunk that waits for one token: its rows of the padding are all that reads before it
    expect(planTitans({ ...base, pending: 3, tokens: 1 })).toEqual({
      groups: [{ chunks: 1, moves: false, padding: 4 }],
      tail: 0,
      padding: 4,
      rest: 1,
    });
    expect(planTitans({ ...base, pending: 1, tokens: 2 })).toEqual({ groups: [], tail: 3, padding: 0, rest: 2 });
  });
});
