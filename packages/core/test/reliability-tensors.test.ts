// Wrong use of tensors is told in words; odd but legal input (no tokens, NaN, long reads) goes through.
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import fc from 'fast-check';
import { attention, attentionWithLse } from '../src/attention/index.js';
import { sizeClass } from '../src/device/pool.js';
import {
  add,
  argmax,
  concat,
  conv1d,
  copyInto,
  crossEntropy,
  cumsum,
  type Device,
  embedding,
  full,
  HeedError,
  layerNorm,
  logSoftmax,
  logsumexp,
  matmul,
  max,
  mean,
  openDevice,
  permute,
  recurrence,
  relu,
  reshape,
  rmsNorm,
  rope,
  scatterAdd,
  scope,
  slice,
  softmax,
  sort,
  sum,
  type Tensor,
  tensor,
  topK,
  zeros,
} from '../src/index.js';
import { adamW } from '../src/optim/index.js';
import { tensorsIn, vjp } from '../src/internal.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('a tensor that is used after dispose is named', async () => {
  const x = tensor(device, [1, 2, 3, 4], [2, 2], { label: 'weights of layer 3' });
  const y = tensor(device, [1, 2, 3, 4], [2, 2]);
  x.dispose();
  x.dispose();
  expect(x.disposed).toBe(true);
  for (const use of [() => add(x, y), () => add(y, x), () => matmul(y, x), () => sum(x), () => x.alias(), () => reshape(x, [4])]) {
    expect(use).toThrow(expect.objectContaining({ code: 'DISPOSED', message: expect.stringContaining('"weights of layer 3" [2, 2] f32') }));
  }
  await expect(x.read()).rejects.toMatchObject({ code: 'DISPOSED' });
  y.dispose();
});

test('a view keeps the elements alive, and the buffer goes back with the last of them', async () => {
  const before = device.memory().liveBytes;
  const x = tensor(device, [1, 2, 3, 4], [2, 2]);
  const row = slice(x, 0, 1, 2);
  x.dispose();
  expect([...(await row.read())]).toEqual([3, 4]);
  row.dispose();
  expect(device.memory().liveBytes).toBe(before);
});

test('a view of other axes is row-major, and refused where the elements do not lie so', async () => {
  const x = tensor(
    device,
    Float32Array.from({ length: 24 }, (_, i) => i),
    [2, 3, 4],
  );
  const flat = x.view({ shape: [24] });
  expect([flat.strides, flat.contiguous]).toEqual([[1], true]);
  const tail = slice(flat, 0, 17, 20);
  expect([...(await tail.read())]).toEqual([17, 18, 19]);
  const merged = x.view({ shape: [6, 4] });
  expect(merged.strides).toEqual([4, 1]);
  const columns = slice(x, 2, 1, 3);
  expect(() => columns.view({ shape: [12] })).toThrow('[2, 3, 2] f32 is a strided view; to see it as [12] give strides');
  for (const t of [x, flat, tail, merged, columns]) t.dispose();
});

test('what a scope frees cannot be used outside of it', () => {
  let leaked: Tensor | undefined;
  const kept = scope(() => {
    leaked = tensor(device, [1], [1], { label: 'inner' });
    return add(leaked, 1);
  });
  expect(() => add(leaked as Tensor, 1)).toThrow(/"inner" \[1\] f32 was disposed; keep it out of the scope/);
  kept.dispose();
});

test('a scope refuses promises and thenables, frees what was made, and a later failure of the promise hurts nobody', async () => {
  const before = device.memory().tensors;
  for (const work of [
    async () => {
      const x = zeros(device, [4]);
      await Promise.resolve();
      return add(x, 1);
    },
    // oxlint-disable-next-line no-thenable -- that is the point
    () => ({ then: (_done: unknown, failed: (error: unknown) => void) => failed(zeros(device, [4])) }),
  ]) {
    expect(() => scope<unknown>(work)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringContaining('synchronous') }),
    );
  }
  await new Promise((resolve) => setTimeout(resolve, 5));
  expect(device.memory().tensors).toBe(before);
});

test('a scope that throws frees what was made in it', () => {
  const before = device.memory();
  expect(() =>
    scope(() => {
      add(zeros(device, [8]), 1);
      throw new Error('mine');
    }),
  ).toThrow('mine');
  expect(device.memory().tensors).toBe(before.tensors);
  expect(device.memory().liveBytes).toBe(before.liveBytes);
});

