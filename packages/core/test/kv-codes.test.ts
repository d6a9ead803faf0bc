import { expect, test } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { createKvCache, f16Codec, type KvStage, rowCodes, scope, tensor } from '../src/index.js';
import { rowBytes } from '../src/seams/index.js';
import { goldenFiles, loadGoldenCase } from '../src/testing/index.js';
import { codesRoundTrip } from './kv-razor-reference.js';
import { codes } from './kv-streaming-heads.js';
import { devices, expectClose, testedTiers } from './ops-support.js';

const open = devices();

test.each(testedTiers)('values a token come back as in the golden cases on %s', async (tier) => {
  const files = await goldenFiles([new URL('cases/kv-codes/', import.meta.url).pathname]);
  expect(files.length).toBe(2);
  for (const file of files) {
    const golden = await loadGoldenCase(file);
    const { bits, valueGroup: group } = golden.params as { bits: 2 | 4; valueGroup: number };
    const v = golden.inputs['v']!;
    const [batch = 0, tokens = 0, kvHeads = 0, headDim = 0] = v.shape;
    using cache = createKvCache(open[tier], {
      batch,
      kvHeads,
      headDim,
      capacity: tokens,
      dtype: 'f32',
      stages: [codes(rowCodes({ bits, group }))],
    });
    const rows = scope(() => {
      const x = tensor(open[tier], v.values, v.shape);
      cache.append(x, x);
      return cache.rows();
    });
    // scale and minimum lie in f16 here, in f32 there
    expectClose(await rows.v.read(), golden.outputs['vDequant']!.values, 1e-3, 4e-3, file);
    expect([...(await rows.k.read())]).toEqual([...(await rows.v.read())]);
    rows.k.dispose();
    rows.v.dispose();
  }
});

test.each([
  [2, 16, 20],
  [4, 8, 5],
  [8, 4, 7],
  [8, 32, 64],
] as const)("rows of %i-bit codes in groups of %i, %i elements long, equal the host's round trip", async (bits, group, dim) => {
  const codec = rowCodes({ bits, group });
  const x = Float64Array.from(new RandomStream(bits, 'codes').normal(3 * dim), Math.fround);
  x.fill(0.25, 0, dim);
  using cache = createKvCache(open.baseline, { batch: 1, kvHeads: 1, headDim: dim, capacity: 3, dtype: 'f32', stages: [codes(codec)] });
  const rows = scope(() => {
    const t = tensor(open.baseline, x, [1, 3, 1, dim]);
    cache.append(t, t);
    return cache.rows();
  });
  const got = await rows.k.read();
  expect(Array.from(got.subarray(0, dim))).toEqual(new Array(dim).fill(0.25));
  expectClose(got, codesRoundTrip(x, dim, bits, group), 1e-6, 1e-6);
  rows.k.dispose();
  rows.v.dispose();
});

test('bytes a row: codes and 4 bytes a group', () => {
  expect(rowBytes(rowCodes({ bits: 4 }), 128)).toBe(64 + 16);
  expect(rowBytes(rowCodes({ bits: 2 }), 128)).toBe(32 + 16);
  expect(rowBytes(f16Codec, 128)).toBe(256);
  expect(rowCodes({ bits: 4 })).toBe(rowCodes({ bits: 4, group: 32 }));
});

test('keys and values of one head group may be stored differently', async () => {
  const stage: KvStage = {
    ...codes(rowCodes({ bits: 8, group: 4 })),
    kind: 'codes',
    keys: f16Codec,
    values: rowCodes({ bits: 8, group: 4 }),
  };
  using cache = createKvCache(open.baseline, { batch: 1, kvHeads: 1, headDim: 4, capacity: 3, dtype: 'f32', stages: [stage] });
  const rows = scope(() => {
    const t = tensor(open.baseline, [0, 0.1, 0.2, 1], [1, 1, 1, 4]);
    cache.append(t, t);
    return cache.rows();
  });
  expectClose(await rows.k.read(), [0, 0.1, 0.2, 1], 1e-3, 1e-4);
  expectClose(await rows.v.read(), [0, 0.1, 0.2, 1], 1e-3, 2e-3);
  rows.k.dispose();
  rows.v.dispose();
});
