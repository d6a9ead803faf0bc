import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { Carry, type Device, type DType, mul, openDevice, RandomStream, slice, tensor, type Tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { expectClose, expectErrorRatio, type F64Array, f64 } from '@heed/core/testing';
import { nalaformer, nalaformerLayer, nalaformerMixer, nalaformerRope, nalaformerStart, nalaformerStep } from '../src/nalaformer/index.js';
import {
  referenceExponent,
  referenceNalaFeatures,
  referenceNalaformer,
  type NalaformerReferenceOptions,
} from '../src/nalaformer/reference.js';
import { dispose, draw as drawOn, type Drawn } from './drawn.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const draw = (name: string, shape: readonly number[], dtype: DType = 'f32', seed = 1): Promise<Drawn> =>
  drawOn(device, name, shape, dtype, seed);

/** Gradients by central differences of the float64 definition along a random cotangent. */
function differences(inputs: F64Array[], d: F64Array, options: NalaformerReferenceOptions): F64Array[] {
  const loss = (): number => {
    const [q, k, v] = inputs as [F64Array, F64Array, F64Array];
    return referenceNalaformer(q, k, v, options).values.reduce((sum, value, i) => sum + value * (d.values[i] as number), 0);
  };
  return inputs.map((x) =>
    f64(
      x.shape,
      Array.from(x.values, (value, i) => {
        const step = 1e-5;
        x.values[i] = value + step;
        const above = loss();
        x.values[i] = value - step;
        const below = loss();
        x.values[i] = value;
        return (above - below) / (2 * step);
      }),
    ),
  );
}

test('outputs and gradients of both maps, causal or not, are those of the float64 definition', async () => {
  const dim = 8;
  const problem = fc.record({
    tokens: fc.integer({ min: 2, max: 7 }),
    map: fc.constantFrom<'relu' | 'cos'>('relu', 'cos'),
    causal: fc.boolean(),
    lambda: fc.constantFrom(3, 2.5),
    seed: fc.integer({ min: 1, max: 99 }),
  });
  await fc.assert(
    fc.asyncProperty(problem, async ({ tokens, seed, ...options }) => {
      const [q, k, v, d] = (await Promise.all(['q', 'k', 'v', 'd'].map((name) => draw(name, [1, tokens, 2, dim], 'f32', seed)))) as [
        Drawn,
        Drawn,
        Drawn,
        Drawn,
      ];
      const { outputs, grads } = vjp(() => nalaformer(q.x, k.x, v.x, options), [q.x, k.x, v.x], [d.x]);
      const wanted = [
        referenceNalaformer(q.values, k.values, v.values, options),
        ...differences([q.values, k.values, v.values], d.values, options),
      ];
      for (const [i, got] of [...outputs, ...grads].entries())
        expectErrorRatio(
          `${['out', 'dq', 'dk', 'dv'][i]}`,
          { shape: got.shape, values: await got.read() },
          wanted[i] as F64Array,
          i === 0 ? 2e-5 : 2e-4,
        );
      dispose(q.x, k.x, v.x, d.x, [...outputs], [...grads]);
    }),
    { seed: 2, numRuns: 8 },
  );
});

test('rotary positions enter the numerator alone, in both forms', async () => {
  const [q, k, v] = (await Promise.all(['q', 'k', 'v'].map((name) => draw(name, [2, 6, 1, 8])))) as [Drawn, Drawn, Drawn];
  const rope = nalaformerRope(device, { height: 2, width: 3, headDim: 8 });
  const table = { sin: f64([6, 8], await rope.sin.read()), cos: f64([6, 8], await rope.cos.read()) };
  // row 1, column 2: the first angle is 1 for both, the second 1e-4
  expect(table.sin.values[5 * 8]).toBeCloseTo(Math.sin(1), 6);
  expect(table.sin.values[5 * 8 + 4]).toBeCloseTo(Math.sin(2), 6);
  expect(table.sin.values[5 * 8 + 7]).toBeCloseTo(Math.sin(2e-4), 8);
  for (const options of [{ causal: false }, { causal: true }, { map: 'cos' }] as const) {
    const out = nalaformer(q.x, k.x, v.x, { ...options, rope });
    const expected = referenceNalaformer(q.values, k.values, v.values, { ...options, rope: table });
    expectErrorRatio(JSON.stringify(options), { shape: out.shape, values: await out.read() }, expected, 2e-5);
    dispose(out);
  }
  dispose(q.x, k.x, v.x, rope);
});

test('queries and keys of zero give finite values and gradients', async () => {
  const v = await draw('v', [1, 4, 1, 8]);
  const zero = mul(v.x, 0);
  for (const map of ['relu', 'cos'] as const) {
    const { outputs, grads } = vjp(() => nalaformer(zero, zero, v.x, { map }), [zero, v.x], [v.x]);
    for (const got of [...outputs, ...grads]) expect([...(await got.read())].every((value) => value === 0)).toBe(true);
    const some = vjp(() => nalaformer(zero, v.x, v.x, { map }), [zero, v.x], [v.x]);
    for (const got of [...some.outputs, ...some.grads]) expect([...(await got.read())].every((value) => Number.isFinite(value))).toBe(true);
    dispose([...outputs], [...grads], [...some.outputs], [...some.grads]);
  }
  dispose(v.x, zero);
});

test('one token gives its value, and the causal form ends with what the other gives there', async () => {
  const [q, k, v] = (await Promise.all(['q', 'k', 'v'].map((name) => draw(name, [1, 5, 2, 8])))) as [Drawn, Drawn, Drawn];
  const one = [q.x, q.x, v.x].map((x) => slice(x, 1, 0, 1)) as [Tensor, Tensor, Tensor];
  const alone = nalaformer(...one);
  expectClose('one token', { shape: alone.shape, values: await alone.read() }, f64([1, 1, 2, 8], v.values.values.slice(0, 16)), {
    atol: 1e-3,
    rtol: 1e-2,
  });
  const [causal, whole] = [nalaformer(q.x, k.x, v.x, { causal: true }), nalaformer(q.x, k.x, v.x)];
  const [a, b] = [await causal.read(), await whole.read()];
  for (let i = 4 * 16; i < 5 * 16; i++) expect(a[i]).toBeCloseTo(b[i] as number, 5);
  dispose(one, alone, causal, whole, q.x, k.x, v.x);
});

test('a stream gives the causal result for every split, and lengths cut a batch', async () => {
  const tokens = 6;
  const [q, k, v] = (await Promise.all(['q', 'k', 'v'].map((name) => draw(name, [1, tokens, 2, 8])))) as [Drawn, Drawn, Drawn];
  const whole = nalaformer(q.x, k.x, v.x, { causal: true });
  const expected = await whole.read();
  for (let split = 0; split <= tokens; split++) {
    const state = nalaformerStart(device, { batch: 1, heads: 2, headDim: 8 });
    for (const [start, end] of [
      [0, split],
      [split, tokens],
    ] as const) {
      if (start === end) continue;
      const piece = [q.x, k.x, v.x].map((x) => slice(x, 1, start, end)) as [Tensor, Tensor, Tensor];
      const got = nalaformerStep(...piece, state);
      expectClose(
        `${start} to ${end}`,
        { shape: got.shape, values: await got.read() },
        f64(got.shape, expected.slice(start * 16, end * 16)),
        { atol: 1e-5, rtol: 1e-5 },
      );
      dispose(piece, got);
    }
    expect(state.tokens).toBe(tokens);
    expect(state.bytes().payload).toBe(4 * 2 * 16 * 9);
    state.dispose();
  }
  const lengths = tensor(device, Int32Array.of(4));
  const cut = await (async () => {
    const out = nalaformer(q.x, k.x, v.x, { causal: true, lengths });
    const values = await out.read();
    dispose(out);
    return values;
  })();
  expect([...cut.subarray(0, 64)]).toEqual([...expected.subarray(0, 64)]);
  expect([...cut.subarray(64)].every((value) => value === 0)).toBe(true);
  expect(() => nalaformer(q.x, k.x, v.x, { lengths })).toThrow(/lengths were given without causal/);
  dispose(whole, lengths, q.x, k.x, v.x);
});

test('attention gets sharper as a query gets longer, and does not where the exponent is fixed', () => {
  const keys = Array.from({ length: 40 }, (_, j) => [...new RandomStream(1, 'keys').at({ step: j }).normal(8)]);
  const direction = [...new RandomStream(2, 'query').normal(8)];
  const length = Math.hypot(...direction);
  const entropy = (norm: number, exponent?: number): number => {
    const query = direction.map((x) => (x / length) * norm);
    const options = exponent === undefined ? {} : { lambda: exponent / referenceExponent(norm, 1) };
    const phi = referenceNalaFeatures(query, 'q', options);
    const weights = keys.map((key) => referenceNalaFeatures(key, 'k').reduce((sum, value, i) => sum + value * (phi[i] as number), 0));
    const total = weights.reduce((sum, w) => sum + w, 0);
    return weights.reduce((sum, w) => (w > 0 ? sum - (w / total) * Math.log(w / total) : sum), 0);
  };
  const norms = [0.01, 0.1, 0.5, 1, 2, 3];
  for (let i = 1; i < norms.length; i++) expect(entropy(norms[i] as number)).toBeLessThan(entropy(norms[i - 1] as number));
  expect(entropy(3, 3)).toBeCloseTo(entropy(0.01, 3), 10);
});

for (const lepeKernel of [5, 1, 0]) {
  test(`a mixer with ${lepeKernel} taps reads a sequence in any pieces as it reads the whole`, async () => {
    const mixer = nalaformerMixer({ dim: 16, heads: 2, lepeKernel });
    const params = mixer.init(device, new RandomStream(3));
    const context = { layer: 0, layers: 1, training: false, carry: new Carry() };
    const x = await draw('x', [1, 9, 16]);
    const { out } = mixer.apply(params, x.x, context);
    const expected = await out.read();
    for (const cuts of [
      [1, 2, 3, 4, 5, 6, 7, 8, 9],
      [6, 9],
      [2, 9],
    ]) {
      const state = mixer.start(device, { batch: 1, capacity: 9, dtype: 'f32' });
      let from = 0;
      for (const end of cuts) {
        const piece = slice(x.x, 1, from, end);
        const got = mixer.step(params, piece, state, context);
        const values = expected.slice(from * 16, end * 16);
        expectClose(`tokens ${from} to ${end}`, { shape: [values.length], values: await got.read() }, f64([values.length], values), {
          atol: 1e-5,
          rtol: 1e-4,
        });
        dispose(piece, got);
        from = end;
      }
      state.dispose();
    }
    dispose(params, x.x, out);
  });
}

test('the picture layer keeps the shape of a picture', async () => {
  const context = { layer: 0, layers: 1, training: false, carry: new Carry() };
  const layer = nalaformerLayer({ dim: 16, heads: 2 });
  const weights = layer.init(device, new RandomStream(4));
  const picture = await draw('picture', [1, 3, 5, 16]);
  const made = layer.apply(weights, picture.x, context).out;
  expect(made.shape).toEqual([1, 3, 5, 16]);
  expect(() => nalaformerLayer({ dim: 12, heads: 2 })).toThrow(/multiple of 4/);
  expect(() => nalaformerMixer({ dim: 16, heads: 2, lepeKernel: -1 })).toThrow(/lepeKernel is -1; it must be an integer/);
  dispose(weights, picture.x, made);
});
