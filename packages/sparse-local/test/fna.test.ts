import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, type Tensor, tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { f64 } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';
import { fna, fnaWithLse, NeighborhoodState, planFna } from '../src/fna/index.js';
import { planParts } from '../src/fna/parts.js';
import { referenceFna, referenceFnaGradients } from '../src/fna/reference.js';

function asF64(values: Float32Array, shape: readonly number[]): F64Array {
  const out = f64([...shape]);
  out.values.set(values);
  return out;
}

const near = (got: ArrayLike<number>, expected: ArrayLike<number>, bound: number): void => {
  for (let i = 0; i < expected.length; i++)
    expect(Math.abs((got[i] ?? Number.NaN) - (expected[i] ?? 0))).toBeLessThan(bound * (1 + Math.abs(expected[i] ?? 0)));
};

describe.each(['baseline', 'subgroups'] as const)('fna on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('grids of any rank, windows odd and even, dilation and causal axes agree with the loops, gradients too', async () => {
    const cases = [
      { grid: [23], window: [4], dilation: [2], causal: [false], heads: 2, kvHeads: 1 },
      { grid: [11, 9], window: [4, 3], dilation: [1, 2], causal: [true, false], heads: 2, kvHeads: 2 },
      { grid: [5, 4, 6], window: [3, 2, 3], dilation: [1, 2, 1], causal: [false, false, true], heads: 1, kvHeads: 1 },
    ];
    for (const { grid, window, dilation, causal, heads, kvHeads } of cases) {
      const random = new RandomStream(grid.length);
      const tokens = grid.reduce((a, b) => a * b, 1);
      const shapes = [
        [1, ...grid, heads, 8],
        [1, ...grid, kvHeads, 8],
        [1, ...grid, kvHeads, 4],
        [1, ...grid, heads, 4],
      ];
      const [Q, K, V, G] = shapes.map((shape) => random.normal(shape.reduce((a, b) => a * b, 1))) as [
        Float32Array,
        Float32Array,
        Float32Array,
        Float32Array,
      ];
      const [q, k, v, g] = [Q, K, V, G].map((x, i) => tensor(device, x, shapes[i] ?? [])) as [Tensor, Tensor, Tensor, Tensor];
      const arrays = [Q, K, V].map((x, i) => asF64(x, shapes[i] ?? [])) as [F64Array, F64Array, F64Array];
      const { outputs, grads } = vjp(() => fna(q, k, v, { window, dilation, causal }), [q, k, v], [g]);
      near(await (outputs[0] as Tensor).read(), referenceFna(...arrays, { window, dilation, causal }).out.values, 2e-5);
      const expected = referenceFnaGradients(...arrays, { out: asF64(G, shapes[3] ?? []) }, { window, dilation, causal });
      near(await (grads[0] as Tensor).read(), expected.q.values, 1e-4);
      near(await (grads[1] as Tensor).read(), expected.k.values, 1e-4);
      near(await (grads[2] as Tensor).read(), expected.v.values, 1e-4);
      expect(tokens).toBeGreaterThan(0);
      for (const t of [q, k, v, g, ...outputs, ...grads]) t.dispose();
    }
  }, 120_000);

  test('a window as large as the grid equals dense attention, and needs no order', async () => {
    const plan = planFna({ grid: [4, 6], window: [4, 6], dilation: [1, 1], causal: [false, false], additional: 0 });
    expect([plan.mask, plan.grid.order]).toEqual([undefined, undefined]);
    const values = new RandomStream(2).normal(24 * 8);
    using x = tensor(device, values, [1, 4, 6, 1, 8]);
    const { out, lse } = fnaWithLse(x, x, x, { window: [4, 6] });
    const array = asF64(values, [1, 4, 6, 1, 8]);
    const expected = referenceFna(array, array, array, { window: [4, 6] });
    near(await out.read(), expected.out.values, 2e-5);
    near(await lse.read(), expected.lse.values, 2e-5);
    out.dispose();
    lse.dispose();
  });

  test('tensors larger than a binding are attended in parts of their heads and entries, gradients too', async () => {
    const cases = [
      { batch: 1, heads: 4, kvHeads: 2, window: 3, bytes: 5600, parts: 2 },
      { batch: 2, heads: 4, kvHeads: 1, window: 4, bytes: 5600, parts: 4 },
    ];
    const grid = [8, 9];
    for (const { batch, heads, kvHeads, window, bytes, parts } of cases) {
      const random = new RandomStream(heads);
      const shape = (n: number): number[] => [batch, ...grid, n, 8];
      const extra = [batch, 3, kvHeads, 8];
      const shapes = [shape(heads), shape(kvHeads), shape(kvHeads), extra, extra, shape(heads)];
      const values = shapes.map((s) => random.normal(s.reduce((a, b) => a * b, 1)));
      const [q, k, v, additionalKeys, additionalValues, g] = values.map((x, i) => tensor(device, x, shapes[i] ?? [])) as [
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor,
        Tensor,
      ];
      using bias = tensor(device, random.normal(heads * (2 * window - 1) ** 2), [heads, 2 * window - 1, 2 * window - 1]);
      const inputs = [q, k, v, additionalKeys, additionalValues, bias];
      const options = { window, bias, additionalKeys, additionalValues };
      const run = async (): Promise<Float32Array[]> => {
        const { outputs, grads } = vjp(() => fna(q, k, v, options), inputs, [g]);
        const { out, lse } = fnaWithLse(q, k, v, options);
        const all = [...outputs, ...grads, out, lse];
        const read = await Promise.all(all.map(async (t) => Float32Array.from(await t.read(), Number)));
        for (const t of all) t.dispose();
        return read;
      };
      const whole = await run();
      const limit = device.limits.maxStorageBufferBindingSize;
      const problem = { batch, grid, heads, kvHeads, headDim: 8, valueDim: 8, window: [], dilation: [], causal: [], additional: 3 };
      expect(planParts(problem, 'f32', bytes)?.list.length).toBe(parts);
      try {
        device.limits.maxStorageBufferBindingSize = bytes;
        const inParts = await run();
        inParts.forEach((x, i) => near(x, whole[i] ?? [], 1e-5));
      } finally {
        device.limits.maxStorageBufferBindingSize = limit;
      }
      const array = values.map((x, i) => asF64(x, shapes[i] ?? [])) as [F64Array, F64Array, F64Array, F64Array, F64Array, F64Array];
      const [Q, K, V, keys, values2] = array;
      const { out } = referenceFna(Q, K, V, {
        window: [window, window],
        bias: asF64(Float32Array.from(await bias.read()), bias.shape),
        additionalKeys: keys,
        additionalValues: values2,
      });
      near(whole[0] ?? [], out.values, 2e-5);
      for (const t of [...inputs.slice(0, 5), g]) t.dispose();
    }
  }, 120_000);

  test('the stream gives what the causal form gives for every split, and keeps its size', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 2, maxLength: 6 }),
        fc.constantFrom([5, 1], [3, 2], [1, 1]),
        async (pieces, [window = 1, dilation = 1]) => {
          const n = Math.max(
            window * dilation,
            pieces.reduce((a, b) => a + b, 0),
          );
          const values = new RandomStream(n).normal(n * 16);
          using x = tensor(device, values, [1, n, 2, 8]);
          using whole = fna(x, x, x, { window, dilation, causal: true });
          const expected = await whole.read();
          const state = new NeighborhoodState(device, { batch: 1, kvHeads: 2, headDim: 8, window, dilation, dtype: 'f32' });
          const bytes = state.bytes();
          let at = 0;
          for (const piece of [...pieces, n]) {
            const count = Math.min(piece, n - at);
            if (count === 0) continue;
            using part = x.view({ shape: [1, count, 2, 8], offset: at * 16 });
            using out = state.attend(part, part, part);
            near(await out.read(), expected.subarray(at * 16, (at + count) * 16), 2e-5);
            at += count;
          }
          expect([state.tokens, state.bytes()]).toEqual([n, bytes]);
          state.dispose();
        },
      ),
      { numRuns: 6, seed: 4 },
    );
  }, 120_000);

  test('what does not fit is refused with what was given and what to do', () => {
    using x = tensor(device, new Float32Array(5 * 9 * 8), [1, 5, 9, 1, 8]);
    expect(() => fna(x, x, x, { window: [7, 7] })).toThrow(
      'fna: window [7, 7] is larger than the token grid [5, 9]; choose a window no larger than the grid on each axis',
    );
    expect(() => fna(x, x, x, { window: 3, dilation: [2, 1] })).toThrow(/window x dilation no larger than the grid/);
    using bias = tensor(device, new Float32Array(25), [1, 5, 5]);
    expect(() => fna(x, x, x, { window: 3, causal: true, bias })).toThrow(/not defined on a causal axis/);
    using flat = tensor(device, new Float32Array(8), [1, 8]);
    expect(() => fna(flat, flat, flat, { window: 1 })).toThrow(/\[batch, \.\.\.grid, heads, headDim\]/);
  });
});

