import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  Carry,
  cast,
  concat,
  type Device,
  type MixContext,
  openDevice,
  type Params,
  RandomStream,
  reshape,
  scope,
  slice,
  type State,
  tensor,
  type Tensor,
  type Tier,
  type TokenMixer,
} from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { type F64Array, expectErrorRatio, f64 } from '@heed/core/testing';
import { lawcat, lawcatFeatures, lawcatLayer, lawcatMixer, lawcatStart, lawcatWindow, lawcatWithState } from '../src/lawcat/index.js';
import { referenceFeatures, referenceLawcat, referenceWindow } from '../src/lawcat/reference.js';

const draw = (name: string, shape: readonly number[], turn: (x: number) => number = (x) => x): F64Array =>
  f64(
    shape,
    new RandomStream(5, name).normal(shape.reduce((a, b) => a * b, 1)).map((x) => Math.fround(turn(x))),
  );
const dispose = (list: Iterable<Tensor>): void => {
  for (const t of new Set(list)) t.dispose();
};

for (const tier of ['baseline', 'subgroups'] as const satisfies readonly Tier[]) {
  describe(`lawcat on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });
    const on = (x: F64Array): Tensor => tensor(device, Float32Array.from(x.values), x.shape);
    const near = async (name: string, got: Tensor, wanted: F64Array, bound = 3e-6): Promise<void> =>
      expectErrorRatio(name, { shape: got.shape, values: await got.read() }, wanted, bound);

    test('gives outputs and state of the float64 recurrence, from an initial state, at any length', async () => {
      for (const [tokens, keyDim, valueDim] of [
        [1, 4, 6],
        [37, 6, 5],
        [130, 8, 8],
      ] as const) {
        const shape = [2, tokens, 2];
        const [q, k] = ['q', 'k'].map((n) => draw(n, [...shape, keyDim], Math.exp)) as [F64Array, F64Array];
        const [v, gate] = [draw('v', [...shape, valueDim]), draw('gate', [...shape, keyDim], (x) => 3 * x)];
        const initialState = draw('s', [2, 2, keyDim, valueDim + 1], Math.abs);
        const expected = referenceLawcat(q, k, v, gate, { initialState });
        const { out, state } = scope(() => lawcatWithState(on(q), on(k), on(v), { gate: on(gate), initialState: on(initialState) }));
        await near('out', out, expected.out);
        await near('state', state, expected.state);
        dispose([out, state]);
      }
    });

    test('maps features as two softmaxes that each sum to one', async () => {
      const [u, weight] = [draw('u', [2, 7, 3, 6]), draw('w', [3, 6, 3])];
      const phi = scope(() => lawcatFeatures(on(u), on(weight)));
      await near('features', phi, referenceFeatures(u, weight));
      phi.dispose();
    });

    test('with a window mixes exponentials of the last keys in, at odd lengths and windows, affine or not', async () => {
      for (const [tokens, window, affine] of [
        [11, 3, false],
        [9, 16, true],
        [6, 1, false],
      ] as const) {
        const [q, k, v] = ['q', 'k', 'v'].map((n) => draw(n, [2, tokens, 2, 4])) as [F64Array, F64Array, F64Array];
        const [fq, fk] = ['fq', 'fk'].map((n) => draw(n, [2, tokens, 2, 6], Math.exp)) as [F64Array, F64Array];
        const [gate, windowFactor] = [draw('gate', [2, tokens, 2, 6]), draw('f', [2])];
        const expected = referenceWindow(q, k, v, referenceLawcat(fq, fk, v, gate), { window, windowFactor, affine });
        const out = scope(() =>
          lawcatWindow(on(q), on(k), on(v), {
            features: { q: on(fq), k: on(fk) },
            gate: on(gate),
            windowFactor: on(windowFactor),
            window,
            affine,
          }),
        );
        await near(`window ${window} of ${tokens}`, out, expected);
        out.dispose();
      }
    });
  });
}

describe('lawcat', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const on = (x: F64Array): Tensor => tensor(device, Float32Array.from(x.values), x.shape);
  const shape = [1, 12, 2, 4];
  const [q, k, v] = [draw('q', shape, Math.exp), draw('k', shape, Math.exp), draw('v', shape)];

  test('has the gradients of finite differences', async () => {
    const gate = draw('gate', shape);
    const dOut = draw('dOut', shape);
    const named: [string, F64Array][] = [
      ['q', q],
      ['k', k],
      ['v', v],
      ['gate', gate],
    ];
    const { outputs, grads } = scope(() => {
      const inputs = named.map(([, x]) => on(x)) as [Tensor, Tensor, Tensor, Tensor];
      return vjp(() => lawcat(inputs[0], inputs[1], inputs[2], { gate: inputs[3] }), inputs, [on(dOut)]);
    });
    const loss = (): number => referenceLawcat(q, k, v, gate).out.values.reduce((sum, x, i) => sum + x * dOut.values[i]!, 0);
    for (const [i, [name, array]] of named.entries()) {
      const direction = new RandomStream(3, name).normal(array.values.length);
      const move = (by: number): void => direction.forEach((x, j) => (array.values[j]! += by * x));
      const got = [...(await grads[i]!.read())].reduce((sum, x, j) => sum + x * direction[j]!, 0);
      move(1e-5);
      const above = loss();
      move(-2e-5);
      const below = loss();
      move(1e-5);
      expect(got, name).toBeCloseTo((above - below) / 2e-5, 3);
    }
    dispose([...outputs, ...grads]);
  });

  test('with open gates is plain normalised linear attention, with shut ones it returns the own value', async () => {
    const open = f64(shape, new Float64Array(96).fill(30));
    const shut = f64(shape, new Float64Array(96).fill(-1600));
    const plain = f64(shape);
    for (let h = 0; h < 2; h++)
      for (let t = 0; t < 12; t++) {
        const weights = Array.from({ length: t + 1 }, (_, j) =>
          [0, 1, 2, 3].reduce((s, c) => s + q.values[(t * 2 + h) * 4 + c]! * k.values[(j * 2 + h) * 4 + c]!, 0),
        );
        const total = weights.reduce((a, b) => a + b, 0);
        for (let c = 0; c < 4; c++)
          plain.values[(t * 2 + h) * 4 + c] = weights.reduce((s, w, j) => s + w * v.values[(j * 2 + h) * 4 + c]!, 0) / total;
      }
    const run = (gate: F64Array): Tensor => scope(() => lawcat(on(q), on(k), on(v), { gate: on(gate) }));
    const [all, one] = [run(open), run(shut)];
    expectErrorRatio('open', { shape, values: await all.read() }, plain, 3e-6);
    expectErrorRatio('shut', { shape, values: await one.read() }, v, 3e-6);
    dispose([all, one]);
  });

  test('goes on from its state', async () => {
    const made = scope(() => {
      const x = [q, k, v, draw('gate', shape)].map(on) as [Tensor, Tensor, Tensor, Tensor];
      const part = (from: number, end?: number): [Tensor, Tensor, Tensor, Tensor] =>
        x.map((t) => slice(t, 1, from, end)) as [Tensor, Tensor, Tensor, Tensor];
      const [a, b] = [part(0, 5), part(5)];
      const first = lawcatWithState(a[0], a[1], a[2], { gate: a[3] });
      const second = lawcatWithState(b[0], b[1], b[2], { gate: b[3], initialState: first.state });
      return { joined: concat([first.out, second.out], 1), whole: lawcat(x[0], x[1], x[2], { gate: x[3] }) };
    });
    expectErrorRatio('joined', { shape, values: await made.joined.read() }, f64(shape, await made.whole.read()), 1e-6);
    dispose(Object.values(made));
  });

  test('with a window goes on from its state with earlier tokens in front, and knows lengths', async () => {
    const [tokens, window] = [12, 5];
    const [fq, fk] = ['fq', 'fk'].map((n) => draw(n, [1, tokens, 2, 6], Math.exp)) as [F64Array, F64Array];
    const [gate, windowFactor] = [draw('gate', [1, tokens, 2, 6]), draw('f', [2])];
    const expected = referenceWindow(q, k, v, referenceLawcat(fq, fk, v, gate), { window, windowFactor, affine: true });
    const run = (from: number, to: number, more: object): Tensor => {
      const part = (x: F64Array): Tensor => slice(on(x), 1, from, to);
      const before = (x: F64Array): Tensor => slice(on(x), 1, 0, to);
      const options = { features: { q: part(fq), k: part(fk) }, gate: part(gate), windowFactor: on(windowFactor), window, affine: true };
      return lawcatWindow(part(q), before(k), before(v), { ...options, ...more });
    };
    const out = scope(() => {
      const first = (x: F64Array): Tensor => slice(on(x), 1, 0, 7);
      const { state } = lawcatWithState(first(fq), first(fk), first(v), { gate: first(gate) });
      return concat([run(0, 7, {}), run(7, 12, { initialState: state })], 1);
    });
    expectErrorRatio('pieces', { shape: out.shape, values: await out.read() }, expected, 3e-6);
    const cut = scope(() => run(0, tokens, { lengths: tensor(device, Int32Array.of(9)) }));
    const wanted = f64(expected.shape, expected.values.map((x, i) => (i < 9 * 8 ? x : 0))); // prettier-ignore
    expectErrorRatio('lengths', { shape: cut.shape, values: await cut.read() }, wanted, 3e-6);
    dispose([out, cut]);
  });

  test('says what does not fit', () => {
    scope(() => {
      const [a, b, c] = [on(q), on(k), on(v)];
      expect(() => lawcat(slice(reshape(a, [12, 2, 4]), 0, 0, 5), b, c, { gate: b })).toThrow(/q is .*; it must be \[batch, tokens, heads/);
      expect(() => lawcat(a, b, cast(c, 'i32'), { gate: b })).toThrow(/v is .* i32; it must be f32 or f16/);
      const features = { q: a, k: b };
      expect(() => lawcatWindow(a, b, c, { gate: b, features, window: 2, windowFactor: a })).toThrow(/windowFactor is .* it must be \[2\]/);
      expect(() => lawcat(a, b, c, { gate: slice(a, 1, 0, 3) })).toThrow(/gate is .*; it must be \[1, 12, 2, 4\], one logit a feature/);
      expect(() => lawcat(a, b, c, { gate: b, initialState: a })).toThrow(/it must be \[1, 2, 4, 5\]/);
      expect(() => lawcat(a, b, c, { gate: b, gateNormalizer: 0 })).toThrow(/gateNormalizer 0/);
      expect(() => lawcatFeatures(a, b)).toThrow(expect.objectContaining({ code: 'SHAPE_MISMATCH' }));
      expect(() => lawcatMixer({ dim: 6, heads: 2 })).toThrow(/head dimension 3; it must be an even number/);
      expect(() => lawcatStart(device, { batch: 0, heads: 1, headDim: 2 })).toThrow(/each is an integer of 1 or more/);
      const wide = on(draw('w', [2, 4, 3]));
      const w = on(draw('p', [8, 8]));
      const branch = { convQ: on(draw('c', [8, 4])), featureQ: wide, wq: w, wk: w, wv: w, wo: w, wGateUp: w };
      expect(() => lawcatLayer(branch, on(draw('x', [1, 5, 8])), { heads: 2 })).toThrow(/twice its features must be headDim 4/);
    });
  });
});

describe('lawcat as a token mixer', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const context = (): MixContext => ({ layer: 0, layers: 1, training: false, carry: new Carry() });
  const mixers: [string, TokenMixer<Params, State>][] = [
    ['alone', lawcatMixer({ dim: 16, heads: 4, kvHeads: 2, gateRank: 3, tieFeatureMaps: false }) as TokenMixer<Params, State>],
    [
      'with a window',
      lawcatMixer({
        dim: 16,
        heads: 2,
        window: 5,
        affine: true,
        rope: {},
        gateRank: 0,
        activation: 'silu',
        tieFilters: true,
      }) as TokenMixer<Params, State>,
    ],
  ];
  for (const [name, mixer] of mixers) {
    test(`${name}: a stream gives the parallel result for every split, a snapshot and swapped entries go on from there`, async () => {
      const params = mixer.init(device, new RandomStream(2));
      const tokens = 13;
      const x = on(draw('x', [2, tokens, 16]));
      const { out, aux } = mixer.apply(params, x, context());
      const expected = [...(await out.read())];
      const rows = (from: number, end: number): number[] =>
        [0, 1].flatMap((b) => expected.slice((b * tokens + from) * 16, (b * tokens + end) * 16));
      const step = (from: number, end: number, state: State): Tensor =>
        scope(() => mixer.step(params, slice(x, 1, from, end), state, context()));
      const start = (): State => mixer.start(device, { batch: 2, capacity: tokens, dtype: 'f32' });
      for (const cuts of [[0, 13], ...Array.from({ length: 12 }, (_, i) => [0, i + 1, 13]), Array.from({ length: 14 }, (_, i) => i)]) {
        const state = start();
        for (let i = 0; i + 1 < cuts.length; i++) {
          const [from, end] = [cuts[i]!, cuts[i + 1]!];
          const part = step(from, end, state);
          expectErrorRatio(
            `tokens ${from} to ${end} of ${cuts.join()}`,
            { shape: part.shape, values: await part.read() },
            f64(part.shape, rows(from, end)),
            5e-6,
          );
          part.dispose();
        }
        state.dispose();
      }
      const state = start();
      step(0, 7, state).dispose();
      const snapshot = await state.snapshot();
      const first = step(7, 9, state);
      const other = start();
      other.restore(snapshot);
      const second = step(7, 9, other);
      expect([...(await second.read())]).toEqual([...(await first.read())]);
      expect(() => other.truncate(1)).toThrow(/truncate to 1 of 9 tokens/);
      const swap = tensor(device, Uint32Array.of(1, 0));
      state.select(swap);
      state.select(swap);
      const [a, b] = [step(9, 13, state), step(9, 13, other)];
      expect([...(await a.read())]).toEqual([...(await b.read())]);
      dispose([x, out, ...Object.values(aux ?? {}), first, second, a, b, swap, ...tensorsIn(params)]);
      state.dispose();
      other.dispose();
    });

    test(`${name}: every parameter has a gradient, and no output depends on later tokens`, async () => {
      const params = mixer.init(device, new RandomStream(2));
      const leaves = [...tensorsIn(params)];
      const x = on(draw('x', [1, 10, 16]));
      const dOut = tensor(device, new Float32Array(160).fill(1, 0, 96), [1, 10, 16]);
      const { outputs, grads } = vjp(() => mixer.apply(params, x, context()).out, [x, ...leaves], [dOut]);
      const dx = [...(await grads[0]!.read())];
      expect(dx.slice(96).every((g) => g === 0)).toBe(true);
      for (const [i, grad] of grads.slice(1).entries()) {
        const values = [...(await grad.read())];
        // a gate starts in front of zeros: only its second factor moves first where there are two
        expect(values.every(Number.isFinite), leaves[i]?.describe()).toBe(true);
        expect(
          values.some((g) => g !== 0),
          `${leaves[i]?.describe()} has no gradient`,
        ).toBe(true);
      }
      dispose([x, dOut, ...outputs, ...grads, ...leaves]);
    });
  }

  test('1,000 decode steps leave the same live bytes', async () => {
    const mixer = mixers[0]![1];
    const params = mixer.init(device, new RandomStream(2));
    const x = on(draw('x', [1, 1, 16]));
    const state = mixer.start(device, { batch: 1, capacity: 1, dtype: 'f32' });
    const run = (steps: number): void => {
      for (let i = 0; i < steps; i++) mixer.step(params, x, state, context()).dispose();
    };
    run(3);
    await device.idle();
    const { liveBytes, tensors } = device.memory();
    run(1000);
    await device.idle();
    expect(device.memory()).toMatchObject({ liveBytes, tensors });
    expect(state.bytes().payload).toBe(4 * (4 * 4 * 4 + 4 * 4 + 2 * 3 * 16));
    state.dispose();
    dispose([x, ...tensorsIn(params)]);
  });
  const on = (x: F64Array): Tensor => tensor(device, Float32Array.from(x.values), x.shape);
});
