import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, type Tensor, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { argsort, sort, sortPairs, topK } from '../src/ops/sort/index.js';
import { RandomStream } from '../src/random/stream.js';

describe.each(['baseline', 'subgroups'] as const)('sort on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('argsort gives the stable order of rows, short and long, both directions', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 3 }),
        fc.constantFrom(1, 2, 3, 255, 256, 257, 1000, 1024, 1025, 2500),
        fc.boolean(),
        fc.boolean(),
        fc.nat(),
        async (rows, n, descending, ties, seed) => {
          const values = new RandomStream(seed).normal(rows * n).map((v) => (ties ? Math.round(v * 2) / 2 : v));
          using x = tensor(device, values, [rows, n]);
          using order = argsort(x, { descending });
          const got = await order.read();
          for (let r = 0; r < rows; r++) {
            const row = Array.from(values.subarray(r * n, (r + 1) * n), (v) => (v === 0 ? 0 : v));
            const expected = row
              .map((_, i) => i)
              .sort((i, j) => (descending ? (row[j] ?? 0) - (row[i] ?? 0) : (row[i] ?? 0) - (row[j] ?? 0)) || i - j);
            expect([...got.subarray(r * n, (r + 1) * n)]).toEqual(expected);
          }
        },
      ),
      { numRuns: 14, seed: 1 },
    );
  });

  test('sortPairs carries values, counts only the low bits and keeps the order of ties', async () => {
    for (const [n, bits] of [
      [1, 32],
      [1023, 8],
      [1024, 30],
      [3001, 12],
      [5000, 4],
    ] as const) {
      const words = Uint32Array.from(new RandomStream(n).uniform(2 * n), (u) => Math.floor(u * 2 ** 32));
      using keys = tensor(device, words, [2, n]);
      using values = tensor(
        device,
        Uint32Array.from({ length: 2 * n }, (_, i) => i * 3),
        [2, n],
      );
      const sorted = sortPairs(keys, values, { bits });
      const [gotKeys, gotValues] = [await sorted.keys.read(), await sorted.values.read()];
      sorted.keys.dispose();
      sorted.values.dispose();
      const mask = bits === 32 ? 0xffffffff : 2 ** bits - 1;
      for (let r = 0; r < 2; r++) {
        const order = Array.from({ length: n }, (_, i) => r * n + i).sort(
          (i, j) => (((words[i] ?? 0) & mask) >>> 0) - (((words[j] ?? 0) & mask) >>> 0) || i - j,
        );
        expect([...gotValues.subarray(r * n, (r + 1) * n)]).toEqual(order.map((i) => i * 3));
        expect([...gotKeys.subarray(r * n, (r + 1) * n)]).toEqual(order.map((i) => words[i]));
      }
    }
  });

  test('topK keeps the largest (or smallest), ties to the lower index, in short and long rows', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom([5, 5], [300, 7], [1500, 9], [3000, 1024], [1300, 1100]),
        fc.boolean(),
        fc.boolean(),
        fc.nat(),
        async ([n, count], smallest, ties, seed) => {
          if (n === undefined || count === undefined) return;
          const values = new RandomStream(seed).normal(2 * n).map((v) => (ties ? Math.round(v) : v));
          using x = tensor(device, values, [2, n]);
          for (const order of ['value', 'index'] as const) {
            const top = topK(x, count, { smallest, order });
            const [got, at] = [await top.values.read(), await top.indices.read()];
            top.values.dispose();
            top.indices.dispose();
            for (let r = 0; r < 2; r++) {
              const row = Array.from(values.subarray(r * n, (r + 1) * n), (v) => (v === 0 ? 0 : v));
              const sign = smallest ? 1 : -1;
              const expected = row
                .map((_, i) => i)
                .sort((i, j) => sign * ((row[i] ?? 0) - (row[j] ?? 0)) || i - j)
                .slice(0, count);
              if (order === 'index') expected.sort((i, j) => i - j);
              expect([...at.subarray(r * count, (r + 1) * count)]).toEqual(expected);
              expect(Array.from(got.subarray(r * count, (r + 1) * count), (v) => (v === 0 ? 0 : v))).toEqual(expected.map((i) => row[i]));
            }
          }
        },
      ),
      { numRuns: 10, seed: 2 },
    );
  });

  test('gradients of topK and sort go to the elements that were kept', async () => {
    using x = tensor(device, [3, 1, 2, 5, 4, 0], [2, 3]);
    using d = tensor(device, [10, 20, 30, 40], [2, 2]);
    const top = vjp(() => topK(x, 2).values, [x], [d]);
    expect([...(await (top.grads[0] as Tensor).read())]).toEqual([10, 0, 20, 30, 40, 0]);
    using e = tensor(device, [1, 2, 3, 4, 5, 6], [2, 3]);
    const sorted = vjp(() => sort(x).values, [x], [e]);
    expect([...(await (sorted.grads[0] as Tensor).read())]).toEqual([3, 1, 2, 6, 5, 4]);
    for (const t of [...top.outputs, ...top.grads, ...sorted.outputs, ...sorted.grads]) t.dispose();
    expect(() => topK(x, 4)).toThrow(/count is 4 for rows of 3/);
  });

  test('an empty row gives an empty order', async () => {
    using x = tensor(device, [], [2, 0]);
    using order = argsort(x);
    expect(order.shape).toEqual([2, 0]);
  });

  test('wrong dtypes and bits are refused with a reason', () => {
    using x = tensor(device, new Uint8Array(4));
    expect(() => argsort(x)).toThrow(/cast u8/);
    using k = tensor(device, new Uint32Array(4));
    expect(() => sortPairs(k, k, { bits: 33 })).toThrow(/use 1 to 32/);
  });
});
