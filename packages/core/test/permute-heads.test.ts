// Heads in tensors of their own, tokens in another order.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, type Tensor, tensor, tileOrder } from '../src/index.js';
import { joinHeads, splitHeads, vjp } from '../src/internal.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const order = tileOrder([4, 4], [2, 2]);
const parts = [
  { entry: 0, entries: 2, head: 0, heads: 2 },
  { entry: 0, entries: 1, head: 2, heads: 1 },
  { entry: 1, entries: 1, head: 2, heads: 1 },
];
const counted = (shape: readonly number[]): Tensor =>
  tensor(
    device,
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => i),
    shape,
  );

test('a part holds its entries and heads, its tokens in order, whatever fits a binding; joined they are the whole again', async () => {
  using x = counted([2, 16, 3, 4]);
  const limit = device.limits.maxStorageBufferBindingSize;
  device.limits.maxStorageBufferBindingSize = 512 + 5 * 48;
  try {
    const split = splitHeads(x, parts, order);
    expect(split.map((part) => part.shape.join())).toEqual(['2,16,2,4', '1,16,1,4', '1,16,1,4']);
    // the token at place 2 is the one below the first
    const [, , last] = split as [Tensor, Tensor, Tensor];
    expect([...(await last.read())].slice(8, 12)).toEqual([248, 249, 250, 251]);
    using back = joinHeads(split, parts, x.shape, order);
    expect([...(await back.read())]).toEqual([...(await x.read())]);
    split.forEach((part) => part.dispose());
  } finally {
    device.limits.maxStorageBufferBindingSize = limit;
  }
});

test('a part without a cotangent leaves zeros in the gradient', async () => {
  using x = counted([2, 16, 3, 4]);
  using g = counted([1, 16, 1, 4]);
  const { outputs, grads } = vjp(() => splitHeads(x, parts, order)[1] as Tensor, [x], [g]);
  const [dx] = grads as [Tensor];
  const values = [...(await dx.read())];
  expect(values.slice(0, 24)).toEqual([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 4, 5, 6, 7]);
  expect(values.slice(192).every((value) => value === 0)).toBe(true);
  for (const t of [...outputs, ...grads]) t.dispose();
});
