import { expect, test } from 'vitest';
import { extraRowFloats } from '../src/cache/index.js';
import { f32Codec } from '../src/cache/codec.js';
import { createGroup } from '../src/cache/group.js';
import { appendRows } from '../src/cache/kernels/append.js';
import { attendGroup, attendText } from '../src/cache/kernels/attend.js';
import { addTokens } from '../src/cache/kernels/counts.js';
import { runDecodeMerge } from '../src/attention/kernels/decode-merge.js';
import { planAttend, splitKeysOf } from '../src/cache/plan.js';
import { assignStages } from '../src/cache/stages.js';
import { RandomStream } from '../src/random/stream.js';
import { createKvCache, deviceBytes, type KvStage, openDevice, scope, tensor, valueAndGrad, zeros } from '../src/index.js';
import { empty, workgroupBytes } from '../src/internal.js';
import { emptySequence, modelAttend, push, randomTokens } from './kv-model.js';
import { codes, compensation, razorHeads, razorTokens } from './kv-streaming-heads.js';
import { rowCodes } from '../src/cache/row-codes.js';
import { devices, expectClose, testedTiers } from './ops-support.js';

const open = devices();
const sizes = { kvHeads: 2, heads: 4, headDim: 8, valueDim: 8 };

test.each(testedTiers)('a prompt in pieces and single tokens gives dense causal attention on %s', async (tier) => {
  const device = open[tier];
  const random = new RandomStream(1, 'pieces');
  const model = [emptySequence(sizes), emptySequence(sizes)];
  using cache = createKvCache(device, { batch: 2, ...sizes, capacity: 200, dtype: 'f32', pageTokens: 16 });
  for (const n of [3, 1, 70, 33, 1, 20]) {
    {
      const options = n === 20 ? { window: 9 } : {};
      const given = model.map(() => randomTokens(random, n, sizes, 'f32'));
      const q = Array.from(random.normal(2 * n * sizes.heads * sizes.headDim), Math.fround);
      const out = scope(() => {
        cache.append(
          tensor(
            device,
            given.flatMap((g) => g.k),
            [2, n, sizes.kvHeads, sizes.headDim],
          ),
          tensor(
            device,
            given.flatMap((g) => g.v),
            [2, n, sizes.kvHeads, sizes.valueDim],
          ),
        );
        return cache.attend(tensor(device, q, [2, n, sizes.heads, sizes.headDim]), options);
      });
      model.forEach((sequence, b) => push(sequence, given[b]!.rows));
      const expected = model.flatMap((sequence, b) =>
        modelAttend(sequence, q.slice((b * q.length) / 2, ((b + 1) * q.length) / 2), n, sizes, options),
      );
      expectClose(await out.read(), expected, 2e-5, 2e-5, `${n} tokens after ${cache.tokens - n}`);
      out.dispose();
    }
  }
  expect([...(await cache.lengths.read())]).toEqual(new Array(4).fill(128));
});

// what real GPUs run: rows of a group in one tile, keys in parts; software devices take one row and one part
test.each([
  [4, 3],
  [16, 2],
] as const)(
  'tiles of %i rows and %i parts of the keys give the same as single rows',
  async (rows, splits) => {
    const device = open.baseline;
    const random = new RandomStream(5, 'tiles');
    const [n, tokens] = [3, 150];
    const model = emptySequence(sizes);
    const given = randomTokens(random, tokens, sizes, 'f32');
    push(model, given.rows);
    const q = Array.from(random.normal(n * sizes.heads * sizes.headDim), Math.fround);
    const { out, lse } = scope(() => {
      const counts = zeros(device, [4], { dtype: 'i32' });
      const [stages] = assignStages([], sizes.kvHeads, f32Codec);
      const layout = { batch: 1, ...sizes, pageTokens: 16, capacity: 160 };
      const group = createGroup(device, stages!, layout, counts);
      const [k, v] = [given.k, given.v].map((x) => tensor(device, x, [1, tokens, 2, 8]));
      appendRows(device, group.view, k!, v!, { offset: 0, tokens, lengths: undefined });
      addTokens(device, counts, tensor(device, Uint32Array.of(160, 160)), { batch: 1, maxBatch: 1, kvHeads: 2 }, { tokens, offset: 0 });
      const out = empty(device, [1, n, 4, 8]);
      const lse = empty(device, [1, n, 4]);
      const parts = empty(device, [lse.size * splits, 12]);
      const shared = {
        splits,
        splitKeys: splitKeysOf(tokens, splits),
        padded: false,
        extra: false,
        left: 2 ** 29,
        right: 0,
        sinkTokens: 0,
        pages: undefined,
      };
      attendGroup(device, group, tensor(device, q, [1, n, 4, 8]), parts, {
        ...shared,
        rows,
        tiles: Math.ceil((n * 2) / rows),
        scale: 1 / Math.sqrt(8),
        softcap: undefined,
      });
      runDecodeMerge(device, parts, splits, out, lse);
      return { out, lse };
    });
    expectClose(await out.read(), modelAttend(model, q, n, sizes), 2e-5, 2e-5);
    out.dispose();
    lse.dispose();
  },
  180_000,
);