test('tensors of two devices in one call are refused by name', async () => {
  const other = await openDevice({ tier: 'subgroups' });
  const mine = tensor(device, [1, 2, 3, 4], [2, 2]);
  const theirs = tensor(other, [1, 2, 3, 4], [2, 2], { label: 'theirs' });
  const [ids, table] = [tensor(device, Uint32Array.of(0)), tensor(other, [1, 2], [1, 2])];
  const [q, k] = [zeros(device, [1, 4, 1, 8]), zeros(other, [1, 4, 1, 8])];
  const optimizer = adamW({ mine });
  const calls: (() => unknown)[] = [
    () => add(mine, theirs),
    () => add(theirs, mine),
    () => matmul(mine, theirs),
    () => concat([mine, theirs]),
    () => embedding(table, ids),
    () => copyInto(mine, theirs),
    () => attention(q, k, k),
    () => crossEntropy(table, ids),
    () => optimizer.step({ mine: theirs }, { learningRate: 1 }),
  ];
  for (const [i, call] of calls.entries()) {
    expect(call, `call ${i}`).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(/device.*read\(\) and tensor\(\)/) }),
    );
  }
  await device.idle();
  await other.idle();
  expect([...(await mine.read())]).toEqual([1, 2, 3, 4]);
  optimizer.dispose();
  for (const t of [mine, theirs, ids, table, q, k]) t.dispose();
  expect(other.memory().tensors).toBe(0);
  await other.close();
});

test('a tensor of another copy of core is told from any other object', () => {
  const foreign = { [Symbol.for('@heed/tensor')]: '@heed/core loaded elsewhere', shape: [1] };
  expect(() => scope(() => ({ foreign }))).toThrow(
    /another copy of @heed\/core was given \(@heed\/core loaded elsewhere.*npm ls @heed\/core/,
  );
  expect(() => tensorsIn([foreign])).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  expect(tensorsIn([{ shape: [1] }]).size).toBe(0);
});

test('reads longer than a staging window of 16 MiB are whole, from any start', async () => {
  const n = 17 * 2 ** 18;
  const values = Float32Array.from({ length: n }, (_, i) => i % 8191);
  const x = tensor(device, values);
  const got = await x.read();
  expect(got.length).toBe(n);
  expect(Buffer.compare(Buffer.from(got.buffer), Buffer.from(values.buffer))).toBe(0);
  const part = slice(x, 0, 3, n - 5);
  const rest = await part.read();
  expect(Buffer.compare(Buffer.from(rest.buffer), Buffer.from(values.buffer, 12, (n - 8) * 4))).toBe(0);
  x.dispose();
  part.dispose();
});

test('several reads may be under way at once', async () => {
  const tensors = [0, 1, 2, 3, 4].map((i) => tensor(device, [i, i + 1, i + 2]));
  const values = await Promise.all(tensors.map((t) => t.read()));
  values.forEach((v, i) => expect([...v]).toEqual([i, i + 1, i + 2]));
  for (const t of tensors) t.dispose();
});

test('size classes of the pool waste at most a quarter', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 2 ** 32 }), (bytes) => {
      const size = sizeClass(bytes);
      expect(size % 4).toBe(0);
      expect(size).toBeGreaterThanOrEqual(bytes);
      expect(size).toBeLessThanOrEqual(Math.max(256, bytes * 1.25));
      expect(sizeClass(size)).toBe(size);
    }),
    { seed: 1, numRuns: 300 },
  );
});

test('live and pooled bytes together stay within 1.25 times the peak', async () => {
  const own = await openDevice({ nullBackend: true });
  const held: Tensor[] = [];
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: 1, max: 200_000 }), fc.boolean()), { maxLength: 40 }), (steps) => {
      for (const [size, free] of steps) {
        if (free) held.splice(size % Math.max(1, held.length), 1)[0]?.dispose();
        else held.push(zeros(own, [size]));
        const { liveBytes, pooledBytes, peakBytes } = own.memory();
        expect(liveBytes + pooledBytes).toBeLessThanOrEqual(1.25 * peakBytes);
      }
    }),
    { seed: 2, numRuns: 20 },
  );
  for (const t of held) t.dispose();
  await own.idle();
  expect(own.memory()).toMatchObject({ tensors: 0, liveBytes: 0 });
  own.pool.trim(0);
  expect(own.memory()).toMatchObject({ pooledBytes: 0, buffers: 0 });
  await own.close();
});