test('a million tokens of 16 heads are four parts; heads of one group are cut apart only where one of them is as large as a binding', () => {
  const million = { grid: [1024, 1024], headDim: 64, valueDim: 64, window: [], dilation: [], causal: [], additional: 0 };
  const binding = 2 ** 31 - 4;
  const heads = (p: { heads: number; kvHeads: number; batch: number }): string[] | undefined =>
    planParts({ ...million, ...p }, 'f16', binding)?.list.map(
      ({ queries: q, keysAt }) => `${q.entry}+${q.entries} ${q.head}+${q.heads} ${keysAt}`,
    );
  expect(heads({ batch: 1, heads: 16, kvHeads: 16 })).toEqual(['0+1 0+4 0', '0+1 4+4 1', '0+1 8+4 2', '0+1 12+4 3']);
  expect(heads({ batch: 1, heads: 16, kvHeads: 1 })).toEqual(['0+1 0+8 0', '0+1 8+8 0']);
  expect(heads({ batch: 4, heads: 4, kvHeads: 2 })).toEqual(['0+2 0+4 0', '2+2 0+4 1']);
  expect(heads({ batch: 1, heads: 4, kvHeads: 4 })).toBe(undefined);
});

test('on fragments tokens are read and written where they lie; only a backward that runs elsewhere has them moved', async () => {
  const device = await openDevice({ tier: 'matrix' });
  const random = new RandomStream(6);
  const grid = [7, 9];
  const shapes = [2, 1, 1, 2].map((heads) => [2, ...grid, heads, 16]);
  const halves = shapes.map((shape) => Float32Array.from(random.normal(shape.reduce((a, b) => a * b, 1)), (x) => Math.round(x * 64) / 64));
  const [q, k, v, g] = halves.map((x, i) => tensor(device, x, shapes[i] ?? [], { dtype: 'f16' })) as [Tensor, Tensor, Tensor, Tensor];
  const arrays = halves.map((x, i) => asF64(x, shapes[i] ?? [])) as [F64Array, F64Array, F64Array, F64Array];
  const [Q, K, V, G] = arrays;
  const table = random.normal(2 * 5 * 5);
  using bias = tensor(device, table, [2, 5, 5]);
  const cases = [
    { options: { window: [3, 4], dilation: [1, 1], causal: [false, false] }, more: {}, moved: [] },
    {
      options: { window: [3, 3], dilation: [1, 1], causal: [false, false] },
      more: { bias, array: asF64(table, [2, 5, 5]) },
      moved: ['permute-tokens'],
    },
  ];
  for (const { options, more, moved } of cases) {
    const made: Tensor[] = [];
    const run = (): void => {
      const { outputs, grads } = vjp(() => fna(q, k, v, { ...options, ...(more.bias && { bias: more.bias }) }), [q, k, v], [g]);
      made.push(...(outputs as Tensor[]), ...(grads as Tensor[]));
    };
    const { kernels } = await device.profile(run);
    expect([...new Set(kernels.map(({ kernel }) => kernel))].filter((name) => name.startsWith('permute'))).toEqual(moved);
    const wanted = { ...options, ...(more.array && { bias: more.array }) };
    const expected = referenceFnaGradients(Q, K, V, { out: G }, wanted);
    const { out, lse } = fnaWithLse(q, k, v, { ...options, ...(more.bias && { bias: more.bias }) });
    const results = [referenceFna(Q, K, V, wanted).out, expected.q, expected.k, expected.v, referenceFna(Q, K, V, wanted).lse];
    for (const [i, t] of [...made, lse].entries()) near(Float32Array.from(await t.read(), Number), results[i]?.values ?? [], 1e-2);
    for (const t of [...made, out, lse]) t.dispose();
  }
  for (const t of [q, k, v, g, bias]) t.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
}, 120_000);