test('plans fill a large GPU by parts, and leave long pieces of queries to the attention engine', () => {
  const decode = { batch: 1, queries: 1, group: 4, kvHeads: 8, keys: 100_000, headDim: 128, software: false };
  expect(planAttend(decode)).toEqual({ dense: false, rows: 4, tiles: 1, splits: 64 });
  expect(planAttend({ ...decode, keys: 300 })).toEqual({ dense: false, rows: 4, tiles: 1, splits: 2 });
  expect(planAttend({ ...decode, batch: 64 }).splits).toBe(1);
  expect(planAttend({ ...decode, software: true })).toEqual({ dense: false, rows: 1, tiles: 4, splits: 1 });
  expect(planAttend({ ...decode, queries: 5 }).dense).toBe(true);
  expect(planAttend({ ...decode, group: 20 })).toMatchObject({ dense: false, rows: 16, tiles: 2 });
  expect(splitKeysOf(100_000, 64)).toBe(1600);
  expect(splitKeysOf(0, 1)).toBe(64);
});

test('chosen pages are the only ones that are read, each head its own', async () => {
  const device = open.baseline;
  const random = new RandomStream(8, 'pages');
  const [tokens, pageTokens] = [27, 4];
  const given = randomTokens(random, tokens, sizes, 'f32');
  const unused = 0xffffffff;
  const lists = [
    [6, 0, unused],
    [3, unused, 5],
  ];
  const model = lists.map((list, head) => given.rows.map((row) => row[head]!).filter((_, t) => list.includes(Math.floor(t / pageTokens))));
  const q = Array.from(random.normal(sizes.heads * sizes.headDim), Math.fround);
  using cache = createKvCache(device, { batch: 1, ...sizes, capacity: 40, dtype: 'f32', pageTokens });
  const out = scope(() => {
    cache.append(tensor(device, given.k, [1, tokens, 2, 8]), tensor(device, given.v, [1, tokens, 2, 8]));
    return cache.attend(tensor(device, q, [1, 1, 4, 8]), { pages: tensor(device, Uint32Array.from(lists.flat()), [1, 2, 3]) });
  });
  expectClose(await out.read(), modelAttend(model, q, 1, { ...sizes }, { causal: false }), 2e-5, 2e-5);
  out.dispose();
});

test('every tile that is planned fits the workgroup memory of a baseline device', () => {
  for (const headDim of [1, 40, 64, 80, 128, 132, 256]) {
    for (const group of [1, 4, 7, 16]) {
      const { rows } = planAttend({ batch: 1, queries: 1, group, kvHeads: 1, keys: 100, headDim, software: false });
      const spec = { keys: 'f32', values: 'f32', headDim, valueDim: headDim, rows, extra: true, softcap: true, chosen: true };
      expect(workgroupBytes(attendText(f32Codec, f32Codec, spec)), `${headDim} x ${rows}`).toBeLessThanOrEqual(16_384);
    }
  }
});

