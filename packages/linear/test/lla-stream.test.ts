import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, slice, tensor, type Tensor } from '@heed/core';
import { tensorsIn } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { lla, llaMixer, llaStart, llaStep } from '../src/lla/index.js';
import { decodeBlocks, decodeSpans } from '../src/lla/kernels/decode.js';
import { draw } from './lla/check.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const [batch, tokens, heads, headDim, valueDim] = [2, 20, 2, 12, 8];

async function inputs(): Promise<[Tensor, Tensor, Tensor]> {
  const made = await Promise.all([
    draw(device, 'q', [batch, tokens, heads, headDim]),
    draw(device, 'k', [batch, tokens, heads, headDim]),
    draw(device, 'v', [batch, tokens, heads, valueDim]),
  ]);
  return made.map(({ x }) => x) as [Tensor, Tensor, Tensor];
}

async function expectRows(got: Tensor, whole: F64Array, first: number, bound: number): Promise<void> {
  const n = got.dim(1);
  const per = got.size / batch / n;
  const perBatch = whole.values.length / batch;
  const wanted = new Float64Array(got.size);
  for (let b = 0; b < batch; b++)
    wanted.set(whole.values.subarray(b * perBatch + first * per, b * perBatch + (first + n) * per), b * n * per);
  expectErrorRatio(`tokens ${first} on`, { shape: got.shape, values: await got.read() }, f64(got.shape, wanted), bound);
}

for (const [name, options, dtype, bound] of [
  ['one pass over the cache', {}, 'f32', 2e-5],
  ['conjugate gradients', { solver: 'cg' }, 'f32', 2e-5],
  ['keys and values kept in f16', {}, 'f16', 3e-3],
] as const)
  test(`prefill then decode gives the parallel result for every split, ${name}`, async () => {
    const [q, k, v] = await inputs();
    const out = lla(q, k, v, { ridgeLambda: 0.7, ...options });
    const whole = f64(out.shape, await out.read());
    for (const split of options === undefined || dtype === 'f16' ? [0, 13] : [0, 1, 7, 13, tokens - 1]) {
      const state = llaStart(device, { batch, heads, headDim, valueDim, capacity: tokens + 3, ridgeLambda: 0.7, dtype, ...options });
      for (const [first, end] of [[0, split], ...Array.from({ length: tokens - split }, (_, i) => [split + i, split + i + 1])] as [
        number,
        number,
      ][]) {
        const part = [q, k, v].map((x) => slice(x, 1, first, end)) as [Tensor, Tensor, Tensor];
        const made = llaStep(...part, state);
        if (end > first) await expectRows(made, whole, first, bound);
        for (const t of [...part, made]) t.dispose();
      }
      state.dispose();
    }
    for (const t of [q, k, v, out]) t.dispose();
  });

test('a ridge a query is given with each step', async () => {
  const [q, k, v] = await inputs();
  const ridge = tensor(
    device,
    new RandomStream(1, 'ridge').normal(batch * tokens * heads).map((x) => 0.3 + x * x),
    [batch, tokens, heads],
  );
  const out = lla(q, k, v, { ridgeLambda: ridge });
  const whole = f64(out.shape, await out.read());
  const state = llaStart(device, { batch, heads, headDim, valueDim, capacity: tokens });
  for (const [first, end] of [
    [0, 19],
    [19, 20],
  ] as const) {
    const part = [q, k, v].map((x) => slice(x, 1, first, end)) as [Tensor, Tensor, Tensor];
    const own = slice(ridge, 1, first, end);
    const made = llaStep(...part, state, own);
    await expectRows(made, whole, first, 2e-5);
    for (const t of [...part, own, made]) t.dispose();
  }
  for (const t of tensorsIn([q, k, v, ridge, out, state])) t.dispose();
});

test('truncate, snapshot, restore and select give the tokens back', async () => {
  const [q, k, v] = await inputs();
  const out = lla(q, k, v, { ridgeLambda: 1 });
  const whole = f64(out.shape, await out.read());
  const start = { batch, heads, headDim, valueDim, capacity: tokens, ridgeLambda: 1 };
  const state = llaStart(device, start);
  const step = (first: number, end: number, to = state): Tensor => {
    const part = [q, k, v].map((x) => slice(x, 1, first, end)) as [Tensor, Tensor, Tensor];
    const made = llaStep(...part, to);
    for (const t of part) t.dispose();
    return made;
  };
  step(0, 15).dispose();
  state.truncate(10);
  const again = step(10, 11);
  await expectRows(again, whole, 10, 2e-5);
  const snapshot = await state.snapshot();
  const other = llaStart(device, start);
  other.restore(snapshot);
  const wider = llaStart(device, { ...start, capacity: tokens + 1 });
  expect(() => wider.restore(snapshot)).toThrow(expect.objectContaining({ code: 'INVALID_FILE' }));
  wider.dispose();
  const next = step(11, 12, other);
  await expectRows(next, whole, 11, 2e-5);
  expect(other.bytes().payload).toBe(batch * tokens * heads * (headDim + valueDim) * 4);
  const swapped = tensor(device, Uint32Array.of(1, 1));
  state.select(swapped);
  expect(() => step(11, 21)).toThrow(/has room for 20|slice/);
  expect(() => state.truncate(99)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  for (const t of tensorsIn([q, k, v, out, again, next, swapped, state, other])) t.dispose();
});

test('the mixer decodes what it gives in parallel, with a learned ridge', async () => {
  const mixer = llaMixer({ dim: 24, heads: 2, ridge: 'token', rope: {} });
  const params = mixer.init(device, new RandomStream(1, 'mixer'));
  const x = await draw(device, 'x', [batch, 9, 24]);
  const context = { layer: 0, layers: 1, training: false, carry: undefined as never };
  const { out } = mixer.apply(params, x.x, context);
  const whole = f64(out.shape, await out.read());
  const state = mixer.start(device, { batch, capacity: 9, dtype: 'f32' });
  for (const [first, end] of [
    [0, 6],
    [6, 7],
    [7, 9],
  ] as const) {
    const part = slice(x.x, 1, first, end);
    const made = mixer.step(params, part, state, context);
    await expectRows(made, whole, first, 2e-5);
    for (const t of [part, made]) t.dispose();
  }
  for (const t of tensorsIn([params, x.x, out, state])) t.dispose();
});

test('spans fill a device and leave no key out; each product is summed once', () => {
  for (const [keys, rows] of [
    [1, 1],
    [100, 16],
    [131072, 16],
    [4096, 1024],
  ] as const) {
    const { span, spans } = decodeSpans(keys, rows);
    expect(span * spans).toBeGreaterThanOrEqual(keys);
    expect(span * (spans - 1)).toBeLessThan(keys);
  }
  const places = decodeBlocks(12, 8).map(String);
  expect(new Set(places).size).toBe(places.length);
  expect(places.length).toBe(6 + 3 + 2 + 1 + 6);
});