test('steps of changing lengths stop making buffers', async () => {
  const own = await openDevice({ nullBackend: true });
  const weights = zeros(own, [64, 64]);
  const lengths = [256, 160, 256, 224, 96, 128, 192];
  const made = vi.spyOn(own.gpu, 'createBuffer');
  const run = (rounds: number): void => {
    for (let i = 0; i < rounds * lengths.length; i++)
      scope(() => {
        const x = zeros(own, [lengths[i % lengths.length] as number, 64]);
        softmax(add(matmul(relu(matmul(x, weights)), weights), x));
      });
  };
  run(3);
  made.mockClear();
  run(20);
  expect(made).not.toHaveBeenCalled();
  weights.dispose();
  await own.close();
});

test('NaN and infinity go through ops without spreading to other rows', async () => {
  const x = tensor(device, new Float32Array([1, 2, NaN, 4, Infinity, 6, 7, 8, -Infinity, 1, 2, 3]), [4, 3]);
  const w = tensor(device, [1, 0, 0, 1, 1, 1], [3, 2]);
  const results = scope(() => [add(x, 1), matmul(x, w), softmax(x), rmsNorm(x), layerNorm(x), cumsum(x, -1), relu(x)]);
  for (const t of results) {
    const values = await t.read();
    expect(values.length).toBe(t.size);
    const width = t.size / 4;
    const clean = Array.from(values.subarray(3 * width));
    expect(clean.every(Number.isFinite)).toBe(true);
    t.dispose();
  }
  for (const op of [(t: Tensor) => sort(t), (t: Tensor) => topK(t, 2), (t: Tensor) => argmax(t)]) {
    const made = [...tensorsIn(scope(() => op(x)))];
    for (const t of made) {
      expect((await t.read()).length).toBe(t.size);
      t.dispose();
    }
  }
  x.dispose();
  w.dispose();
});

test('keys that are not visible may hold NaN or infinity: the rows that do not see them stay clean', async () => {
  const [tokens, dim] = [12, 8];
  const clean = Float32Array.from({ length: tokens * dim }, (_, i) => Math.sin(i));
  const dirty = clean.slice();
  for (let i = 9 * dim; i < tokens * dim; i++) dirty[i] = i % 2 === 0 ? NaN : Infinity;
  const q = tensor(device, clean, [1, tokens, 1, dim]);
  const good = tensor(device, clean, [1, tokens, 1, dim]);
  const bad = tensor(device, dirty, [1, tokens, 1, dim]);
  const lengths = tensor(device, Int32Array.of(9));
  // a NaN among the values of a tile meets the zero weights of earlier rows of that tile: only keys are clean under a mask,
  // keys and values beyond the length are never loaded
  for (const [options, rows, dirtyPairs] of [
    [{ causal: true }, 9, [[bad, good]]],
    [
      { lengths },
      tokens,
      [
        [bad, good],
        [good, bad],
        [bad, bad],
      ],
    ],
  ] as const) {
    const expected = scope(() => attention(q, good, good, options));
    for (const [k, v] of dirtyPairs) {
      const got = scope(() => attention(q, k, v, options));
      const [a, b] = [await got.read(), await expected.read()];
      for (let i = 0; i < rows * dim; i++)
        expect(a[i], `${Object.keys(options).join()} ${k === bad ? 'key' : 'value'} ${i}`).toBeCloseTo(b[i] ?? 0, 5);
      got.dispose();
    }
    expected.dispose();
  }
  for (const t of [q, good, bad, lengths]) t.dispose();
});

/** Fills the pool with sevens: what a kernel does not write is seen. */
function dirtyPool(): void {
  scope(() => {
    for (let i = 0; i < 40; i++) full(device, [64], 7);
  });
}

