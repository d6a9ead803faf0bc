import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  byHead,
  causal,
  documentIds,
  documentLengths,
  causalDocument,
  full,
  lengths,
  readRow,
  sinks,
  slidingWindow,
  tileRuns,
  worstCaseRunBytes,
} from '../src/attention/mask/index.js';
import { shape, tiles } from './mask-cases.js';
import type { Mask, Run } from '../src/attention/mask/index.js';

const sorted = (runs: Run[]): Run[] => [
  ...runs.filter(([, , kind]) => kind === 'full'),
  ...runs.filter(([, , kind]) => kind === 'partial'),
];
const size = (runs: Run[], kind: string): number => runs.reduce((a, [first, end, own]) => a + (own === kind ? end - first : 0), 0);

describe('packed runs', () => {
  const masks = fc.oneof(
    fc.constantFrom<Mask>(full(), causal(), lengths(Int32Array.of(3, 40)), causal().and(lengths(Int32Array.of(9, 25)))),
    fc.integer({ min: 1, max: 40 }).map((window) => slidingWindow({ window, causal: true }).or(sinks(2))),
    fc.integer({ min: 1, max: 40 }).map((window) => byHead([0, 1, 1], [causal().not(), slidingWindow({ window })])),
  );

  test('every row reads back as the mask gives it, full runs first', () => {
    fc.assert(
      fc.property(masks, tiles, shape, (mask, edges, sizes) => {
        const packed = tileRuns(mask, { ...sizes, heads: 3, batch: 2, tiles: edges, transposed: true });
        let listed = 0;
        for (let batch = 0; batch < 2; batch++) {
          for (let head = 0; head < 3; head++) {
            for (let t = 0; t < Math.ceil(sizes.queries / edges.query); t++) {
              const runs = mask.runs(head, t, edges, sizes, batch);
              expect(readRow(packed.arena, 'forward', batch, head, t)).toEqual(sorted(runs));
              if (batch < packed.storedBatch && head < packed.storedHeads) listed += size(runs, 'full') + size(runs, 'partial');
            }
            for (let t = 0; t < Math.ceil(sizes.keys / edges.key); t++) {
              expect(readRow(packed.arena, 'transposed', batch, head, t)).toEqual(
                sorted(mask.transposedRuns(head, t, edges, sizes, batch)),
              );
            }
          }
        }
        expect(packed.forward.fullTiles + packed.forward.partialTiles).toBe(listed);
        expect(packed.bytes).toBeLessThanOrEqual(
          worstCaseRunBytes({ ...sizes, heads: 3, batch: 2, tiles: edges, transposed: true }, mask.perHead, mask.perBatch),
        );
      }),
      { seed: 21, numRuns: 60 },
    );
  });

  test('the layout is the documented one', () => {
    const { arena } = tileRuns(causal(), { queries: 6, keys: 6, heads: 8, batch: 4, tiles: { query: 2, key: 2 } });
    expect([...arena]).toEqual([
      3,
      3,
      1,
      1,
      12,
      0,
      19,
      0,
      2,
      2,
      3,
      0, // header
      0,
      0,
      1,
      2,
      3,
      4,
      5, // first run and first partial run of each row, end
      0,
      1,
      0,
      0x80000001,
      1,
      2,
      0,
      0x80000002,
      2,
      3, // runs
    ]);
  });

  test('a million causal tokens take well under a mebibyte', () => {
    const packed = tileRuns(causal(), {
      queries: 1 << 20,
      keys: 1 << 20,
      heads: 32,
      batch: 1,
      tiles: { query: 64, key: 64 },
      transposed: true,
    });
    expect(packed.bytes).toBeLessThan(2 ** 20);
    expect(packed.forward.longestRow).toBe(16_384);
    expect(packed.forward.fullTiles).toBe((16_384 * 16_383) / 2);
    expect(packed.forward.partialTiles).toBe(16_384);
  });

  test('wrong tiles and missing directions are refused', () => {
    expect(() => tileRuns(full(), { queries: 4, keys: 4, heads: 1, batch: 1, tiles: { query: 0, key: 2 } })).toThrow('the query tile is 0');
    const { arena } = tileRuns(full(), { queries: 4, keys: 4, heads: 1, batch: 1, tiles: { query: 2, key: 2 } });
    expect(() => readRow(arena, 'transposed', 0, 0, 0)).toThrow('no transposed runs');
  });
});

describe('document lengths', () => {
  test('they fill the sequence, and one seed gives one sample', () => {
    for (const name of ['pile', 'prolong-64k', 'prolong-512k', 'synthetic'] as const) {
      const sample = documentLengths(name, 100_000, 42);
      expect(sample.reduce((a, n) => a + n, 0)).toBe(100_000);
      expect(Math.min(...sample)).toBeGreaterThan(0);
      expect(documentLengths(name, 100_000, 42)).toEqual(sample);
      expect(documentLengths(name, 100_000, 43)).not.toEqual(sample);
    }
    expect(documentLengths('pile', 1, 0)).toEqual([1]);
    expect(() => documentLengths('pile', 0, 0)).toThrow('total is 0');
  });

  test('half of the ProLong-64K documents are shorter than about 350 tokens', () => {
    const sample = documentLengths('prolong-64k', 20_000_000, 1).sort((a, b) => a - b);
    expect(sample.length).toBeGreaterThan(10_000);
    const median = sample[sample.length >> 1]!;
    expect(median).toBeGreaterThan(300);
    expect(median).toBeLessThan(430);
    // Shares of the published histogram: .041 up to 64, .501 up to 384 (of weights that add up to 1.0005).
    expect(sample.filter((n) => n <= 64).length / sample.length).toBeCloseTo(0.041, 2);
    expect(sample.filter((n) => n <= 384).length / sample.length).toBeCloseTo(0.501, 2);
  });

  test('at 48K tokens a full-document mask has the density that the bench reports', () => {
    const densities = Array.from({ length: 60 }, (_, seed) =>
      documentLengths('prolong-64k', 49_152, seed).reduce((a, n) => a + (n / 49_152) ** 2, 0),
    ).sort((a, b) => a - b);
    const mean = densities.reduce((a, d) => a + d, 0) / densities.length;
    // The sheet gives median 9 %, mean 20 % over samples.
    expect(mean).toBeGreaterThan(0.12);
    expect(mean).toBeLessThan(0.3);
    expect(densities[30]!).toBeLessThan(mean);
  });

  test('ids name the documents in order', () => {
    expect([...documentIds([2, 1, 3])]).toEqual([0, 0, 1, 2, 2, 2]);
    const mask = causalDocument(documentIds(documentLengths('pile', 4096, 3)));
    const pairs = documentLengths('pile', 4096, 3).reduce((a, n) => a + (n * (n + 1)) / 2, 0);
    expect(mask.area({ queries: 4096, keys: 4096 })).toBe(pairs);
  });
});
