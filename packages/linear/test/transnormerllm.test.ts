import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  Carry,
  copyInto,
  type Device,
  full,
  mean,
  mul,
  openDevice,
  RandomStream,
  scope,
  slice,
  sub,
  tensor,
  type Tensor,
  valueAndGrad,
  zeros,
} from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import {
  lrpe,
  lrpeAngles,
  srmsNorm,
  transnormerllm,
  transnormerllmBlock,
  transnormerllmMixer,
  transnormerllmStart,
  transnormerllmStep,
  transnormerllmWithState,
} from '../src/transnormerllm/index.js';
import { referenceLrpe, referenceSrmsNorm, referenceTransnormerllm } from '../src/transnormerllm/reference.js';
import { dispose, draw, type Drawn, read } from './drawn.js';

const context = { layer: 0, layers: 2, training: false, carry: new Carry() };

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

    test('outputs are those of the relative form, with and without LRPE, for any length, chunk and decay', async () => {
      const problem = fc.record({
        tokens: fc.integer({ min: 1, max: 40 }),
        chunk: fc.constantFrom(1000, 7),
        decay: fc.constantFrom([0, 0], [-0.5, -0.004]),
        turned: fc.boolean(),
        seed: fc.integer({ min: 1, max: 99 }),
      });
      await fc.assert(
        fc.asyncProperty(problem, async ({ tokens, seed, turned, ...options }) => {
          const [q, k, v] = (await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [2, tokens, 2, 6], 'f32', seed)))) as [
            Drawn,
            Drawn,
            Drawn,
          ];
          const angles = lrpeAngles({ heads: 2, headDim: 6 });
          const theta = tensor(device, angles, [2, 6]);
          const out = transnormerllm(q.x, k.x, v.x, { ...options, ...(turned && { theta, offset: 3 }) });
          const expected = referenceTransnormerllm(q.values, k.values, v.values, {
            decay: options.decay,
            ...(turned && { theta: f64([2, 6], angles) }),
          });
          expectErrorRatio(`out of ${tokens} tokens`, await read(out), expected, 4e-6);
          dispose(out, theta, q.x, k.x, v.x);
        }),
        { seed: 9, numRuns: 8 },
      );
    });

    test('a stream in pieces of any size gives the parallel result', async () => {
      const tokens = 12;
      const [q, k, v] = (await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, 2, 6])))) as [Drawn, Drawn, Drawn];
      const theta = tensor(device, lrpeAngles({ heads: 2, headDim: 6 }), [2, 6]);
      const decay = [-0.3, -0.01];
      const whole = transnormerllmWithState(q.x, k.x, v.x, { decay, theta });
      const expected = await read(whole.out);
      for (const cut of [1, 5, 11]) {
        const state = transnormerllmStart(device, { batch: 1, heads: 2, headDim: 6, decay, lrpe: true });
        const outs: number[] = [];
        for (const [start, end] of [
          [0, cut],
          [cut, tokens],
        ] as const) {
          const [a, b, c] = [q.x, k.x, v.x].map((x) => slice(x, 1, start, end)) as [Tensor, Tensor, Tensor];
          const out = transnormerllmStep(a, b, c, state, theta);
          outs.push(...(await out.read()));
          dispose(a, b, c, out);
        }
        expectErrorRatio(`cut at ${cut}`, f64(expected.shape, outs), expected, 1e-6);
        expectErrorRatio('state', await read(state.values), await read(whole.state), 1e-6);
        state.dispose();
      }
      dispose(whole, theta, q.x, k.x, v.x);
    });
  });
}

