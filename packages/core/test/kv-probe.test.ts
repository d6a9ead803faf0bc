import { expect, test } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { createKvCache, type Device, type KvStage, rowCodes, scope, tensor, type Tensor } from '../src/index.js';
import { goldenFiles, loadGoldenCase } from '../src/testing/index.js';
import { codesRoundTrip, razorReference } from './kv-razor-reference.js';
import { codes, compensation, razorHeads, razorTokens } from './kv-streaming-heads.js';
import { devices, expectClose, testedTiers } from './ops-support.js';

const open = devices();
const cases = new URL('cases/kv/', import.meta.url).pathname;

test.each(testedTiers)("streaming heads over the one cache give the paper's forward in the golden cases on %s", async (tier) => {
  const files = await goldenFiles([cases]);
  expect(files.length).toBe(2);
  for (const file of files) {
    const golden = await loadGoldenCase(file);
    const { sinkTokens, window, scale } = golden.params as { sinkTokens: number; window: number; scale: number };
    const { q, k, v, retrieval } = golden.inputs as Record<string, { shape: readonly number[]; values: Float64Array }>;
    const [batch = 0, tokens = 0, kvHeads = 0, headDim = 0] = k!.shape;
    const stages = [razorHeads(Array.from(retrieval!.values, (x) => x === 1)), razorTokens(sinkTokens, window), compensation()];
    using cache = createKvCache(open[tier], { batch, kvHeads, headDim, capacity: tokens + 1, dtype: 'f32', stages, pageTokens: 8 });
    const out = scope(() => {
      const device = open[tier];
      const [kt, vt] = [k!, v!].map((x) => tensor(device, x.values, x.shape)) as [Tensor, Tensor];
      cache.append(kt, vt);
      return cache.attend(tensor(device, q!.values, q!.shape), { scale });
    });
    expectClose(await out.read(), golden.outputs['o']!.values, golden.tolerance.rtol, golden.tolerance.atol, file);
    out.dispose();
  }
});

interface Run {
  stages: readonly KvStage[];
  tokens: number;
  seed: number;
}

const sizes = { batch: 2, kvHeads: 3, heads: 3, headDim: 20, valueDim: 12 };

/** Random tokens, appended in pieces; the newest attends after each piece. */
async function decode(
  device: Device,
  { stages, tokens, seed }: Run,
): Promise<{ outs: number[][]; q: Float64Array[]; k: Float64Array; v: Float64Array; ends: number[] }> {
  const { batch, kvHeads, heads, headDim, valueDim } = sizes;
  const random = new RandomStream(seed, 'probe');
  const draw = (n: number): Float64Array => Float64Array.from(random.normal(n), Math.fround);
  const k = draw(batch * tokens * kvHeads * headDim);
  const v = draw(batch * tokens * kvHeads * valueDim);
  const outs: number[][] = [];
  const qs: Float64Array[] = [];
  const ends: number[] = [];
  using cache = createKvCache(device, { ...sizes, capacity: tokens, dtype: 'f32', stages, pageTokens: 4 });
  const all = [tensor(device, k, [batch, tokens, kvHeads, headDim]), tensor(device, v, [batch, tokens, kvHeads, valueDim])] as const;
  for (let from = 0, n = 9; from < tokens; from += n, n = Math.min([1, 1, 1, 14, 1][ends.length % 5] ?? 1, tokens - from)) {
    const q = draw(batch * heads * headDim);
    const out = scope(() => {
      const piece = all.map((x) => x.view({ shape: [batch, n, ...x.shape.slice(2)], offset: from * (x.strides[1] ?? 0) })) as [
        Tensor,
        Tensor,
      ];
      cache.append(...piece);
      return cache.attend(tensor(device, q, [batch, 1, heads, headDim]));
    });
    outs.push(Array.from(await out.read()));
    qs.push(q);
    ends.push(from + n);
    out.dispose();
  }
  for (const x of all) x.dispose();
  return { outs, q: qs, k, v, ends };
}

test.each(testedTiers)('every step of streaming heads with 4-bit codes equals the batch formula over decoded rows on %s', async (tier) => {
  const codec = rowCodes({ bits: 4, group: 8 });
  const retrieval = [false, true, false];
  const stages = [razorHeads(retrieval), razorTokens(3, 10), compensation(), codes(codec)];
  const { outs, q, k, v, ends } = await decode(open[tier], { stages, tokens: 61, seed: 4 });
  const decoded = { k: codesRoundTrip(k, sizes.headDim, 4, 8), v: codesRoundTrip(v, sizes.valueDim, 4, 8) };
  ends.forEach((end, step) => {
    const expected = razorReference(q[step]!, decoded.k, decoded.v, { ...sizes, tokens: 61, end, sinks: 3, recent: 10, retrieval });
    expectClose(outs[step]!, expected, 1e-4, 1e-4, `token ${end}`);
  });
});

test('codes at 4 bits differ from exact rows, so that the step above tests them', () => {
  const x = Float64Array.from(new RandomStream(1, 'x').normal(40));
  const y = codesRoundTrip(x, 20, 4, 8);
  expect(Math.max(...x.map((value, i) => Math.abs(value - y[i]!)))).toBeGreaterThan(0.02);
});

test('neutral settings give bit for bit what a cache without stages gives', async () => {
  const dense = await decode(open.baseline, { stages: [], tokens: 40, seed: 9 });
  const all = [true, true, true];
  for (const stages of [
    [razorHeads(all), razorTokens(3, 10), compensation()],
    [razorHeads([false, true, false]), razorTokens(0, Infinity), compensation(false)],
    [razorHeads([false, true, false]), razorTokens(4, 100), compensation()],
  ])
    expect((await decode(open.baseline, { stages, tokens: 40, seed: 9 })).outs).toEqual(dense.outs);
});

test('a padded batch streams each entry as if it were alone', async () => {
  const device = open.baseline;
  const random = new RandomStream(3, 'padded');
  const stages = [razorHeads([false]), razorTokens(2, 5), compensation()];
  const k = Float64Array.from(random.normal(2 * 17 * 4), Math.fround);
  const q = Float64Array.from(random.normal(2 * 4), Math.fround);
  using cache = createKvCache(device, { batch: 2, kvHeads: 1, headDim: 4, capacity: 20, dtype: 'f32', stages });
  const out = scope(() => {
    const rows = tensor(device, k, [2, 17, 1, 4]);
    cache.append(rows, rows, { lengths: tensor(device, Int32Array.of(17, 6)) });
    return cache.attend(tensor(device, q, [2, 1, 1, 4]));
  });
  expect([...(await cache.lengths.read())]).toEqual([7, 6]);
  const size = { batch: 1, kvHeads: 1, heads: 1, headDim: 4, valueDim: 4, tokens: 17, sinks: 2, recent: 5, retrieval: [false] };
  const expected = [17, 6].flatMap((end, b) =>
    razorReference(q.slice(b * 4, b * 4 + 4), k.slice(b * 68, b * 68 + 68), k.slice(b * 68, b * 68 + 68), { ...size, end }),
  );
  expectClose(await out.read(), expected, 1e-5, 1e-5);
  out.dispose();
});
