import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Carry, type Device, mean, openDevice, RandomStream, slice, tensor, type Tensor, valueAndGrad, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { lightning, lightningDecay, lightningMixer, lightningStart, lightningStep, lightningWithState } from '../src/lightning/index.js';
import { referenceLightning } from '../src/lightning/reference.js';
import { dispose, draw, type Drawn, read } from './drawn.js';

for (const tier of ['baseline', 'subgroups'] as const) {
  describe(`on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });
    const drawn = async (tokens: number, seed = 1) =>
      Promise.all([12, 12, 8].map((dim, i) => draw(device, 'qkv'[i] as string, [2, tokens, 2, dim], 'f32', seed)));

    test('outputs are those of the masked product for any length, chunk and decay', async () => {
      const problem = fc.record({
        tokens: fc.integer({ min: 1, max: 70 }),
        chunk: fc.constantFrom(1000, 16, 5),
        decay: fc.constantFrom([0, 0], [-0.5, -0.004], [-8, -0.1]),
        scale: fc.constantFrom(1, 0.3),
        seed: fc.integer({ min: 1, max: 99 }),
      });
      await fc.assert(
        fc.asyncProperty(problem, async ({ tokens, seed, ...options }) => {
          const [q, k, v] = (await drawn(tokens, seed)) as [Drawn, Drawn, Drawn];
          const out = lightning(q.x, k.x, v.x, options);
          expectErrorRatio(`out of ${tokens} tokens`, await read(out), referenceLightning(q.values, k.values, v.values, options), 3e-6);
          dispose(out, q.x, k.x, v.x);
        }),
        { seed: 5, numRuns: 10 },
      );
    });

    test('a stream gives the parallel result for every split into two', async () => {
      const tokens = 9;
      const [q, k, v] = (await drawn(tokens)) as [Drawn, Drawn, Drawn];
      const decay = lightningDecay({ heads: 2, layer: 0, layers: 3 });
      const whole = lightningWithState(q.x, k.x, v.x, { decay });
      const expected = await read(whole.out);
      for (let cut = 0; cut <= tokens; cut++) {
        const state = lightningStart(device, { batch: 2, heads: 2, keyDim: 12, valueDim: 8, decay });
        const outs: number[] = [];
        for (const [start, end] of [
          [0, cut],
          [cut, tokens],
        ] as const) {
          const [a, b, c] = [q.x, k.x, v.x].map((x) => slice(x, 1, start, end)) as [Tensor, Tensor, Tensor];
          const out = lightningStep(a, b, c, state);
          const values = await out.read();
          const n = (end - start) * 16;
          for (let e = 0; e < 2; e++) for (let i = 0; i < n; i++) outs[e * tokens * 16 + start * 16 + i] = values[e * n + i] as number;
          dispose(a, b, c, out);
        }
        expectErrorRatio(`cut at ${cut}`, f64(expected.shape, outs), expected, 1e-6);
        expectErrorRatio('state', await read(state.values), await read(whole.state), 1e-6);
        expect(state.tokens).toBe(tokens);
        state.dispose();
      }
      dispose(whole, q.x, k.x, v.x);
    });
  });
}

describe('lightning', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const three = async (tokens: number): Promise<[Drawn, Drawn, Drawn]> =>
    (await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, 2, 8])))) as [Drawn, Drawn, Drawn];

  test('without a mask every token sees all', async () => {
    const [q, k, v] = await three(13);
    const out = lightning(q.x, k.x, v.x, { causal: false, scale: 0.5 });
    expectErrorRatio('out', await read(out), referenceLightning(q.values, k.values, v.values, { causal: false, scale: 0.5 }), 2e-6);
    expect(() => lightning(q.x, k.x, v.x, { causal: false, decay: [-1, -1] })).toThrow(/a decay has a direction/);
    dispose(out, q.x, k.x, v.x);
  });

  test('a large decay leaves (q.k) v alone', async () => {
    const [q, k, v] = await three(7);
    const out = lightning(q.x, k.x, v.x, { decay: [-Infinity, -Infinity] });
    expectErrorRatio('out', await read(out), referenceLightning(q.values, k.values, v.values, { decay: [-1e9, -1e9] }), 1e-6);
    dispose(out, q.x, k.x, v.x);
  });

  test('a decay that is trained has the gradient of central differences', async () => {
    const [q, k, v] = await three(11);
    const decay = tensor(device, [-0.3, -0.05]);
    const { outputs, grads } = vjp(() => lightning(q.x, k.x, v.x, { decay, chunk: 4 }), [decay], [v.x]);
    const loss = (values: number[]): number =>
      referenceLightning(q.values, k.values, v.values, { decay: values }).values.reduce(
        (sum, x, i) => sum + x * (v.values.values[i] as number),
        0,
      );
    const step = 1e-5;
    const wanted = [
      (loss([-0.3 + step, -0.05]) - loss([-0.3 - step, -0.05])) / (2 * step),
      (loss([-0.3, -0.05 + step]) - loss([-0.3, -0.05 - step])) / (2 * step),
    ];
    expectErrorRatio('decay', await read(grads[0] as Tensor), f64([2], wanted), 2e-5);
    dispose(outputs, grads, decay, q.x, k.x, v.x);
  });

  test('both conventions of the decay are those of the sheet', () => {
    expect(lightningDecay({ heads: 4 })).toEqual([-(2 ** -2), -(2 ** -4), -(2 ** -6), -(2 ** -8)]);
    expect(lightningDecay({ heads: 4, scheme: 'paper', layer: 1, layers: 4 })).toEqual([0, -1.5, -3, -4.5]);
    expect(lightningDecay({ heads: 1, layer: 2, layers: 3 })[0]).toBeCloseTo(-(2 ** -8) * 1e-5, 12);
  });

  test('the mixer as a stream gives its parallel form, and a snapshot continues to the bit', async () => {
    const mixer = lightningMixer({ dim: 16, heads: 2, layer: 0, layers: 2 });
    const params = mixer.init(device, new RandomStream(3, 'mixer'));
    const x = tensor(device, new RandomStream(4, 'x').normal(10 * 16), [1, 10, 16]);
    const context = { layer: 0, layers: 2, training: false, carry: new Carry() };
    const { out } = mixer.apply(params, x, context);
    const state = mixer.start(device, { batch: 1, capacity: 10, dtype: 'f32' });
    const first = slice(x, 1, 0, 6);
    const rest = slice(x, 1, 6, 10);
    const head = mixer.step(params, first, state, context);
    const saved = await state.snapshot();
    const tail = mixer.step(params, rest, state, context);
    const whole = await read(out);
    expectErrorRatio('stream', f64([10, 16], [...(await head.read()), ...(await tail.read())]), f64([10, 16], whole.values), 2e-6);
    state.restore(saved);
    expect(state.tokens).toBe(6);
    const again = mixer.step(params, rest, state, context);
    expect([...(await again.read())]).toEqual([...(await tail.read())]);
    expect(() => state.truncate(2)).toThrow(/take a snapshot/);
    const { value, grads } = valueAndGrad((p: typeof params) => mean(mixer.apply(p, x, context).out))(params);
    for (const gradient of tensorsIn(grads)) expect((await gradient.read()).some((g) => g !== 0)).toBe(true);
    dispose(params, x, out, state, first, rest, head, tail, again, value, grads);
  });

  test('shapes that do not fit are named', () => {
    const q = zeros(device, [1, 4, 2, 8]);
    const v = zeros(device, [1, 4, 3, 8]);
    expect(() => lightning(q, q, v)).toThrow(/lightning: v has 3 heads, q and k have 2/);
    expect(() => lightningMixer({ dim: 10, heads: 3 })).toThrow(/no multiple of heads/);
    dispose(q, v);
  });
});
