// Writes from the host keep their order with the work around them; small ones end no batch.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { add, type Device, openDevice, scope, tensor, writeValues } from '../src/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice();
  // its pipeline is there before batches are counted
  const out = scope(() => add(tensor(device, [1, 2, 3]), 1));
  await out.read();
  out.dispose();
});
afterAll(() => device.close());

/** The values of x before and after it was written over between two uses, and the batches that took. */
async function aroundWrite(length: number): Promise<{ before: number[]; after: number[]; batches: number }> {
  using x = tensor(device, new Float32Array(length).fill(1));
  using one = tensor(device, new Float32Array(length).fill(1));
  await device.idle();
  const first = device.recorder.batch;
  using before = add(x, one);
  writeValues(
    x,
    Float32Array.from({ length }, (_, i) => 10 + i),
  );
  using after = add(x, one);
  const batches = device.recorder.batch - first;
  return { before: [...(await before.read())], after: [...(await after.read())], batches };
}

test.each([1, 3, 64, 65, 1024])('a write of %i numbers into what a batch uses lies between the uses, in the same batch', async (length) => {
  const { before, after, batches } = await aroundWrite(length);
  expect(before).toEqual(new Array<number>(length).fill(2));
  expect(after).toEqual(Array.from({ length }, (_, i) => 11 + i));
  expect(batches).toBe(0);
});

test('a large write ends the batch, and lies between the uses all the same', async () => {
  const { before, after, batches } = await aroundWrite(1025);
  expect(before).toEqual(new Array<number>(1025).fill(2));
  expect(after).toEqual(Array.from({ length: 1025 }, (_, i) => 11 + i));
  expect(batches).toBe(1);
});

test('more small writes than a batch has room for all arrive, in their order', async () => {
  using x = tensor(device, new Float32Array(1000));
  using sum = scope(() => {
    let total = add(x, 0);
    for (let i = 1; i <= 150; i++) {
      writeValues(x, new Float32Array(1000).fill(i));
      total = add(total, x);
    }
    return total;
  });
  expect([...(await sum.read())]).toEqual(new Array<number>(1000).fill(11_325));
});

test('halves that end within a word leave what lies behind them in the buffer zero', async () => {
  using x = tensor(device, [1, 2, 3], [3], { dtype: 'f16' });
  using before = add(x, x);
  writeValues(x, [4, 5, 6]);
  using after = add(x, x);
  expect([...(await before.read()), ...(await after.read())]).toEqual([2, 4, 6, 8, 10, 12]);
});
