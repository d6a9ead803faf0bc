// Tensors larger than a binding: calls are cut by batch entries, queries and keys.
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type KeyPiece, type PieceProblem, planKeyPieces, planQueryPieces, type QueryPiece } from '../src/attention/pieces.js';
import { attention, type Device, openDevice, type Tensor, tensor, zeros } from '../src/index.js';
import { causal, prefixLm, scoreMod } from '../src/attention/index.js';
import { unbounded } from '../src/attention/problem.js';
import { randomArray } from '../src/testing/index.js';
import { type AttentionCase, checkAttention } from './attention-cases.js';

const million: PieceProblem = {
  batch: 1,
  queries: 2 ** 20,
  keys: 2 ** 20,
  queryOffset: 0,
  band: { left: 1023, right: 0, prefix: 0 },
  queryBytes: 2048,
  keyBytes: 2048,
  partBytes: 4096,
  gradientBytes: 8192,
  bindingBytes: 2 ** 31 - 4,
};

test('a window over a million tokens is two pieces, each with all the keys that it sees', () => {
  expect(planQueryPieces(million)).toEqual([
    { entry: 0, queries: { first: 0, count: 2 ** 19 }, keys: [{ first: 0, count: 2 ** 19 }] },
    { entry: 0, queries: { first: 2 ** 19, count: 2 ** 19 }, keys: [{ first: 2 ** 19 - 1024, count: 2 ** 19 + 1024 }] },
  ]);
});

test('every pair that a band shows lies in one range of one piece, and every range fits a binding', () => {
  const ends = fc.record({
    batch: fc.integer({ min: 1, max: 2 }),
    queries: fc.integer({ min: 1, max: 900 }),
    keys: fc.integer({ min: 1, max: 900 }),
    queryOffset: fc.option(fc.integer({ min: -50, max: 400 }), { nil: undefined }),
    left: fc.constantFrom(0, 7, 100, unbounded),
    right: fc.constantFrom(0, 30, unbounded),
    prefix: fc.constantFrom(0, 3, 150),
    bindingBytes: fc.integer({ min: 26_000, max: 65_536 }),
  });
  fc.assert(
    fc.property(ends, ({ left, right, prefix, ...rest }) => {
      const problem = { ...rest, band: { left, right, prefix }, queryBytes: 48, keyBytes: 40, partBytes: 96, gradientBytes: 96 };
      const { batch, queries, keys, queryOffset: offset, bindingBytes } = problem;
      const seen = (q: number, kv: number): boolean =>
        offset === undefined || (kv <= q + offset + right && (kv >= q + offset - left || kv < prefix));
      const check = (pieces: readonly (QueryPiece | KeyPiece)[]): void => {
        const counts = new Uint8Array(batch * queries * keys);
        for (const piece of pieces) {
          const [qs, ks] = [piece.queries, piece.keys].map((r) => ('first' in r ? [r] : r)) as [QueryPiece['keys'], QueryPiece['keys']];
          for (const q of qs) {
            expect(q.count * problem.queryBytes).toBeLessThanOrEqual(bindingBytes);
            if (ks.length > 1) expect(q.count * ks.length * problem.partBytes).toBeLessThanOrEqual(bindingBytes);
            for (const k of ks) {
              expect(k.count * problem.keyBytes).toBeLessThanOrEqual(bindingBytes);
              for (let i = q.first; i < q.first + q.count; i++)
                for (let j = k.first; j < k.first + k.count; j++) counts[(piece.entry * queries + i) * keys + j]!++;
            }
          }
        }
        for (let e = 0; e < batch; e++)
          for (let i = 0; i < queries; i += 13)
            for (let j = 0; j < keys; j += 7) {
              const times = counts[(e * queries + i) * keys + j] as number;
              if (seen(i, j) ? times !== 1 : times > 1) throw new Error(`pair ${i} ${j} is in ${times} ranges`);
            }
      };
      check(planQueryPieces(problem));
      check(planKeyPieces(problem));
    }),
    { numRuns: 40, seed: 5 },
  );
});

const cases: readonly (readonly [string, AttentionCase, number])[] = [
  [
    'a causal window with leading keys and learned sinks, two entries',
    {
      shape: { B: 2, Tq: 150, H: 2, Hkv: 1, D: 8 },
      options: (make, random) => ({ causal: true, window: 20, sinkTokens: 5, sinks: make(randomArray(random, [2])) }),
      reference: (random) => ({
        sinks: randomArray(random, [2]),
        mask: (_b, _h, q, kv) => kv <= q && (q - kv < 20 || kv < 5),
      }),
    },
    8192,
  ],
  [
    'dense attention with a key bias, keys of several ranges merged',
    {
      shape: { B: 2, Tq: 70, Tk: 200, H: 2, D: 8 },
      options: (make, random) => ({ keyBias: make(randomArray(random, [1, 2, 200])) }),
      reference: (random) => ({ keyBias: randomArray(random, [1, 2, 200]) }),
    },
    9000,
  ],
  [
    'causal attention of f16 with ALiBi, the queries behind the keys',
    {
      shape: { Tq: 200, Tk: 280, H: 2, D: 16 },
      dtype: 'f16',
      options: () => ({ mask: causal(), alibi: [0.5, 0.1] }),
      reference: () => ({ mask: (_b, _h, q, kv) => kv <= q, alibiSlopes: [0.5, 0.1] }),
      tolerance: { atol: 4e-3, rtol: 4e-3 },
      gradientTolerance: { atol: 1e-2, rtol: 1e-2 },
    },
    17_000,
  ],
  ['one query over many keys', { shape: { B: 2, Tq: 1, Tk: 300, H: 2, Hkv: 1, D: 16 }, cotangents: 'none' }, 8192],
  [
    'a score function of places, and lengths',
    {
      shape: { B: 2, Tq: 80, Tk: 140, H: 1, D: 8 },
      options: () => ({
        lengths: lengthsOf([140, 90]),
        scoreMod: scoreMod((s, { b, q, kv }) => s.add(q.mul(kv).f32().mul(1e-4)).add(b.mul(kv).f32().mul(0.01))),
      }),
      reference: () => ({
        lengths: [140, 90],
        scoreMod: { value: (s, b, _h, q, kv) => s + q * kv * 1e-4 + b * kv * 0.01, derivative: () => 1 },
      }),
      cotangents: 'none',
    },
    5000,
  ],
];

let lengthsOf: (lengths: readonly number[]) => Tensor;
const tiers = { baseline: cases.slice(0, 1), matrix: cases };

describe.each(['baseline', 'matrix'] as const)('on tier %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test.each(tiers[tier])('%s', async (_, of, bytes) => {
    const made: Tensor[] = [];
    lengthsOf = (lengths) => {
      made.push(tensor(device, Int32Array.from(lengths)));
      return made[0]!;
    };
    const limit = device.limits.maxStorageBufferBindingSize;
    try {
      device.limits.maxStorageBufferBindingSize = bytes;
      await checkAttention(device, of);
    } finally {
      device.limits.maxStorageBufferBindingSize = limit;
    }
    made.forEach((t) => t.dispose());
  });
});

test('a mask of blocks over tensors larger than a binding is refused with a way out', async () => {
  const device = await openDevice({ tier: 'baseline', nullBackend: true });
  device.limits.maxStorageBufferBindingSize = 4096;
  const x = zeros(device, [1, 200, 1, 8]);
  expect(() => attention(x, x, x, { mask: prefixLm(50) })).toThrow(/200, 1, 8.*4096 bytes.*split the batch/s);
  x.dispose();
  await device.close();
});
