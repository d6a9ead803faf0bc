// Tensors larger than a binding: heads go through the kernels in groups.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, tensor, zeros } from '@heed/core';
import { zeta } from '../../src/zeta/index.js';
import { planHeadGroups } from '../../src/zeta/in-pieces.js';
import { checkProblem, type Shape } from './support.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

async function bounded(bindingBytes: number, run: () => Promise<void>): Promise<void> {
  const limit = device.limits.maxStorageBufferBindingSize;
  try {
    device.limits.maxStorageBufferBindingSize = bindingBytes;
    await run();
  } finally {
    device.limits.maxStorageBufferBindingSize = limit;
  }
}

test('groups are even, fit a binding and hold every head of every entry once', () => {
  const million = { batch: 1, tokens: 2 ** 20, heads: 16 };
  expect(planHeadGroups(million, 128, 2 ** 31 - 4)).toEqual([
    { entry: 0, first: 0, count: 8 },
    { entry: 0, first: 8, count: 8 },
  ]);
  for (const [batch, heads, bindingBytes] of [
    [1, 7, 3600],
    [3, 5, 2900],
    [2, 4, 100_000],
  ] as const) {
    const groups = planHeadGroups({ batch, tokens: 100, heads }, 10, bindingBytes);
    expect(Math.max(...groups.map(({ count }) => count)) * 1000).toBeLessThanOrEqual(bindingBytes);
    const seen = groups.flatMap(({ entry, first, count }) => Array.from({ length: count }, (_, i) => entry * heads + first + i));
    expect(seen).toEqual(Array.from({ length: batch * heads }, (_, i) => i));
  }
  expect(() => planHeadGroups(million, 4096, 2 ** 31 - 4)).toThrow(/one head of 1048576 tokens takes 4294967296 bytes.*use fewer tokens/);
});

const shape: Shape = { batch: 2, tokens: 150, heads: 6, keyDim: 3, valueDim: 8 };
const options = { range: [-1, 1], topK: 5, window: 12, chunk: 16 } as const;

test('selection, output and gradients are the reference where no entry fits a binding, heads copied in ranges of tokens', async () => {
  await bounded(24_000, () => checkProblem(device, shape, options, { seed: 2 }));
});

test('the same where an entry fits and the batch does not: heads are read in place', async () => {
  await bounded(24_000, () => checkProblem(device, { ...shape, tokens: 100 }, options, { seed: 3 }));
});

test('one head that is larger than a binding is refused with a way out', async () => {
  await bounded(4096, async () => {
    const [points, values, theta] = [zeros(device, [1, 200, 1, 3]), zeros(device, [1, 200, 1, 8]), tensor(device, new Float32Array(1))];
    expect(() => zeta(points, points, values, theta, options)).toThrow(/one head of 200 tokens.*4096.*use fewer tokens/);
    for (const t of [points, values, theta]) t.dispose();
  });
});
