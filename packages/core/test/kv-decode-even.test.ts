// One query over all rows of a cache of halves.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { stepsInPages } from '../src/cache/kernels/decode-even.js';
import { attention, createKvCache, type Device, openDevice, scope, slice, tensor } from '../src/index.js';
import type { AttendOptions } from '../src/seams/kv.js';
import { RandomStream } from '../src/random/stream.js';
import { expectClose, f64 } from '../src/testing/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('steps lie inside pages, or the kernel of any call serves', () => {
  const plan = { lanes: 128, lanesAKey: 16, keysAStep: 4, rows: 4, joined: 2, tiles: 1, splits: 66, splitKeys: 497 };
  expect(stepsInPages(plan, 64)).toBe(true);
  expect(stepsInPages(plan, 16)).toBe(false);
});

test.each([
  ['groups that fill a tile', 4, 16, 300],
  ['groups that do not, and the last row of a page', 6, 16, 256],
  ['lanes past the row, an odd number of tokens', 2, 40, 301],
] as const)('%s', async (_, heads, dim, tokens) => {
  const [batch, kvHeads] = [2, 2];
  const random = new RandomStream(4, 'even');
  const draw = (count: number, of: number): ReturnType<typeof tensor> =>
    tensor(device, random.normal(batch * count * of * dim), [batch, count, of, dim], { dtype: 'f16' });
  const [k, v, q] = [draw(tokens, kvHeads), draw(tokens, kvHeads), draw(1, heads)];
  using cache = createKvCache(device, { batch, kvHeads, headDim: dim, capacity: 400, dtype: 'f16', pageTokens: 128 });
  for (const [from, to] of [
    [0, 250],
    [250, tokens],
  ] as const)
    scope(() => cache.append(slice(k, 1, from, to), slice(v, 1, from, to)));
  const got = scope(() => cache.attend(q));
  expect([...device.pipelines.values()].map(({ name }) => name)).toContain('kv-decode-even');
  const expected = scope(() => attention(q, k, v));
  const wanted = f64(expected.shape, Array.from(await expected.read(), Number));
  expectClose('out', { shape: got.shape, values: await got.read() }, wanted, { atol: 1e-3, rtol: 2e-3 });
  for (const t of [k, v, q, got, expected]) t.dispose();
});

test('a window that hides rows, and scores that are capped, go to the kernel of any call', () => {
  const random = new RandomStream(5, 'even');
  const draw = (tokens: number): ReturnType<typeof tensor> =>
    tensor(device, random.normal(tokens * 16), [1, tokens, 1, 16], { dtype: 'f16' });
  const [k, q] = [draw(60), draw(1)];
  using cache = createKvCache(device, { batch: 1, kvHeads: 1, headDim: 16, capacity: 64, dtype: 'f16', pageTokens: 64 });
  cache.append(k, k);
  const kernel = (options: AttendOptions): string | undefined => {
    const stop = device.trace();
    cache.attend(q, options).dispose();
    return stop().find(({ kernel: name }) => name.startsWith('kv-'))?.kernel;
  };
  expect(kernel({})).toBe('kv-decode-even');
  expect(kernel({ window: 60 })).toBe('kv-decode-even');
  expect(kernel({ window: 59 })).toBe('kv-decode');
  expect(kernel({ softcap: 5 })).toBe('kv-decode');
  for (const t of [k, q]) t.dispose();
});
