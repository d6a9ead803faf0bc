import fc from 'fast-check';
import { expect, test } from 'vitest';
import { batchAt, batchStarts, type BatchOptions } from '../src/batches.js';
import type { Corpus } from '../src/text/corpus.js';

/** Bytes that tell their own position, in parts of the given lengths. */
function corpusOf(lengths: readonly number[]): Corpus {
  let end = 0;
  const parts = lengths.map((length, index) => {
    const start = end;
    end += length;
    return { name: `part${index}`, start, end };
  });
  return { bytes: Uint8Array.from({ length: end }, (_, i) => i % 251), parts };
}

const options: BatchOptions = { batch: 8, context: 16, seed: 7 };

test('a batch is a function of seed and step alone', () => {
  const corpus = corpusOf([500, 300]);
  const later = batchAt(corpus, options, 41);
  for (let step = 0; step < 41; step++) batchAt(corpus, options, step);
  expect(batchAt(corpus, options, 41)).toEqual(later);
  expect(batchStarts(corpus, options, 42)).not.toEqual(batchStarts(corpus, options, 41));
  expect(batchStarts(corpus, { ...options, seed: 8 }, 41)).not.toEqual(batchStarts(corpus, options, 41));
});

test('the sequences of seed 7 never change', () => {
  expect([...batchStarts(corpusOf([500, 300]), options, 0)]).toMatchInlineSnapshot(`
    [
      740,
      536,
      95,
      58,
      585,
      262,
      769,
      295,
    ]
  `);
});

test('targets are the bytes that follow, and no sequence leaves its part', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 17, max: 60 }), { minLength: 1, maxLength: 4 }),
      fc.nat(2 ** 32 - 1),
      fc.nat(10_000),
      (lengths, seed, step) => {
        const corpus = corpusOf(lengths);
        const { inputs, targets } = batchAt(corpus, { ...options, seed }, step);
        batchStarts(corpus, { ...options, seed }, step).forEach((start, row) => {
          expect([...inputs.subarray(row * 16, row * 16 + 16)]).toEqual([...corpus.bytes.subarray(start, start + 16)]);
          expect([...targets.subarray(row * 16, row * 16 + 16)]).toEqual([...corpus.bytes.subarray(start + 1, start + 17)]);
          const part = corpus.parts.find((candidate) => start >= candidate.start && start < candidate.end);
          expect(start + 17).toBeLessThanOrEqual(part?.end ?? 0);
        });
      },
    ),
    { numRuns: 50, seed: 1 },
  );
});

test('a part as long as one sequence and its target has one place for it', () => {
  expect([...batchStarts(corpusOf([17]), options, 3)]).toEqual(Array.from({ length: 8 }, () => 0));
});

test('every place is drawn, the first and the last too', () => {
  const seen = new Set<number>();
  for (let step = 0; step < 60; step++) for (const start of batchStarts(corpusOf([36]), options, step)) seen.add(start);
  expect([...seen].sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i));
});

test('parts are drawn by length, or by the shares that are given', () => {
  const corpus = corpusOf([9000, 1000, 1000]);
  const drawn = (shares?: Record<string, number>): number[] => {
    const counts = [0, 0, 0];
    for (const start of batchStarts(corpus, { ...options, batch: 4000, ...(shares && { shares }) }, 0)) {
      const index = corpus.parts.findIndex(({ end }) => start < end);
      counts[index] = (counts[index] ?? 0) + 1 / 4000;
    }
    return counts;
  };
  const expectAbout = (counts: number[], expected: number[]): void =>
    expected.forEach((share, i) => expect(counts[i]).toBeCloseTo(share, 1));
  expectAbout(drawn(), [9 / 11, 1 / 11, 1 / 11]);
  expectAbout(drawn({ part1: 0.6 }), [0.36, 0.6, 0.04]);
  expect(drawn({ part1: 0 })[1]).toBe(0);
});

test('what cannot be drawn is refused with the lengths', () => {
  const corpus = corpusOf([500, 16]);
  expect(() => batchStarts(corpus, options, 0)).toThrow('part "part1" has 16 bytes; a sequence of 16 tokens and its last target need 17');
  expect(() => batchStarts(corpus, { ...options, shares: { novel: 0.5 } }, 0)).toThrow('shares name "novel", the corpus has part0, part1');
  expect(() => batchStarts(corpus, { ...options, shares: { part0: 0.5, part1: 0.2 } }, 0)).toThrow('shares sum to 0.7');
});