describe('transnormerllm', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('angles keep their digits at positions of a million', async () => {
    const x = full(device, [1, 3, 1, 5], 1);
    const angles = Float32Array.of(1, 0.3, -0.01, 1e-4, 7.5);
    const theta = tensor(device, angles, [1, 5]);
    const y = lrpe(x, theta, { offset: 1_000_000 });
    expectErrorRatio(
      'far',
      await read(y),
      referenceLrpe(f64([1, 3, 1, 5], new Float64Array(15).fill(1)), f64([1, 5], angles), 1_000_000),
      2e-4,
    );
    const near = lrpe(x, theta, { offset: 17 });
    expectErrorRatio(
      'near',
      await read(near),
      referenceLrpe(f64([1, 3, 1, 5], new Float64Array(15).fill(1)), f64([1, 5], angles), 17),
      1e-6,
    );
    dispose(x, theta, y, near);
  });

  test('angles of zero leave queries and keys as they are', async () => {
    const [q, k, v] = (await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, 9, 2, 6])))) as [Drawn, Drawn, Drawn];
    const theta = zeros(device, [2, 6]);
    const [plain, turned] = [transnormerllm(q.x, k.x, v.x), transnormerllm(q.x, k.x, v.x, { theta })];
    expectErrorRatio('theta 0', await read(turned), await read(plain), 1e-6);
    dispose(theta, plain, turned, q.x, k.x, v.x);
  });

  test('the norm does not see a positive factor; a row of zeros gives zeros and a finite gradient', async () => {
    const { x, values } = await draw(device, 'x', [3, 10]);
    const scaled = mul(x, 100);
    const [a, b] = [srmsNorm(x), srmsNorm(scaled)];
    expectErrorRatio('reference', await read(a), referenceSrmsNorm(values), 1e-6);
    expectErrorRatio('scaled', await read(b), await read(a), 1e-5);
    const zero = zeros(device, [2, 10]);
    const { outputs, grads } = vjp(() => srmsNorm(zero), [zero], [zero]);
    for (const y of [...outputs, ...grads]) expect((await y.read()).every((e) => e === 0)).toBe(true);
    dispose(x, scaled, a, b, zero, outputs, grads);
  });

  test('mixer and block as streams give their parallel forms, with a gradient for every parameter', async () => {
    const config = { dim: 16, heads: 2, layer: 0, layers: 2 };
    for (const layer of [
      transnormerllmMixer(config),
      transnormerllmBlock(config),
      transnormerllmMixer({ ...config, layer: 1, gate: false }),
    ]) {
      const params = layer.init(device, new RandomStream(3, layer.name)) as never;
      const x = tensor(device, new RandomStream(4, 'x').normal(10 * 16), [1, 10, 16]);
      const { out } = layer.apply(params, x, context);
      const state = layer.start(device, { batch: 1, capacity: 10, dtype: 'f32' });
      const pieces = [slice(x, 1, 0, 7), slice(x, 1, 7, 8), slice(x, 1, 8, 10)];
      const outs = pieces.map((piece) => layer.step(params, piece, state, context));
      const values: number[] = [];
      for (const piece of outs) values.push(...(await piece.read()));
      expectErrorRatio('stream', f64(out.shape, values), await read(out), 2e-6);
      const { value, grads } = valueAndGrad((p: object) => mean(layer.apply(p as never, x, context).out))(params);
      for (const gradient of tensorsIn(grads)) expect((await gradient.read()).some((g) => g !== 0)).toBe(true);
      dispose(params, x, out, state, pieces, outs, value, grads);
    }
  });

  test('two layers learn to repeat what came two tokens before', async () => {
    const blocks = [0, 1].map((layer) => transnormerllmBlock({ dim: 16, heads: 2, layer, layers: 2 }));
    const params = blocks.map((block, i) => block.init(device, new RandomStream(i + 1, 'blocks')));
    const x = tensor(device, new RandomStream(5, 'x').normal(2 * 12 * 16), [2, 12, 16]);
    const target = scope(() => tensor(device, shifted(2, 12, 16), [2, 12, 16]));
    function shifted(batch: number, tokens: number, dim: number): Float32Array {
      const values = new RandomStream(5, 'x').normal(batch * tokens * dim);
      return Float32Array.from(values, (_, i) => (Math.floor(i / dim) % tokens < 2 ? 0 : (values[i - 2 * dim] as number)));
    }
    const loss = (p: Record<string, never>): Tensor => {
      const out = blocks.reduce((y, block, i) => block.apply(p[i] as never, y, context).out, x);
      const error = sub(out, target);
      return mean(mul(error, error));
    };
    const losses: number[] = [];
    for (let step = 0; step < 12; step++) {
      const { value, grads } = valueAndGrad(loss as never)(params as never);
      losses.push((await (value as Tensor).read())[0] as number);
      const flat = [...tensorsIn(grads)];
      for (const [i, p] of [...tensorsIn(params)].entries()) {
        const next = scope(() => sub(p, mul(flat[i] as Tensor, 0.3)));
        copyInto(p, next);
        next.dispose();
      }
      dispose(value, grads);
    }
    expect(losses.at(-1)).toBeLessThan(0.8 * (losses[0] as number));
    dispose(params, x, target);
  });

  test('what does not fit is named', () => {
    const q = zeros(device, [1, 4, 2, 8]);
    const theta = zeros(device, [2, 7]);
    expect(() => transnormerllm(q, q, q, { theta })).toThrow(/transnormerllm: theta is .*; for x .* it must be \[2, 8\]/);
    const state = transnormerllmStart(device, { batch: 1, heads: 2, headDim: 8 });
    expect(() => transnormerllmStep(q, q, q, state, theta)).toThrow(/without lrpe and theta was given/);
    const mixer = transnormerllmMixer({ dim: 16, heads: 2, layer: 0, layers: 2 });
    expect(() => mixer.apply({} as never, q, { ...context, positions: q })).toThrow(/LRPE counts tokens/);
    dispose(q, theta, state);
  });
});
