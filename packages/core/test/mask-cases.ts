import fc from 'fast-check';
import { expect } from 'vitest';
import type { AttentionLengths, Mask, Run, TileSizes } from '../src/attention/mask/index.js';

export const ids = (spans: readonly number[]): Int32Array =>
  Int32Array.from(spans.flatMap((length, id) => Array.from({ length }, () => id)));
export const DOCUMENTS: Int32Array = ids([7, 1, 13, 9, 4, 16]);

type Pair = (i: number, j: number) => boolean;

/** Every fact of a list of runs against single pairs; row and column are in rows of the call, not positions. */
function expectSound(runs: Run[], tile: number, own: number, other: number, ownLength: number, otherLength: number, sees: Pair): void {
  let at = 0;
  const kind = new Map<number, 'full' | 'partial'>();
  for (const [first, end, what] of runs) {
    expect(first).toBeGreaterThanOrEqual(at);
    expect(end).toBeGreaterThan(first);
    at = end;
    for (let t = first; t < end; t++) kind.set(t, what);
  }
  expect(at).toBeLessThanOrEqual(Math.ceil(otherLength / other));
  const low = tile * own;
  const high = Math.min(low + own, ownLength);
  for (let t = 0; t < Math.ceil(otherLength / other); t++) {
    const end = Math.min((t + 1) * other, otherLength);
    const what = kind.get(t);
    if (what === 'full') {
      expect(high - low).toBe(own);
      expect(end - t * other).toBe(other);
    }
    if (what === 'partial') continue;
    for (let i = low; i < high; i++)
      for (let j = t * other; j < end; j++)
        if (sees(i, j) !== (what === 'full')) throw new Error(`pair ${i}, ${j} in a ${what ?? 'empty'} tile`);
  }
}

/** Runs of all tiles, both ways, against single pairs. */
export function expectSoundMask(mask: Mask, tiles: TileSizes, lengths: AttentionLengths, head = 0, batch = 0): void {
  const { queries, keys, offset = keys - queries } = lengths;
  for (let t = 0; t < Math.ceil(queries / tiles.query); t++) {
    expectSound(mask.runs(head, t, tiles, lengths, batch), t, tiles.query, tiles.key, queries, keys, (i, j) =>
      mask.visible(batch, head, i + offset, j),
    );
  }
  for (let t = 0; t < Math.ceil(keys / tiles.key); t++) {
    expectSound(mask.transposedRuns(head, t, tiles, lengths, batch), t, tiles.key, tiles.query, keys, queries, (j, i) =>
      mask.visible(batch, head, i + offset, j),
    );
  }
}

/** Visible pairs counted one by one. */
export function bruteArea(mask: Mask, { queries, keys, offset = keys - queries }: AttentionLengths, head = 0, batch = 0): number {
  let pairs = 0;
  for (let i = 0; i < queries; i++) for (let j = 0; j < keys; j++) if (mask.visible(batch, head, i + offset, j)) pairs++;
  return pairs;
}

export const tiles: fc.Arbitrary<TileSizes> = fc.record({ query: fc.integer({ min: 1, max: 19 }), key: fc.integer({ min: 1, max: 19 }) });
export const shape: fc.Arbitrary<AttentionLengths> = fc.record({
  queries: fc.integer({ min: 1, max: 50 }),
  keys: fc.integer({ min: 1, max: 50 }),
});
export const shapeWithOffset: fc.Arbitrary<AttentionLengths> = fc.oneof(
  shape,
  fc.record({ queries: fc.integer({ min: 1, max: 50 }), keys: fc.integer({ min: 1, max: 50 }), offset: fc.integer({ min: -20, max: 40 }) }),
);
