import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, type DType, mul, openDevice, slice, tensor, type Tensor, type Tier } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectClose, expectErrorRatio, type F64Array, f64 } from '@heed/core/testing';
import { based, basedStart, basedStep, basedWithState, leftOfWindowSize, slidingWindow, taylorFeatures } from '../src/based/index.js';
import { planBased, symmetricFeatures } from '../src/based/layout.js';
import { referenceBased, referenceBasedGradients, referenceFeatures } from '../src/based/reference.js';
import { draw, type Drawn } from './drawn.js';

for (const tier of ['baseline', 'matrix'] as const satisfies readonly Tier[]) {
  describe(`on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });
    const dtype: DType = tier === 'matrix' ? 'f16' : 'f32';
    // what specialises a kernel is fixed: each pair of dimensions compiles kernels of its own
    const [featureDim, valueDim] = [6, 20];

    test('outputs and gradients are those of the float64 definition for any length and segments', async () => {
      const problem = fc.record({
        tokens: fc.integer({ min: 2, max: 60 }),
        heads: fc.integer({ min: 1, max: 2 }),
        chunk: fc.constantFrom(9, 17, 28),
        lengths: fc.constantFrom([13, 60], [60, 2]),
        seed: fc.integer({ min: 1, max: 1000 }),
      });
      await fc.assert(
        fc.asyncProperty(problem, async ({ tokens, heads, chunk, lengths, seed }) => {
          const made = (name: string, d: number) => draw(device, name, [2, tokens, heads, d], dtype, seed);
          const [q, k, v, d] = [
            await made('q', featureDim),
            await made('k', featureDim),
            await made('v', valueDim),
            await made('d', valueDim),
          ];
          const given = tensor(device, Int32Array.from(lengths));
          const { outputs, grads } = vjp(
            () => based(q.x, k.x, v.x, { chunk: Math.min(chunk, tokens - 1), lengths: given }),
            [q.x, k.x, v.x],
            [d.x],
          );
          const options = { lengths: lengths.map((n) => Math.min(n, tokens)) };
          const expected = referenceBased(q.values, k.values, v.values, options);
          const backward = referenceBasedGradients(q.values, k.values, v.values, d.values, options);
          // f16: rounded weights on fragments; gradients of few tokens are differences of what nearly cancels
          const bound = dtype === 'f16' ? 3e-3 : 3e-6;
          for (const [name, got, wanted] of [
            ['out', outputs[0], expected.out],
            ['dq', grads[0], backward.q],
            ['dk', grads[1], backward.k],
            ['dv', grads[2], backward.v],
          ] as const)
            expectErrorRatio(
              `${name} of ${tokens} tokens`,
              { shape: got?.shape ?? [], values: await (got as Tensor).read() },
              wanted,
              bound,
            );
          for (const t of tensorsIn([q.x, k.x, v.x, d.x, given, [...outputs], [...grads]])) t.dispose();
        }),
        { seed: 5, numRuns: tier === 'matrix' ? 3 : 8 },
      );
    });
  });
}

describe('forms and limits', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const three = async (tokens: number, [f, d]: readonly [number, number] = [4, 8]): Promise<[Drawn, Drawn, Drawn]> => [
    await draw(device, 'q', [1, tokens, 2, f]),
    await draw(device, 'k', [1, tokens, 2, f]),
    await draw(device, 'v', [1, tokens, 2, d]),
  ];
  const free = (...trees: unknown[]): void => {
    for (const t of tensorsIn(trees)) t.dispose();
  };

  test('without causality, or without the normaliser, results and gradients are those of the definition', async () => {
    const [q, k, v] = await three(9);
    const lengths = tensor(device, Int32Array.of(7));
    for (const options of [{ causal: false }, { normalize: false, scale: 0.3 }]) {
      const { outputs, grads } = vjp(() => based(q.x, k.x, v.x, { ...options, lengths, chunk: 4 }), [q.x, k.x, v.x], [v.x]);
      const expected = referenceBased(q.values, k.values, v.values, { ...options, lengths: [7] });
      const backward = referenceBasedGradients(q.values, k.values, v.values, v.values, { ...options, lengths: [7] });
      const all = [expected.out, backward.q, backward.k, backward.v];
      for (const [i, got] of [...outputs, ...grads].entries())
        expectErrorRatio(`${JSON.stringify(options)} ${i}`, { shape: got.shape, values: await got.read() }, all[i] as F64Array, 3e-6);
      free([...outputs], [...grads]);
    }
    free(q.x, k.x, v.x, lengths);
  });

  test('a stream gives the parallel result for every split, and its sums are the official states, compressed or not', async () => {
    const tokens = 9;
    const [q, k, v] = await three(tokens);
    const whole = basedWithState(q.x, k.x, v.x);
    const expected = referenceBased(q.values, k.values, v.values);
    expectErrorRatio('kvState', { shape: whole.kvState.shape, values: await whole.kvState.read() }, expected.kvState, 3e-6);
    expectErrorRatio('kState', { shape: whole.kState.shape, values: await whole.kState.read() }, expected.kState, 3e-6);
    const out = await whole.out.read();
    const part = (x: Tensor, start: number, end: number): Tensor => slice(x, 1, start, end);
    for (let split = 0; split <= tokens; split++) {
      const state = basedStart(device, { batch: 1, heads: 2, featureDim: 4, valueDim: 8 });
      for (const [start, end] of [
        [0, split],
        [split, tokens],
      ] as const) {
        const piece = [q.x, k.x, v.x].map((x) => part(x, start, end)) as [Tensor, Tensor, Tensor];
        const got = basedStep(...piece, state);
        const wanted = f64(got.shape, Array.from(out.subarray(start * 16, end * 16)));
        if (end > start)
          expectClose(`${start} to ${end}`, { shape: got.shape, values: await got.read() }, wanted, { atol: 1e-5, rtol: 1e-5 });
        free(got, piece);
      }
      expect(state.tokens).toBe(tokens);
      // 15 features in place of 21
      expect(state.bytes().payload).toBe(4 * 2 * symmetricFeatures(4) * 9);
      if (split === 4) {
        const full = state.full();
        expectErrorRatio('state', { shape: full.kvState.shape, values: await full.kvState.read() }, expected.kvState, 3e-6);
        // from the state of the first part, in either order, the second part comes out the same
        const later = [q.x, k.x, v.x].map((x) => part(x, 0, 3)) as [Tensor, Tensor, Tensor];
        const official = based(...later, { initialState: full });
        const compact = based(...later, { initialState: { kvState: state.get('kv'), kState: state.get('z') } });
        expectClose('states', { shape: compact.shape, values: await compact.read() }, f64(official.shape, await official.read()), {
          atol: 1e-6,
          rtol: 1e-5,
        });
        const resumed = basedStart(device, { batch: 1, heads: 2, featureDim: 4, valueDim: 8, initialState: full });
        resumed.restore(await state.snapshot());
        const again = basedStep(...later, resumed);
        expectClose('restored', { shape: again.shape, values: await again.read() }, f64(official.shape, await official.read()), {
          atol: 1e-6,
          rtol: 1e-5,
        });
        expect(() => resumed.truncate(2)).toThrow(/keeps no tokens to go back to/);
        free(full, later, official, compact, again);
        resumed.dispose();
      }
      state.dispose();
    }
    free(whole, q.x, k.x, v.x);
  });

  test('queries of zero give the running mean, one token its value, and small scores what softmax gives', async () => {
    const [q, k, v] = await three(12);
    const zero = mul(q.x, 0);
    const mean = based(zero, k.x, v.x);
    const got = await mean.read();
    for (let t = 0; t < 12; t++) {
      let sum = 0;
      for (let j = 0; j <= t; j++) sum += v.values.values[j * 16] as number;
      expect(got[t * 16]).toBeCloseTo(sum / (t + 1), 5);
      if (t === 0) expect(got[0]).toBeCloseTo(v.values.values[0] as number, 6);
    }
    const small = mul(q.x, 0.1);
    const linear = based(small, k.x, v.x);
    const softmax = slidingWindow(small, k.x, v.x, { left: 12 });
    const [a, b] = [await linear.read(), await softmax.read()];
    expect(Math.max(...a.map((value, i) => Math.abs(value - (b[i] as number))))).toBeLessThan(0.01);
    free(q.x, k.x, v.x, zero, mean, small, linear, softmax);
  });

  test('the features give the weights, and a window counts the keys before its own', async () => {
    const [q, k, v] = await three(5);
    const phi = taylorFeatures(q.x);
    expect(phi.shape).toEqual([1, 5, 2, 21]);
    const values = await phi.read();
    referenceFeatures(q.values.values.subarray(0, 4), 0.5).forEach((expected, i) => expect(values[i]).toBeCloseTo(expected, 5));
    const own = slidingWindow(v.x, v.x, v.x, { left: 0 });
    const both = slidingWindow(v.x, v.x, v.x, { left: 0, right: 1 });
    expectClose('the own key alone', { shape: own.shape, values: await own.read() }, v.values, { atol: 1e-6, rtol: 1e-6 });
    expect((await both.read())[0]).not.toBeCloseTo(v.values.values[0] as number, 3);
    expect(leftOfWindowSize(256)).toBe(128);
    free(q.x, k.x, v.x, phi, own, both);
  });

  test('wrong arguments say what was given', async () => {
    const [q, k, v] = await three(3);
    const narrow = slice(v.x, 2, 0, 1);
    expect(() => based(q.x, k.x, narrow)).toThrow(/v has 1 heads, q and k have \d; v must have as many heads as q/);
    expect(() => based(q.x, k.x, v.x, { scale: 0 })).toThrow(/scale is 0; it must be above 0/);
    expect(() => based(q.x, k.x, v.x, { initialState: { kvState: v.x, kState: q.x } })).toThrow(/with 21 features, or 15 compressed ones/);
    expect(() => based(q.x, k.x, v.x, { initialState: v.x as never })).toThrow(/initialState has no kvState and kState/);
    expect(() => slidingWindow(q.x, k.x, v.x, { left: -1 })).toThrow(/left is -1/);
    expect(() => slidingWindow(q.x, k.x, v.x, { left: 1, scale: NaN })).toThrow(/scale is NaN; it must be finite/);
    expect(() => planBased({ batch: 1, tokens: 9, heads: 1, featureDim: 64, valueDim: 64 }, 16384, 8)).toThrow(/use at most 40/);
    free(q.x, k.x, v.x, narrow);
  });

  test('plans keep to 256 lanes and to the workgroup memory', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.integer({ min: 1, max: 200 }),
        fc.constantFrom(16384, 49152),
        (f, valueDim, bytes) => {
          const plan = planBased({ batch: 1, tokens: 500, heads: 4, featureDim: f, valueDim }, bytes, 64);
          const blocks = (Math.ceil(f / 4) * (Math.ceil(f / 4) + 1)) / 2;
          expect((plan.columns / 4 + 1) * blocks).toBeLessThanOrEqual(256);
          expect(plan.slabs * 4 * blocks).toBeLessThanOrEqual(256);
          expect(plan.tile).toBeGreaterThan(0);
          expect(plan.gradientTile).toBeGreaterThan(0);
          expect(plan.segments * plan.segmentTokens).toBeGreaterThanOrEqual(500);
        },
      ),
      { seed: 3 },
    );
  });
});
