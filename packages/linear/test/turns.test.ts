import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, tensor, type Tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { lrpe, rotatePairs } from '../src/layer/turns.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test.each(['lrpe', 'rotatePairs'] as const)('%s by four elements a lane is that by one, forward and backward', async (name) => {
  const turn = name === 'lrpe' ? lrpe : rotatePairs;
  const [shape, size] = [[2, 5, 3, 8], 240];
  const values = new RandomStream(5, 'x').normal(size);
  // the same numbers one element further: rows begin at odd elements, and lanes take an angle each
  const shifted = tensor(device, Float32Array.of(0, ...values), [size + 1]);
  const views = [tensor(device, values, shape), shifted.view({ shape, offset: 1 })] as const;
  const theta = name === 'lrpe' ? tensor(device, new RandomStream(5, 'theta').normal(24), [3, 8]) : tensor(device, [1, 0.3, -0.2, 7]);
  const wide = name === 'lrpe' ? 2 : 1;
  const dy = tensor(device, new RandomStream(5, 'dy').normal(wide * size), [2, 5, 3, 8 * wide]);
  const results: Tensor[][] = [];
  for (const x of views) {
    const { outputs, grads } = vjp(() => turn(x, theta, { offset: 1000 }), [x, theta], [dy]);
    // without a gradient of angles dx comes from another kernel
    const alone = vjp(() => turn(x, theta, { offset: 1000 }), [x], [dy]);
    results.push([...outputs, ...grads, ...alone.grads] as Tensor[]);
    for (const t of alone.outputs) t.dispose();
  }
  const [fours, ones] = results as [Tensor[], Tensor[]];
  for (const [i, four] of fours.entries()) {
    const one = await (ones[i] as Tensor).read();
    const got = await four.read();
    const size = Math.max(...Array.from(one, (x) => Math.abs(Number(x))));
    got.forEach((x, j) => expect(Math.abs(Number(x) - Number(one[j]))).toBeLessThan(1e-6 * Math.max(1, size)));
  }
  for (const [, dx, , again] of [fours, ones]) {
    const other = await (again as Tensor).read();
    (await (dx as Tensor).read()).forEach((x, j) => expect(Math.abs(Number(x) - Number(other[j]))).toBeLessThan(2e-6));
  }
  for (const t of [shifted, ...views, theta, dy, ...fours, ...ones]) t.dispose();
});
