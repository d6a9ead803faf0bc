import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, type Tensor, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { embedding, indexSelect, oneHot, takeAlongAxis } from '../src/ops/gather.js';
import { bernoulli, dropout, normal, uniform } from '../src/ops/random.js';
import { scatterAdd } from '../src/ops/scatter.js';

describe.each(['baseline', 'subgroups'] as const)('gathers, scatters and random numbers on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('scatterAdd sums rows by index in any crowd, and its gradient gathers', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 300 }),
        fc.constantFrom(1, 2, 70, 200),
        fc.constantFrom(1, 3, 65),
        fc.nat(),
        async (count, size, row, seed) => {
          const random = new RandomStream(seed);
          const values = random.normal(count * row);
          // crowded: most indices fall on few rows
          const index = Uint32Array.from(random.uniform(count), (u) => Math.floor(u * u * u * size));
          using v = tensor(device, values, [count, row]);
          using at = tensor(device, index);
          using g = tensor(device, random.normal(size * row), [size, row]);
          const G = await g.read();
          const { outputs, grads } = vjp(() => scatterAdd(v, at, size), [v], [g]);
          const expected = new Float64Array(size * row);
          index.forEach((r, i) => {
            for (let c = 0; c < row; c++) expected[r * row + c] = (expected[r * row + c] ?? 0) + (values[i * row + c] ?? 0);
          });
          (await (outputs[0] as Tensor).read()).forEach((x, i) => expect(Math.abs(x - (expected[i] ?? 0))).toBeLessThan(1e-4));
          (await (grads[0] as Tensor).read()).forEach((x, i) => expect(x).toBe(G[(index[Math.floor(i / row)] ?? 0) * row + (i % row)]));
          for (const t of [...outputs, ...grads]) t.dispose();
        },
      ),
      { numRuns: 12, seed: 5 },
    );
  });

  test('embedding takes rows, and its gradient sums what is taken twice', async () => {
    for (const dtype of ['f32', 'f16'] as const) {
      using table = tensor(
        device,
        Float32Array.from({ length: 20 }, (_, i) => i),
        [5, 4],
        { dtype },
      );
      using tokens = tensor(device, Uint32Array.of(3, 0, 3, 4), [2, 2]);
      using g = tensor(
        device,
        Float32Array.from({ length: 16 }, (_, i) => i + 1),
        [2, 2, 4],
      );
      const { outputs, grads } = vjp(() => embedding(table, tokens), [table], [g]);
      expect((outputs[0] as Tensor).shape).toEqual([2, 2, 4]);
      expect([...(await (outputs[0] as Tensor).read())]).toEqual([12, 13, 14, 15, 0, 1, 2, 3, 12, 13, 14, 15, 16, 17, 18, 19]);
      expect([...(await (grads[0] as Tensor).read())]).toEqual([5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 10, 12, 14, 16, 13, 14, 15, 16]);
      for (const t of [...outputs, ...grads]) t.dispose();
    }
  });

  test('takeAlongAxis takes along any axis, twice if asked, and oneHot marks', async () => {
    using x = tensor(
      device,
      Float32Array.from({ length: 12 }, (_, i) => i * i),
      [2, 3, 2],
    );
    using index = tensor(device, Uint32Array.of(2, 0, 2, 1, 0, 0, 1, 1), [2, 2, 2]);
    using g = tensor(device, [1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 2]);
    const { outputs, grads } = vjp(() => takeAlongAxis(x, index, 1), [x], [g]);
    expect([...(await (outputs[0] as Tensor).read())]).toEqual([16, 1, 16, 9, 36, 49, 64, 81]);
    expect([...(await (grads[0] as Tensor).read())]).toEqual([0, 2, 0, 4, 4, 0, 5, 6, 7, 8, 0, 0]);
    for (const t of [...outputs, ...grads]) t.dispose();
    using ids = tensor(device, Uint32Array.of(1, 3));
    for (const dtype of ['f32', 'f16', 'u8', 'i32'] as const) {
      using hot = oneHot(ids, 3, { dtype });
      expect([...(await hot.read())]).toEqual([0, 1, 0, 0, 0, 0]);
    }
    using rows = indexSelect(x, ids);
    expect(rows.shape).toEqual([2, 3, 2]);
  });

  test('there is nothing to take along an empty axis, unless nothing is asked for', () => {
    using x = tensor(device, new Float32Array(0), [2, 0]);
    using some = tensor(device, Uint32Array.of(0, 0), [2, 1]);
    using none = tensor(device, new Uint32Array(0), [2, 0]);
    expect(() => takeAlongAxis(x, some, 1)).toThrow(/axis 1 needs elements/);
    using out = takeAlongAxis(x, none, 1);
    expect(out.shape).toEqual([2, 0]);
  });

  test('numbers of the device are those of the host, and a draw is never used twice', async () => {
    const random = new RandomStream(7, 'test');
    using u = uniform(device, [3, 7], { random });
    using n = normal(device, [21], { random });
    const twin = new RandomStream(7, 'test');
    expect([...(await u.read())]).toEqual([...twin.uniform(21)]);
    const host = twin.normal(21);
    (await n.read()).forEach((v, i) => expect(v).toBeCloseTo(host[i] ?? 0, 4));
    using coins = bernoulli(device, [4000], { random, probability: 0.25 });
    const heads = Array.from(await coins.read()).reduce((sum, v) => sum + v, 0);
    expect(Math.abs(heads - 1000)).toBeLessThan(120);
  });

  test('dropout drops the same elements on the way back', async () => {
    const random = new RandomStream(3);
    using x = tensor(device, new Float32Array(1001).fill(2));
    const { outputs, grads } = vjp(() => dropout(x, { rate: 0.5, random }), [x], [x]);
    const [out, grad] = [await (outputs[0] as Tensor).read(), await (grads[0] as Tensor).read()];
    expect([...grad]).toEqual([...out]);
    expect(out.filter((v) => v === 4).length + out.filter((v) => v === 0).length).toBe(1001);
    expect(Math.abs(out.filter((v) => v === 0).length - 500)).toBeLessThan(80);
    for (const t of [...outputs, ...grads]) t.dispose();
    expect(() => dropout(x, { rate: 1, random })).toThrow(/not including, 1/);
  });
});