test('no tokens are a legal length for every main op', async () => {
  const none = zeros(device, [2, 0, 4]);
  const w = zeros(device, [4, 3]);
  const table = zeros(device, [5, 4]);
  const ids = zeros(device, [2, 0], { dtype: 'u32' });
  const norm = tensor(device, [1, 1, 1, 1]);
  const one = tensor(device, [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4]);
  const heads = zeros(device, [2, 0, 2, 8]);
  const some = zeros(device, [2, 3, 2, 8]);
  const cases: [string, () => Tensor | readonly Tensor[], number[][]][] = [
    ['add', () => add(none, 1), [[2, 0, 4]]],
    ['matmul without rows', () => matmul(none, w), [[2, 0, 3]]],
    ['matmul without depth', () => matmul(zeros(device, [2, 0]), zeros(device, [0, 3])), [[2, 3]]],
    ['sum of all', () => sum(none), [[]]],
    ['gradient of embedding', () => vjp(() => embedding(table, ids), [table], [none]).grads, [[5, 4]]],
    ['gradient of rmsNorm', () => vjp(() => rmsNorm(none, norm), [norm], [none]).grads, [[4]]],
    ['gradient of matmul', () => vjp(() => matmul(none, w), [w], [zeros(device, [2, 0, 3])]).grads, [[4, 3]]],
    ['gradient of attention', () => vjp(() => attention(heads, some, some), [some], [heads]).grads, [[2, 3, 2, 8]]],
    ['softmax', () => softmax(none), [[2, 0, 4]]],
    ['logSoftmax', () => logSoftmax(none), [[2, 0, 4]]],
    ['sum', () => sum(none, 1), [[2, 4]]],
    ['logsumexp', () => logsumexp(none, -1), [[2, 0]]],
    ['rmsNorm', () => rmsNorm(none), [[2, 0, 4]]],
    ['layerNorm', () => layerNorm(none), [[2, 0, 4]]],
    ['cumsum', () => cumsum(none, 1), [[2, 0, 4]]],
    ['recurrence', () => recurrence(none, none), [[2, 0, 4]]],
    ['concat', () => concat([none, one], 1), [[2, 1, 4]]],
    ['slice', () => slice(one, 1, 1, 1), [[2, 0, 4]]],
    ['permute', () => permute(none, [1, 0, 2]), [[0, 2, 4]]],
    ['reshape', () => reshape(none, [0, 8]), [[0, 8]]],
    ['embedding', () => embedding(table, ids), [[2, 0, 4]]],
    ['rope', () => rope(heads), [[2, 0, 2, 8]]],
    ['sort', () => sort(zeros(device, [2, 0])).values, [[2, 0]]],
    ['attention without queries', () => attention(heads, some, some), [[2, 0, 2, 8]]],
    ['attention without keys', () => attention(some, heads, heads), [[2, 3, 2, 8]]],
  ];
  for (const [name, op, shapes] of cases) {
    const made = [...tensorsIn(scope(op))];
    expect(
      made.map((t) => [...t.shape]),
      name,
    ).toEqual(shapes);
    for (const t of made) {
      const values = await t.read();
      expect(values.length, name).toBe(t.size);
      if (name !== 'concat')
        expect(
          [...values].every((x) => x === 0),
          name,
        ).toBe(true);
      t.dispose();
    }
  }
  dirtyPool();
  const { out, lse } = scope(() => attentionWithLse(some, heads, heads));
  expect([...(await out.read())].every((x) => x === 0)).toBe(true);
  expect([...(await lse.read())].every((x) => x === -Infinity || x <= -1e30)).toBe(true);
  for (const t of [out, lse, none, w, table, ids, one, norm, heads, some]) t.dispose();
  await device.idle();
});

test('ops that have no answer for nothing say so', () => {
  const none = zeros(device, [2, 0]);
  const [signal, kernel] = [zeros(device, [1, 0, 4]), zeros(device, [3, 4, 4])];
  expect(() => conv1d(signal, kernel)).toThrow(/0 inputs.*shorter than the kernel/);
  signal.dispose();
  kernel.dispose();
  for (const op of [() => max(none, 1), () => argmax(none, 1), () => mean(none, 1)]) expect(op).toThrow(HeedError);
  expect(() => topK(none, 1)).toThrow(HeedError);
  none.dispose();
});

test('scatters of nothing give zeros', async () => {
  const values = zeros(device, [0, 4]);
  const index = zeros(device, [0], { dtype: 'u32' });
  dirtyPool();
  const out = scatterAdd(values, index, 3);
  expect([...(await out.read())]).toEqual(new Array(12).fill(0));
  for (const t of [values, index, out]) t.dispose();
});