test('the logsumexp is that of the scores, and minus infinity for padding', async () => {
  const device = open.baseline;
  using cache = createKvCache(device, { batch: 2, kvHeads: 1, headDim: 4, capacity: 8, dtype: 'f32' });
  const { out, lse } = scope(() => {
    const k = tensor(device, [1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], [2, 2, 1, 4]);
    cache.append(k, k, { lengths: tensor(device, Int32Array.of(2, 1)) });
    return cache.attendWithLse(tensor(device, new Array<number>(16).fill(2), [2, 2, 1, 4]));
  });
  const values = [...(await lse.read())];
  expectClose(values.slice(0, 3), [1, Math.log(Math.E + Math.E ** 2), 1], 1e-6, 1e-6);
  expect(values[3]).toBe(-Infinity);
  expect([...(await out.read())].slice(12)).toEqual([0, 0, 0, 0]);
  out.dispose();
  lse.dispose();
});

test('1,000 steps leave the same live bytes, and the report is the sum of the buffers', async () => {
  const device = open.baseline;
  const staged: [string, readonly KvStage[]][] = [
    ['f16 rows', []],
    ['streaming heads with codes', [razorHeads([false, true]), razorTokens(2, 30), compensation(), codes(rowCodes({ bits: 4, group: 8 }))]],
  ];
  for (const [what, stages] of staged) {
    const before = device.memory();
    const cache = createKvCache(device, { batch: 1, kvHeads: 2, headDim: 8, capacity: 1024, dtype: 'f16', stages });
    expect(deviceBytes(cache.bytes()), what).toBe(device.memory().liveBytes - before.liveBytes);
    expect(cache.bytes().payload, what).toBe(
      stages.length === 0 ? 2 * 2 * 1024 * 8 * 2 : (2 * (1024 + 32) * 8) / 2 + extraRowFloats(8, 8) * 4,
    );
    const x = zeros(device, [1, 1, 2, 8]);
    let live = 0;
    for (let step = 0; step < 1000; step++) {
      scope(() => {
        cache.append(x, x);
        cache.attend(x);
      });
      if (step === 0) live = device.memory().liveBytes;
      else if (device.memory().liveBytes !== live)
        expect.fail(`${what}: ${device.memory().liveBytes} live bytes after step ${step}, ${live} at first`);
    }
    await device.idle();
    expect(deviceBytes(cache.bytes()), what).toBe(device.memory().liveBytes - before.liveBytes - x.storage.bytes);
    cache.dispose();
    cache.dispose();
    x.dispose();
    expect(device.memory().liveBytes, what).toBe(before.liveBytes);
  }
});

test('a scope keeps a cache that it returns and frees one that it does not', () => {
  const device = open.baseline;
  const options = { batch: 1, kvHeads: 1, headDim: 4, capacity: 4, dtype: 'f32' } as const;
  const before = device.memory().tensors;
  const cache = scope(() => {
    createKvCache(device, options);
    return createKvCache(device, options);
  });
  scope(() => cache.append(zeros(device, [1, 1, 1, 4]), zeros(device, [1, 1, 1, 4])));
  cache.dispose();
  expect(device.memory().tensors).toBe(before);
});

