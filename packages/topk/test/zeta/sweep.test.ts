import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice } from '@heed/core';
import { checkProblem, inputsOf, type Shape } from './support.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('where later tokens lie between a query and the tokens that it sees, runs are searched one by one', async () => {
  const shape: Shape = { batch: 1, tokens: 300, heads: 2, keyDim: 3, valueDim: 8 };
  const inputs = inputsOf(shape, 4);
  // the first 40 tokens at the end of the curve, the others along it in order of time
  const along = (t: number): number => (t < 40 ? 200 + t : t - 220) / 256;
  for (const x of [inputs.q, inputs.k]) x.values.forEach((_, i) => (x.values[i] = along(Math.floor(i / 6))));
  await checkProblem(device, shape, { range: [-1, 1], topK: 5, window: 5, chunk: 8 }, { inputs });
});
