import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  Carry,
  type Device,
  mean,
  type MixContext,
  mul,
  openDevice,
  RandomStream,
  scope,
  slice,
  sum,
  tensor,
  type Tensor,
  valueAndGrad,
} from '@heed/core';
import { tensorsIn } from '@heed/core/~internal';
import { expectClose, f64 } from '@heed/core/testing';
import { lightning2Mixer } from '../src/lightning2/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const context: MixContext = { layer: 1, layers: 3, training: true, carry: new Carry() };
const mixer = lightning2Mixer({ dim: 24, heads: 3, layer: 1, layers: 3 });
const input = (batch: number, tokens: number): Tensor =>
  tensor(device, new RandomStream(5, 'x').normal(batch * tokens * 24), [batch, tokens, 24]);

test('prefill in pieces and decode token by token give the parallel result', async () => {
  const params = mixer.init(device, new RandomStream(7));
  const x = input(2, 9);
  const { out } = mixer.apply(params, x, context);
  const whole = await out.read();
  for (const pieces of [[9], [4, 5], [1, 1, 1, 1, 1, 1, 1, 1, 1]]) {
    const state = mixer.start(device, { batch: 2, capacity: 9, dtype: 'f32' });
    let at = 0;
    for (const n of pieces) {
      const piece = slice(x, 1, at, at + n);
      const got = mixer.step(params, piece, state, context);
      const expected = f64(
        [2, n, 24],
        Array.from({ length: 2 * n * 24 }, (_, i) => whole[(Math.floor(i / (n * 24)) * 9 + at) * 24 + (i % (n * 24))] as number),
      );
      expectClose(`tokens ${at} to ${at + n}`, { shape: got.shape, values: await got.read() }, expected, { atol: 1e-5, rtol: 1e-5 });
      at += n;
      got.dispose();
      piece.dispose();
    }
    expect(state.tokens).toBe(9);
    state.dispose();
  }
  for (const t of tensorsIn([params, x, out])) t.dispose();
});

test('gradients reach every parameter and agree with finite differences', async () => {
  const params = mixer.init(device, new RandomStream(7));
  const x = input(1, 6);
  type Weights = { qkvu: { weight: Tensor }; out: { weight: Tensor } };
  const weights: Weights = { qkvu: { weight: params.qkvu.weight }, out: { weight: params.out.weight } };
  const loss = (p: Weights): Tensor =>
    scope(() => {
      const { out } = mixer.apply(p, x, context);
      return mean(mul(out, out));
    });
  const { value, grads } = valueAndGrad(loss)(weights);
  const base = Float64Array.from(await params.qkvu.weight.read());
  const gradient = await grads.qkvu.weight.read();
  for (const at of [3, 24 * 50 + 7, base.length - 1]) {
    const moved = async (step: number): Promise<number> => {
      const values = Float64Array.from(base);
      values[at] = (values[at] as number) + step;
      const weight = tensor(device, values, params.qkvu.weight.shape);
      const out = loss({ ...weights, qkvu: { weight } });
      const [number] = await out.read();
      out.dispose();
      weight.dispose();
      return number as number;
    };
    const step = 2e-2;
    const difference = ((await moved(step)) - (await moved(-step))) / (2 * step);
    expect(gradient[at]).toBeCloseTo(difference, 4);
  }
  const total = scope(() => sum(mul(grads.out.weight, grads.out.weight)));
  expect((await total.read())[0]).toBeGreaterThan(0);
  for (const t of tensorsIn([params, x, value, grads, total])) t.dispose();
});

test('lengths make later tokens count for nothing', async () => {
  const params = mixer.init(device, new RandomStream(7));
  const x = input(1, 8);
  const lengths = tensor(device, Int32Array.of(5));
  const cut = slice(x, 1, 0, 5);
  const whole = mixer.apply(params, x, { ...context, lengths }).out;
  const alone = mixer.apply(params, cut, context).out;
  const [got, expected] = [await whole.read(), await alone.read()];
  expectClose('the first five tokens', { shape: [5, 24], values: got.subarray(0, 120) }, { shape: [5, 24], values: expected });
  expect([...got.subarray(120)].every((value) => value === 0)).toBe(true);
  for (const t of tensorsIn([params, x, lengths, cut, whole, alone])) t.dispose();
});

test('a dim that heads do not divide is refused', () => {
  expect(() => lightning2Mixer({ dim: 25, heads: 3 })).toThrow(/dim 25 is no multiple of heads 3; choose a divisor or give headDim/);
});