test('what does not fit says what was given, what was expected and what to do', async () => {
  const device = open.baseline;
  const options = { batch: 1, kvHeads: 2, headDim: 8, capacity: 10, dtype: 'f32' } as const;
  const code = (c: string): object => expect.objectContaining({ code: c });
  expect(() => createKvCache(device, { ...options, capacity: 0 })).toThrow(code('INVALID_ARGUMENT'));
  expect(() => createKvCache(device, { ...options, headDim: 300 })).toThrow(code('SHAPE_MISMATCH'));
  expect(() => createKvCache(device, { ...options, dtype: 'i32' })).toThrow(code('DTYPE_MISMATCH'));
  expect(() => createKvCache(device, { ...options, headDim: 256, capacity: 2 ** 20 })).toThrow(
    /heads need a binding of .*lower capacity or batch/,
  );
  expect(() => createKvCache(device, { ...options, stages: [razorHeads([true, false]), razorHeads([false, true])] })).toThrow(
    /one heads stage/,
  );
  expect(() => createKvCache(device, { ...options, stages: [razorHeads([false])] })).toThrow(/each of the 2 KV heads/);
  expect(() => createKvCache(device, { ...options, stages: [razorTokens(1, 4)] })).toThrow(/head group "streaming"; the groups are "all"/);
  expect(() => createKvCache(device, { ...options, stages: [razorHeads([true, false]), compensation()] })).toThrow(/no tokens stage/);
  expect(() => rowCodes({ bits: 4, group: 12 })).toThrow(/multiple of 8/);

  using other = await openDevice().then((d) => Object.assign(d, { [Symbol.dispose]: () => void d.close() }));
  using cache = createKvCache(device, options);
  const x = zeros(device, [1, 6, 2, 8]);
  const foreign = zeros(other, [1, 6, 2, 8]);
  cache.append(x, x);
  expect(() => cache.append(x, x)).toThrow(/6 tokens after 6 exceed the capacity of 10.*truncate/);
  expect(() => cache.append(foreign, foreign)).toThrow(code('INVALID_ARGUMENT'));
  scope(() => {
    expect(() => cache.append(zeros(device, [1, 1, 3, 8]), x)).toThrow(code('SHAPE_MISMATCH'));
    expect(() => cache.append(zeros(device, [1, 1, 2, 8], { dtype: 'i32' }), x)).toThrow(code('DTYPE_MISMATCH'));
    expect(() => cache.append(x, x, { lengths: zeros(device, [2], { dtype: 'i32' }) })).toThrow(/lengths is .*must be \[1\] i32/);
    expect(() => cache.attend(zeros(device, [1, 7, 2, 8]))).toThrow(/7 tokens, the cache has seen 6/);
    expect(() => cache.attend(zeros(device, [1, 1, 3, 8]))).toThrow(/3 heads, the cache 2/);
    expect(() => cache.select(zeros(device, [2], { dtype: 'u32' }))).toThrow(code('LIMIT_EXCEEDED'));
    expect(() => cache.select(zeros(device, [1]))).toThrow(code('SHAPE_MISMATCH'));
  });
  expect(() => cache.attend(x, { window: 0 })).toThrow(code('INVALID_ARGUMENT'));
  expect(() => cache.attend(x, { window: 2, causal: false })).toThrow(/counts back/);
  expect(() => cache.attend(x, { softcap: -1 })).toThrow(code('INVALID_ARGUMENT'));
  expect(() => cache.attend(x, { scale: Number.NaN })).toThrow(code('INVALID_ARGUMENT'));
  expect(() => cache.truncate(7)).toThrow(code('INVALID_ARGUMENT'));
  expect(() => valueAndGrad((p: { q: typeof x }) => cache.attend(p.q))({ q: x })).toThrow(/being differentiated/);
  expect(() => valueAndGrad((p: { k: typeof x }) => (cache.append(p.k, x), p.k))({ k: x })).toThrow(/being differentiated/);
  foreign.dispose();
  x.dispose();
  cache.dispose();
  expect(() => cache.bytes()).toThrow(code('DISPOSED'));
});

test('rows that were overwritten are not given back, and a snapshot of another cache is refused', async () => {
  const device = open.baseline;
  const stages = [razorHeads([false]), razorTokens(1, 4), compensation()];
  const options = { batch: 1, kvHeads: 1, headDim: 4, capacity: 20, dtype: 'f32' } as const;
  using cache = createKvCache(device, { ...options, stages });
  using dense = createKvCache(device, options);
  const x = tensor(
    device,
    Float32Array.from({ length: 24 }, (_, i) => i / 10),
    [1, 6, 1, 4],
  );
  const first = x.view({ shape: [1, 1, 1, 4] });
  cache.append(x, x);
  expect(() => cache.truncate(5)).toThrow(/overwritten rows/);
  expect(() => cache.attend(x)).toThrow(/dropped rows.*attend a prompt with attention\(\)/);
  const before = scope(() => cache.attend(first));
  const snapshot = await cache.snapshot();
  expect(() => dense.restore(snapshot)).toThrow(/the snapshot's groups is/);
  const cut = { ...snapshot, arrays: { ...snapshot.arrays, '0.keys': new Uint8Array(3) } };
  expect(() => cache.restore(cut)).toThrow(/array "0.keys" has 3 bytes/);
  cache.truncate(0);
  scope(() => cache.append(first, first));
  const fresh = scope(() => cache.attend(first));
  expectClose(await fresh.read(), [0, 0.1, 0.2, 0.3], 1e-6, 1e-6);
  cache.restore(snapshot);
  const after = scope(() => cache.attend(first));
  expect(await after.read()).toEqual(await before.read());
  for (const t of [x, first, before, fresh, after]) t.dispose();
});
