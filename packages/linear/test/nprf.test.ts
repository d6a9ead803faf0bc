import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { concat, type Device, openDevice, RandomStream, scope, slice, tensor, type Tensor, type Tier, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { nprf, nprfMixer, nprfRandomFeatures, nprfStart, nprfStep, planNprf } from '../src/nprf/index.js';
import { planTransform } from '../src/nprf/kernels/convolve.js';
import { earlyRows } from '../src/nprf/plan.js';
import { slabsOf } from '../src/nprf/toeplitz.js';
import { checkProblem, draw } from './nprf/check.js';

for (const tier of ['baseline', 'subgroups', 'matrix'] as const satisfies readonly Tier[]) {
  describe(`on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    test('by pairs outputs and gradients are those of float64: odd and single lengths, cross lengths, both masks, lengths', async () => {
      for (const given of [
        { queries: 1, batch: 2, gradients: false },
        { queries: 83, options: { causal: true } },
        { queries: 19, keys: 31, options: { causal: true } },
        { queries: 31, keys: 19 },
        { queries: 23, batch: 2, lengths: [23, 11], options: { denominatorEps: 0.1 } },
        { queries: [5, 7] as const },
      ])
        await checkProblem(device, { ...given, options: { path: 'direct', ...given.options } });
    });

    test('by transforms they are the same', async () => {
      for (const given of [
        { queries: 83 },
        { queries: 19, keys: 31 },
        { queries: [5, 7] as const },
        { queries: 20, batch: 2, lengths: [20, 9] },
      ])
        await checkProblem(device, { ...given, options: { path: 'fft' } });
    });

    test('causal by transforms: rows near the start go by pairs, and every row is right to 1e-5', async () => {
      const worst = await checkProblem(device, {
        queries: 300,
        heads: 1,
        features: 6,
        valueDim: 3,
        options: { path: 'fft', causal: true },
      });
      expect(worst).toBeLessThan(1e-5);
      await checkProblem(device, {
        queries: 150,
        keys: 200,
        heads: 1,
        features: 6,
        valueDim: 3,
        options: { path: 'fft', causal: true },
        gradients: false,
      });
    });
  });
}

describe('options and limits', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('any lengths, heads and masks give what float64 gives, on both paths', async () => {
    const problem = fc.record({
      batch: fc.integer({ min: 1, max: 2 }),
      queries: fc.integer({ min: 2, max: 60 }),
      keys: fc.integer({ min: 2, max: 60 }),
      heads: fc.integer({ min: 1, max: 3 }),
      spread: fc.constantFrom(0, 0.5, 2),
      options: fc.record({ causal: fc.boolean(), path: fc.constantFrom('direct' as const, 'fft' as const) }),
      seed: fc.integer({ min: 1, max: 1000 }),
    });
    await fc.assert(
      fc.asyncProperty(problem, async (given) => {
        await checkProblem(device, { ...given, bound: 3e-5 });
      }),
      { seed: 5, numRuns: 15 },
    );
  });

  test('a bias that is constant beyond a distance: by pairs, by transforms and by a band, both masks, lengths', async () => {
    for (const [queries, clip, causal] of [
      [2, 3, true],
      [64, 5, false],
      [65, 1, true],
      [130, 70, true],
      [200, 7, false],
      [260, 64, true],
    ] as const)
      await checkProblem(device, { queries, heads: 2, dim: 5, valueDim: 3, features: 6, options: { causal, clip, path: 'band' } });
    await checkProblem(device, { batch: 2, queries: 150, features: 5, lengths: [149, 40], options: { clip: 9, path: 'band' } });
    for (const path of ['direct', 'fft'] as const)
      await checkProblem(device, { queries: 30, features: 5, options: { clip: 4, causal: path === 'fft', path }, bound: 3e-5 });
    await checkProblem(device, { queries: 1, gradients: false, options: { causal: true, clip: 3, path: 'band' } });
    // as many entries as distances, and more
    for (const clip of [29, 40]) await checkProblem(device, { queries: 30, features: 5, options: { clip } });
    await checkProblem(device, { queries: 150, features: 5, options: { clip: 3, denominatorEps: 0.5, path: 'band', causal: true } });
  });

  test('sines and cosines, and inputs that are not normalised', async () => {
    await checkProblem(device, { queries: 17, options: { featureMap: 'trf', denominatorEps: 5 } });
    await checkProblem(device, { queries: 17, options: { normalize: false, path: 'direct' }, bound: 3e-5 });
  });

  test('many features and wide values are cut into chunks', () =>
    checkProblem(device, { queries: 9, heads: 1, features: 70, valueDim: 75, gradients: false }));

  test('a constant on the bias changes nothing, and minus infinity outside a window leaves local attention', async () => {
    const [tokens, heads, dim] = [24, 1, 8];
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, heads, dim])));
    const w = nprfRandomFeatures(device, { heads, headDim: dim, features: 16, seed: 1 });
    const table = Array.from(new RandomStream(1, 'b').normal(2 * tokens - 1));
    const run = async (bias: number[]): Promise<Float32Array> => {
      const b = tensor(device, bias, [heads, 2 * tokens - 1]);
      const out = nprf(q!.x, k!.x, v!.x, w, b);
      const values = (await out.read()) as Float32Array;
      for (const t of [b, out]) t.dispose();
      return values;
    };
    const plain = await run(table);
    const moved = await run(table.map((x) => x + 50));
    plain.forEach((x, i) => expect(moved[i]).toBeCloseTo(x, 4));
    const local = await run(table.map((x, i) => (Math.abs(i - (tokens - 1)) <= 2 ? x : -Infinity)));
    // the first token sees tokens 0, 1 and 2: values of others do not enter
    const v2 = tensor(
      device,
      v!.values.values.map((x, i) => (i >= 3 * dim ? 1e3 : x)),
      [1, tokens, heads, dim],
    );
    const b = tensor(
      device,
      table.map((x, i) => (Math.abs(i - (tokens - 1)) <= 2 ? x : -Infinity)),
      [heads, 2 * tokens - 1],
    );
    const other = nprf(q!.x, k!.x, v2, w, b);
    const values = await other.read();
    for (let c = 0; c < dim; c++) expect(values[c]).toBeCloseTo(local[c] as number, 5);
    for (const t of tensorsIn([q!.x, k!.x, v!.x, w, v2, b, other])) t.dispose();
  });

  test('many features approach the softmax of unit queries and keys with the bias', async () => {
    const [tokens, dim] = [24, 4];
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, 1, dim])));
    const bias = await draw(device, 'bias', [1, 2 * tokens - 1], 1, 0.5);
    const unit = (x: Float64Array, t: number): number[] => {
      const row = [...x.subarray(t * dim, (t + 1) * dim)];
      const length = Math.hypot(...row);
      return row.map((y) => y / length);
    };
    const wanted = f64([1, tokens, 1, dim]);
    for (let i = 0; i < tokens; i++) {
      const weights = Array.from({ length: tokens }, (_, j) => {
        const [a, b] = [unit(q!.values.values, i), unit(k!.values.values, j)];
        return Math.exp(a.reduce((sum, x, c) => sum + x * (b[c] as number), 0) + (bias.values.values[j - i + tokens - 1] as number));
      });
      const total = weights.reduce((sum, x) => sum + x, 0);
      weights.forEach((x, j) => {
        for (let c = 0; c < dim; c++) wanted.values[i * dim + c]! += (x / total) * (v!.values.values[j * dim + c] as number);
      });
    }
    const errors: number[] = [];
    for (const features of [64, 4096]) {
      const w = nprfRandomFeatures(device, { heads: 1, headDim: dim, features, seed: 2, orthogonal: true });
      const out = nprf(q!.x, k!.x, v!.x, w, bias.x);
      const values = await out.read();
      errors.push(Math.sqrt(wanted.values.reduce((sum, x, i) => sum + (x - (values[i] as number)) ** 2, 0) / wanted.values.length));
      for (const t of [w, out]) t.dispose();
    }
    expect(errors[1]).toBeLessThan(0.02);
    expect(errors[1]).toBeLessThan((errors[0] as number) / 3);
    for (const t of tensorsIn([q!.x, k!.x, v!.x, bias.x])) t.dispose();
  });

  test('zero rows have constant features and finite gradients', async () => {
    const x = zeros(device, [1, 6, 1, 8]);
    const v = await draw(device, 'v', [1, 6, 1, 8]);
    const w = nprfRandomFeatures(device, { heads: 1, headDim: 8, seed: 1 });
    const bias = zeros(device, [1, 11]);
    const { outputs, grads } = vjp(() => nprf(x, x, v.x, w, bias), [x, v.x, bias], [v.x]);
    const out = await outputs[0]!.read();
    for (let c = 0; c < 8; c++) {
      let mean = 0;
      for (let t = 0; t < 6; t++) mean += (v.values.values[t * 8 + c] as number) / 6;
      expect(out[c]).toBeCloseTo(mean, 5);
    }
    for (const gradient of grads) for (const value of await gradient.read()) expect(Number.isFinite(value)).toBe(true);
    for (const t of tensorsIn([x, v.x, w, bias, outputs, grads])) t.dispose();
  });

  test('decode gives the parallel result for every split, and the mixer does', async () => {
    const [batch, tokens, heads, dim] = [2, 11, 2, 8];
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [batch, tokens, heads, dim])));
    const features = nprfRandomFeatures(device, { heads, headDim: dim, seed: 3 });
    const capacity = 14;
    const table = await draw(device, 'table', [heads, 2 * capacity - 1]);
    const whole = slice(table.x, 1, capacity - tokens, capacity + tokens - 1);
    const parallel = nprf(q!.x, k!.x, v!.x, features, whole, { causal: true });
    const wanted = await parallel.read();
    const row = heads * dim;
    for (const split of [0, 4, 10]) {
      const state = nprfStart(device, { batch, heads, headDim: dim, capacity, features, rpeBias: table.x });
      for (const [first, end] of [[0, split], ...Array.from({ length: tokens - split }, (_, i) => [split + i, split + i + 1])] as [
        number,
        number,
      ][]) {
        const part = [q!, k!, v!].map(({ x }) => slice(x, 1, first, end)) as [Tensor, Tensor, Tensor];
        const out = nprfStep(...part, state);
        const got = await out.read();
        for (let b = 0; b < batch; b++)
          for (let i = 0; i < (end - first) * row; i++)
            expect(got[b * (end - first) * row + i]).toBeCloseTo(wanted[(b * tokens + first) * row + i] as number, 4);
        for (const t of [...part, out]) t.dispose();
      }
      expect(() => state.truncate(99)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
      state.dispose();
    }
    const mixer = nprfMixer({ dim: 16, heads: 2, features: 16, distances: 6 });
    const params = mixer.init(device, new RandomStream(1, 'mixer'));
    const x = await draw(device, 'x', [batch, tokens, 16]);
    const context = { layer: 0, layers: 1, training: false, carry: undefined as never };
    const { out } = mixer.apply(params, x.x, context);
    const full = f64(out.shape, await out.read());
    const state = mixer.start(device, { batch, capacity: tokens, dtype: 'f32' });
    const pieces: number[][] = [];
    for (const [first, end] of [
      [0, 7],
      [7, 8],
      [8, tokens],
    ] as const) {
      const part = slice(x.x, 1, first, end);
      const made = mixer.step(params, part, state, context);
      const values = await made.read();
      for (let b = 0; b < batch; b++)
        for (let t = first; t < end; t++)
          pieces[b * tokens + t] = [...values.subarray((b * (end - first) + t - first) * 16, (b * (end - first) + t - first + 1) * 16)];
      for (const t of [part, made]) t.dispose();
    }
    expectErrorRatio('mixer', { shape: full.shape, values: Float32Array.from(pieces.flat()) }, full, 1e-5);
    for (const t of tensorsIn([q!.x, k!.x, v!.x, features, table.x, whole, parallel, params, x.x, out, state])) t.dispose();
  });

  test('with a clipped bias a stream does not grow, and gives the parallel result in pieces of any size', async () => {
    const [tokens, heads, dim, clip] = [180, 2, 4, 3];
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, heads, dim])));
    const features = nprfRandomFeatures(device, { heads, headDim: dim, features: 5, seed: 3 });
    const table = await draw(device, 'table', [heads, 2 * clip + 1]);
    const parallel = nprf(q!.x, k!.x, v!.x, features, table.x, { causal: true, clip });
    const wanted = await parallel.read();
    const row = heads * dim;
    for (const cuts of [
      [0, 180],
      [0, 66, 67, 68, 69, 132, 134, 180],
    ]) {
      const state = nprfStart(device, { batch: 1, heads, headDim: dim, clip, features, rpeBias: table.x });
      const bytes = state.bytes().payload;
      for (const [i, end] of cuts.slice(1).entries()) {
        const first = cuts[i] as number;
        const part = [q!, k!, v!].map(({ x }) => slice(x, 1, first, end)) as [Tensor, Tensor, Tensor];
        const out = nprfStep(...part, state);
        const rows = f64(out.shape, wanted.subarray(first * row, end * row));
        expectErrorRatio(`tokens ${first} to ${end}`, { shape: out.shape, values: await out.read() }, rows, 1e-5);
        for (const t of [...part, out]) t.dispose();
      }
      expect(state.bytes().payload).toBe(bytes);
      // from a snapshot it goes on to the bit, a token may be taken back, and a sum is not taken apart
      const kept = await state.snapshot();
      const last = [q!, k!, v!].map(({ x }) => slice(x, 1, 179)) as [Tensor, Tensor, Tensor];
      const more = nprfStep(...last, state);
      state.restore(kept);
      const again = nprfStep(...last, state);
      expect(await again.read()).toEqual(await more.read());
      state.truncate(180);
      expect(state.tokens).toBe(180);
      expect(() => state.truncate(10)).toThrow(/the first \d+ are summed up, take a snapshot\(\) there/);
      for (const t of [...last, more, again, state]) t.dispose();
    }
    const mixer = nprfMixer({ dim: 8, heads: 2, features: 5, distances: 4 });
    const params = mixer.init(device, new RandomStream(1, 'mixer'));
    const x = await draw(device, 'x', [1, tokens, 8]);
    const context = { layer: 0, layers: 1, training: false, carry: undefined as never };
    const { out } = mixer.apply(params, x.x, context);
    const state = mixer.start(device, { batch: 1, capacity: 1000, dtype: 'f32' });
    const stepped = scope(() => concat([[0, 100], [100, 101], [101, 180]].map(([a, b]) => mixer.step(params, slice(x.x, 1, a as number, b), state, context)), 1)); // prettier-ignore
    expectErrorRatio('mixer', { shape: stepped.shape, values: await stepped.read() }, f64(out.shape, await out.read()), 1e-5);
    for (const t of tensorsIn([q!.x, k!.x, v!.x, features, table.x, parallel, params, x.x, out, stepped, state])) t.dispose();
  });

  test("a mixer's bias may start falling with distance, bounded at -8", async () => {
    const { bias, ...rest } = nprfMixer({ dim: 16, heads: 2, distances: 40, biasStart: 'alibi' }).init(device, new RandomStream(1));
    const values = await bias.read();
    // slopes 1/16 and 1/256, the farthest distance first
    expect([38, 39, 40, 78, 79].map((i) => (values[i] as number) + 0)).toEqual([-1 / 16, 0, -39 / 256, -1 / 256, 0]);
    const far = nprfMixer({ dim: 16, heads: 2, distances: 300, biasStart: 'alibi' }).init(device, new RandomStream(1));
    expect((await far.bias.read())[0]).toBe(-8);
    for (const t of [bias, ...tensorsIn([rest, far])]) t.dispose();
    expect(() => nprfMixer({ dim: 16, heads: 2, biasStart: 'flat' as never })).toThrow(/biasStart is "flat"; it is "normal" or "alibi"/);
  });

  test('what does not fit is named with a way out', () => {
    const q = zeros(device, [1, 4, 2, 8]);
    const w = zeros(device, [2, 3, 8]);
    const b = zeros(device, [2, 7]);
    const refused = (code: string, message: RegExp, run: () => unknown): void =>
      expect(run).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }));
    refused('SHAPE_MISMATCH', /rpeBias is .* it must be \[2, 7\]: heads, queries \+ keys - 1/, () => nprf(q, q, q, w, w));
    refused('SHAPE_MISMATCH', /features is .* it must be \[2, m, 8\]/, () => nprf(q, q, q, q, b));
    refused('INVALID_ARGUMENT', /path is "slow"/, () => nprf(q, q, q, w, b, { path: 'slow' as never }));
    refused('SHAPE_MISMATCH', /rpeBias is .* it must be \[2, 5\]: heads, 2 clip \+ 1/, () => nprf(q, q, q, w, b, { clip: 2 }));
    refused('INVALID_ARGUMENT', /clip is 0; it must be an integer of 1 or more/, () => nprf(q, q, q, w, b, { clip: 0 }));
    refused('INVALID_ARGUMENT', /path is band and no clip was given/, () => nprf(q, q, q, w, b, { path: 'band' }));
    refused('SHAPE_MISMATCH', /clip was given with 4 queries and 3 keys/, () =>
      scope(() => nprf(q, slice(q, 1, 0, 3), slice(q, 1, 0, 3), w, b, { clip: 3 })),
    );
    refused('INVALID_ARGUMENT', /seed is undefined; give an integer/, () => nprfRandomFeatures(device, { heads: 1, headDim: 4 } as never));
    for (const t of [q, w, b]) t.dispose();
  });
});

test('the plan goes by pairs for short sequences and by transforms for long ones', () => {
  const at = (tokens: number, causal = false) =>
    planNprf({ queries: tokens, keys: tokens, features: 64, valueDim: 64, causal, transform: planTransform(tokens, tokens).n });
  expect(at(512)).toBe('direct');
  expect(at(131072)).toBe('fft');
  // longer than the transforms
  expect(at(2 ** 20)).toBe('direct');
});

test('a clipped bias goes by a band where its blocks are few of the tokens', () => {
  const at = (tokens: number, clip: number) =>
    planNprf({ queries: tokens, keys: tokens, features: 64, valueDim: 64, causal: true, transform: planTransform(tokens, tokens).n, clip });
  expect(at(1024, 16)).toBe('direct');
  expect(at(4096, 128)).toBe('band');
  expect(at(4096, 2048)).toBe('direct');
  expect(at(2 ** 20, 2048)).toBe('band');
});

test('an eighth of the rows of a causal product goes by pairs, none of a bidirectional one', () => {
  expect(earlyRows(64, 64, 0)).toBe(64);
  expect(earlyRows(8192, 8192, 0)).toBe(1024);
  expect(earlyRows(8192, 8192, 8192)).toBe(0);
  expect(earlyRows(100, 4000, 3900)).toBe(0);
});

test('slabs hold every entry, feature and pair of columns once', () => {
  const plan = planTransform(3000, 3000);
  expect(plan).toEqual({ n: 8192, n1: 8, n2: 1024, batch: 128 });
  for (const [entries, features, width] of [
    [3, 64, 65],
    [1, 1, 1],
    [40, 5, 9],
  ] as const) {
    const seen = new Set<string>();
    for (const s of slabsOf(entries, features, width, plan, 2 ** 27))
      for (let e = 0; e < s.entries; e++)
        for (let f = 0; f < s.features; f++)
          for (let p = 0; p < s.pairs; p++) seen.add([s.entryFirst + e, s.featureFirst + f, s.pairFirst + p].join());
    expect(seen.size).toBe(entries * features * Math.ceil(width / 2));
  }
});
