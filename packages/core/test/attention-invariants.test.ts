import fc from 'fast-check';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, full, openDevice, scope, type Tensor, tensor } from '../src/index.js';
import { attention, attentionWithLse, blockCausal, causal, mergeAttention, sinks, slidingWindow } from '../src/attention/index.js';
import { vjp } from '../src/internal.js';
import { RandomStream } from '../src/random/stream.js';
import { expectClose, f64, type F64Array, randomArray, toFloat32 } from '../src/testing/index.js';
import { referenceAttention, referenceAttentionGradients } from '../src/attention/reference.js';
import { checkAttention } from './attention-cases.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const upload = (a: F64Array): Tensor => tensor(device, toFloat32(a), a.shape);
const causalPair = (_b: number, _h: number, q: number, kv: number): boolean => kv <= q;

test('equal logits give the mean of the visible values, whatever tile they lie in', async () => {
  const T = 150;
  using zero = tensor(device, new Float32Array(T * 8), [1, T, 1, 8]);
  using index = tensor(
    device,
    Float32Array.from({ length: T * 8 }, (_, i) => Math.floor(i / 8)),
    [1, T, 1, 8],
  );
  using mean = attention(zero, zero, index);
  using prefix = attention(zero, zero, index, { causal: true });
  expectClose('all', { shape: mean.shape, values: await mean.read() }, f64([1, T, 1, 8], new Float64Array(T * 8).fill((T - 1) / 2)));
  const rising = Array.from({ length: T * 8 }, (_, i) => Math.floor(i / 8) / 2);
  expectClose('causal', { shape: prefix.shape, values: await prefix.read() }, f64([1, T, 1, 8], rising));
});

test('memory beyond the tails is never used: freed buffers full of NaN change nothing', async () => {
  for (const elements of [64, 256, 1024, 4096, 16384]) full(device, [elements], Number.NaN).dispose();
  await checkAttention(device, {
    shape: { Tq: 21, Tk: 37, H: 2, Hkv: 1, D: 16 },
    options: () => ({ causal: true }),
    reference: () => ({ mask: causalPair }),
  });
  for (const elements of [64, 256, 1024, 4096, 16384]) full(device, [elements], Number.NaN).dispose();
  await checkAttention(device, { shape: { Tq: 21, Tk: 37, H: 2, Hkv: 1, D: 7, Dv: 5 } });
});

test('views with outer strides are read as they lie', async () => {
  const packed = randomArray(new RandomStream(2), [1, 18, 3, 2, 8]);
  using all = upload(packed);
  const part = (i: number): Tensor => all.view({ shape: [1, 18, 2, 8], strides: [18 * 48, 48, 8, 1], offset: i * 16 });
  const twin = (i: number): F64Array =>
    f64(
      [1, 18, 2, 8],
      Array.from({ length: 18 * 16 }, (_, n) => packed.values[Math.floor(n / 16) * 48 + i * 16 + (n % 16)] as number),
    );
  const [q, k, v] = [part(0), part(1), part(2)];
  using out = attention(q, k, v);
  expectClose('out', { shape: out.shape, values: await out.read() }, referenceAttention(twin(0), twin(1), twin(2)).out);
  for (const t of [q, k, v]) t.dispose();
});

test('one query over many keys is split over workgroups, with lengths on the device and grouped heads', () => {
  const lengths = tensor(device, Int32Array.from([600, 301]));
  return checkAttention(device, {
    shape: { B: 2, Tq: 1, Tk: 600, H: 4, Hkv: 2, D: 8 },
    cotangents: 'none',
    options: () => ({ lengths }),
    reference: () => ({ lengths: [600, 301] }),
  }).finally(() => lengths.dispose());
});

test('draft tokens share the tile of their KV head, each at its own position', () =>
  checkAttention(device, {
    shape: { Tq: 3, Tk: 300, H: 4, Hkv: 2, D: 8 },
    cotangents: 'none',
    options: () => ({ causal: true }),
    reference: () => ({ mask: causalPair }),
  }));

test('few keys under many queries are swept in parts that add up', () =>
  checkAttention(device, { shape: { Tq: 2100, Tk: 5, D: 4 }, cotangents: 'out', gradientTolerance: { atol: 2e-3, rtol: 1e-3 } }));

test('sinks that every query sees, under a window, are swept in parts beside the rest: the same gradients as by a list', async () => {
  const random = new RandomStream(11);
  const shape = [1, 2100, 2, 4];
  const arrays = [
    randomArray(random, shape),
    randomArray(random, shape),
    randomArray(random, shape),
    randomArray(random, shape),
    randomArray(random, [2100]),
  ];
  const [q, k, v, dOut, keyBias] = arrays.map(upload) as [Tensor, Tensor, Tensor, Tensor, Tensor];
  const mask = slidingWindow({ window: 6, causal: true }).or(sinks(3).and(causal()));
  const sums: Float32Array[][] = [];
  for (const options of [{ causal: true, window: 6, sinkTokens: 3 }, { mask }]) {
    const { outputs, grads } = vjp(() => attentionWithLse(q, k, v, { ...options, keyBias }).out, [q, k, v, keyBias], [dOut]);
    sums.push((await Promise.all([...outputs, ...grads].map((t) => t.read()))) as Float32Array[]);
    for (const t of [...outputs, ...grads]) t.dispose();
  }
  for (const [n, inParts] of sums[0]!.entries())
    expectClose(
      ['out', 'dq', 'dk', 'dv', 'dBias'][n] as string,
      { shape: [inParts.length], values: inParts },
      { shape: [inParts.length], values: sums[1]![n] as Float32Array },
      { atol: 2e-4, rtol: 2e-4 },
    );
  for (const t of [q, k, v, dOut, keyBias]) t.dispose();
});

