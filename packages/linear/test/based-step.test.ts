// One token of a stream of the Taylor map, and what a stream keeps without the normaliser.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, slice, type Tensor, tensor } from '@heed/core';
import { expectErrorRatio, type F64Array, f64 } from '@heed/core/testing';
import { basedStart, basedStep } from '../src/based/index.js';
import { referenceBased } from '../src/based/reference.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test.each([
  ['token by token, dimensions off four', 5, 7, true, [1, 1, 1, 1]],
  ['token by token, without the normaliser', 4, 8, false, [1, 1, 1, 1]],
  ['pieces of several tokens between, without the normaliser', 4, 8, false, [1, 2, 1]],
] as const)('%s', async (_, featureDim, valueDim, normalize, pieces) => {
  const [batch, tokens, heads] = [2, 4, 2];
  const draw = async (name: string, dim: number): Promise<{ x: Tensor; values: F64Array }> => {
    const shape = [batch, tokens, heads, dim];
    const x = tensor(device, new RandomStream(3, name).normal(batch * tokens * heads * dim), shape);
    return { x, values: f64(shape, await x.read()) };
  };
  const [q, k, v] = [await draw('q', featureDim), await draw('k', featureDim), await draw('v', valueDim)];
  const expected = referenceBased(q.values, k.values, v.values, { normalize });
  const state = basedStart(device, { batch, heads, featureDim, valueDim, normalize });
  let at = 0;
  for (const count of pieces) {
    const parts = [q, k, v].map(({ x }) => slice(x, 1, at, at + count)) as [Tensor, Tensor, Tensor];
    const out = basedStep(...parts, state);
    const size = heads * valueDim;
    const rows = Array.from({ length: batch }, (_, b) => [
      ...expected.out.values.subarray((b * tokens + at) * size, (b * tokens + at + count) * size),
    ]).flat();
    expectErrorRatio(`tokens from ${at}`, { shape: out.shape, values: await out.read() }, f64(out.shape, rows), 3e-6);
    for (const t of [out, ...parts]) t.dispose();
    at += count;
  }
  const full = state.full();
  expectErrorRatio('kvState', { shape: full.kvState.shape, values: await full.kvState.read() }, expected.kvState, 3e-6);
  expectErrorRatio('kState', { shape: full.kState.shape, values: await full.kState.read() }, expected.kState, 3e-6);
  for (const t of [q.x, k.x, v.x, full.kvState, full.kState]) t.dispose();
  state.dispose();
});