test('merging the halves of the keys gives attention over all of them, forward and backward, in either order', async () => {
  const random = new RandomStream(7);
  const [q, k, v] = [randomArray(random, [1, 9, 2, 8]), randomArray(random, [1, 24, 2, 8]), randomArray(random, [1, 24, 2, 8])];
  // the second half sees nothing at first: rows that a part does not see do not count
  const reference = { queryOffset: 10, mask: causalPair };
  const expected = referenceAttention(q, k, v, reference);
  const [dOut, dLse] = [randomArray(random, expected.out.shape), randomArray(random, expected.lse.shape)];
  const gradients = referenceAttentionGradients(q, k, v, { out: dOut, lse: dLse }, reference);
  const [tq, tk, tv, tOut, tLse] = [q, k, v, dOut, dLse].map(upload) as [Tensor, Tensor, Tensor, Tensor, Tensor];
  const first = (a: F64Array): F64Array => f64([1, 13, 2, 8], a.values.slice(0, 13 * 16));
  const second = (a: F64Array): F64Array => f64([1, 11, 2, 8], a.values.slice(13 * 16));
  const halves = [upload(first(k)), upload(first(v)), upload(second(k)), upload(second(v))] as [Tensor, Tensor, Tensor, Tensor];
  for (const swapped of [false, true]) {
    const { outputs, grads } = vjp(
      () => {
        const parts = [
          attentionWithLse(tq, halves[0], halves[1], { causal: true, queryOffset: 10 }),
          attentionWithLse(tq, halves[2], halves[3], { causal: true, queryOffset: -3 }),
        ];
        const { out, lse } = mergeAttention(swapped ? parts.reverse() : parts);
        return [out, lse];
      },
      [tq, ...halves],
      [tOut, tLse],
    );
    const hold = async (name: string, t: Tensor | undefined, want: F64Array): Promise<void> => {
      if (!t) throw new Error(`no ${name}`);
      expectClose(name, { shape: t.shape, values: await t.read() }, want, { atol: 1e-4, rtol: 3e-4 });
    };
    await hold('out', outputs[0], expected.out);
    await hold('lse', outputs[1], expected.lse);
    await hold('dq', grads[0], gradients.q);
    await hold('dk', grads[1], first(gradients.k));
    await hold('dv', grads[4], second(gradients.v));
    for (const t of [...outputs, ...grads]) t.dispose();
  }
  for (const t of [tq, tk, tv, tOut, tLse, ...halves]) t.dispose();
});

test('100 random lengths, batches and windows compile as many kernels as there are tiles', async () => {
  const before = device.pipelines.size;
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 90 }),
      fc.integer({ min: 1, max: 90 }),
      fc.integer({ min: 1, max: 3 }),
      fc.integer({ min: 1, max: 40 }),
      (Tq, Tk, B, window) => {
        scope(() => {
          const q = full(device, [B, Tq, 2, 12], 0.1);
          const k = full(device, [B, Tk, 2, 12], 0.1);
          attentionWithLse(q, k, k, { causal: true, window });
        });
      },
    ),
    { numRuns: 100, seed: 1 },
  );
  await device.idle();
  // tiles of 1, 4 and 16 rows, as decode kernels for up to 16 and as the forward kernel beyond; plus the filling of inputs. A GPU's registers
  // hold more rows: two tiles more
  expect(device.pipelines.size - before).toBeLessThanOrEqual(device.isSoftware ? 5 : 7);
});

test('permuting batch entries and heads permutes the result', async () => {
  const random = new RandomStream(9);
  const shape = [2, 17, 2, 8] as const;
  const [q, k, v] = [randomArray(random, shape), randomArray(random, shape), randomArray(random, shape)];
  const permuted = (a: ArrayLike<number>): Float32Array =>
    Float32Array.from({ length: a.length }, (_, i) => a[(i + a.length / 2) % a.length] as number).map(
      (_x, i, own) => own[i - (i % 16) + ((i + 8) % 16)] as number,
    );
  const run = async (arrays: ArrayLike<number>[]): Promise<Float32Array> => {
    const made = arrays.map((a) => tensor(device, Float32Array.from(a), shape)) as [Tensor, Tensor, Tensor];
    const out = attention(...made, { causal: true });
    const values = (await out.read()) as Float32Array;
    for (const t of [...made, out]) t.dispose();
    return values;
  };
  const straight = await run([q.values, k.values, v.values]);
  const swapped = await run([permuted(q.values), permuted(k.values), permuted(v.values)]);
  expect(swapped).toEqual(permuted(straight));
});

test('no keys at all: rows are zero and their logsumexp is minus infinity; no queries: nothing', async () => {
  using q = full(device, [1, 3, 2, 8], 1);
  using none = full(device, [1, 0, 2, 8], 1);
  const { out, lse } = attentionWithLse(q, none, none);
  expect(Array.from(await out.read())).toEqual(Array(48).fill(0));
  expect(Array.from(await lse.read())).toEqual(Array(6).fill(-Infinity));
  using empty = attention(none, q, q);
  expect(empty.shape).toEqual([1, 0, 2, 8]);
  using masked = attention(none, q, q, { mask: blockCausal(2) });
  expect(masked.shape).toEqual([1, 0, 2, 8]);
  out.dispose();
  lse.dispose();
});
