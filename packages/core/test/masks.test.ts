import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  blockCausalDocument,
  causal,
  causalBlockwise,
  causalDocument,
  document,
  full,
  globalSlidingWindow,
  prefixLm,
  prefixLmDocument,
  sharedQuestion,
  slidingWindow,
  uniformBlockSparse,
  variableBlockSparse,
} from '../src/attention/mask/index.js';
import type { Mask, TileSizes } from '../src/attention/mask/index.js';
import { DOCUMENTS, bruteArea, expectSoundMask, ids, shapeWithOffset, tiles } from './mask-cases.js';
type Pair = (i: number, j: number) => boolean;
/** A mask with the plain predicate of its definition. */
interface Case {
  readonly name: string;
  readonly mask: Mask;
  readonly pair: Pair;
}

const doc = (t: number): number => DOCUMENTS[t]!;
const start = (t: number): number => DOCUMENTS.indexOf(doc(t));

/** The masks of LongCA-bench, each beside the predicate of its sheet, at 50 tokens. */
function benchMasks(w: number): Case[] {
  const block = (i: number, j: number, mask: Mask): boolean => mask.visible(0, 0, i, j);
  const uniformBlocks = uniformBlockSparse({ queries: 50, keys: 50, blockSize: 8, ratio: 0.3, seed: w });
  const variableBlocks = variableBlockSparse({ queries: 50, keys: 50, meanBlock: 7, minBlock: 3, ratio: 0.4, seed: w });
  return [
    { name: 'full', mask: full(), pair: () => true },
    { name: 'causal', mask: causal(), pair: (i, j) => j <= i },
    { name: 'full sliding window', mask: slidingWindow({ window: 2 * w + 1 }), pair: (i, j) => Math.abs(i - j) <= w },
    { name: 'causal sliding window', mask: slidingWindow({ window: w + 1, causal: true }), pair: (i, j) => i - j >= 0 && i - j <= w },
    { name: 'full document', mask: document(DOCUMENTS), pair: (i, j) => doc(i) === doc(j) },
    { name: 'causal document', mask: causalDocument(DOCUMENTS), pair: (i, j) => doc(i) === doc(j) && j <= i },
    {
      name: 'shared question',
      mask: sharedQuestion(DOCUMENTS),
      pair: (i, j) => (doc(i) === doc(j) && j <= i) || (doc(j) === 0 && doc(i) !== 0),
    },
    { name: 'global sliding window', mask: globalSlidingWindow(w), pair: (i, j) => Math.abs(i - j) <= w || i < 2 * w || j < 2 * w },
    {
      name: 'causal blockwise',
      mask: causalBlockwise(DOCUMENTS),
      pair: (i, j) => (doc(i) === doc(j) && j <= i) || (doc(i) === 5 && doc(j) !== 5),
    },
    { name: 'prefix-LM causal', mask: prefixLm(3 * w), pair: (i, j) => j <= i || j < 3 * w },
    { name: 'prefix-LM document', mask: prefixLmDocument(DOCUMENTS, w), pair: (i, j) => doc(i) === doc(j) && (j <= i || j - start(j) < w) },
    {
      name: 'block causal document',
      mask: blockCausalDocument(DOCUMENTS, 4),
      pair: (i, j) => doc(i) === doc(j) && j < (Math.floor(i / 4) + 1) * 4,
    },
    { name: 'uniform block-sparse', mask: uniformBlocks, pair: (i, j) => block(i, j, uniformBlocks) },
    { name: 'variable block-sparse', mask: variableBlocks, pair: (i, j) => block(i, j, variableBlocks) },
  ];
}

describe('the masks of the benchmark', () => {
  for (const { name, mask, pair } of benchMasks(4)) {
    test(`${name}: the predicate is that of the sheet`, () => {
      for (let i = 0; i < 50; i++)
        for (let j = 0; j < 50; j++) if (mask.visible(0, 0, i, j) !== pair(i, j)) throw new Error(`pair ${i}, ${j}`);
    });

    test(`${name}: runs hold for all tiles, lengths and offsets, both ways`, () => {
      fc.assert(
        fc.property(tiles, shapeWithOffset, (edges, sizes) => expectSoundMask(mask, edges, sizes)),
        { seed: 11, numRuns: 40 },
      );
    });

    test(`${name}: the area is the number of visible pairs`, () => {
      fc.assert(
        fc.property(shapeWithOffset, (sizes) => {
          expect(mask.area(sizes)).toBe(bruteArea(mask, sizes));
        }),
        { seed: 12, numRuns: 30 },
      );
    });
  }

  test('areas have their closed forms', () => {
    const s = 4096;
    const square = { queries: s, keys: s };
    expect(causal().area(square)).toBe((s * (s + 1)) / 2);
    expect(causal().area({ queries: 100, keys: 300 })).toBe(((2 * 300 - 100 + 1) * 100) / 2);
    expect(slidingWindow({ window: 1025, causal: true }).area(square)).toBe((1025 * 1026) / 2 + (s - 1025) * 1025);
    expect(globalSlidingWindow(4).area({ queries: 24, keys: 24 })).toBe(444);
  });
});

describe('runs are tight', () => {
  const classify3 = (mask: Mask, edges: TileSizes, s: number): { listed: number; wanted: number; full: number; wantedFull: number } => {
    let [listed, wanted, fullTiles, wantedFull] = [0, 0, 0, 0];
    for (let t = 0; t * edges.query < s; t++) {
      for (const [first, end, kind] of mask.runs(0, t, edges, { queries: s, keys: s })) {
        listed += end - first;
        if (kind === 'full') fullTiles += end - first;
      }
      for (let c = 0; c * edges.key < s; c++) {
        let seen = 0;
        for (let i = 0; i < edges.query; i++)
          for (let j = 0; j < edges.key; j++) if (mask.visible(0, 0, t * edges.query + i, c * edges.key + j)) seen++;
        if (seen > 0) wanted++;
        if (seen === edges.query * edges.key) wantedFull++;
      }
    }
    return { listed, wanted, full: fullTiles, wantedFull };
  };

  for (const { name, mask } of benchMasks(4)) {
    test(`${name}: no empty tile is listed, and full ones are known as such`, () => {
      for (const edges of [
        { query: 8, key: 4 },
        { query: 2, key: 6 },
      ]) {
        const { listed, wanted, full: fullTiles, wantedFull } = classify3(mask, edges, 48);
        // A query tile across the end of the question sees it whole, half by one rule and half by the other: no single rule covers that tile.
        const straddling = name === 'shared question' ? 1 : 0;
        expect(listed).toBe(wanted);
        expect(wantedFull - fullTiles).toBeLessThanOrEqual(straddling);
        expect(fullTiles).toBeLessThanOrEqual(wantedFull);
      }
    });
  }

  test('the number of runs a row does not grow with the length', () => {
    const s = 1 << 20;
    const edges = { query: 64, key: 64 };
    const documents = ids([300_000, 200_000, 548_576]);
    const masks = [
      full(),
      causal(),
      slidingWindow({ window: 1025, causal: true }),
      slidingWindow({ window: 2049 }),
      globalSlidingWindow(1000),
      prefixLm(5000),
      causalDocument(documents),
      sharedQuestion(documents),
      causalBlockwise(documents),
      prefixLmDocument(documents, 100),
      blockCausalDocument(documents, 1024),
    ];
    for (const mask of masks) {
      for (const t of [0, 5000, 9000, 16_383]) {
        expect(mask.runs(0, t, edges, { queries: s, keys: s }).length).toBeLessThanOrEqual(6);
        expect(mask.transposedRuns(0, t, edges, { queries: s, keys: s }).length).toBeLessThanOrEqual(6);
      }
    }
    expect(causal().runs(0, 100, edges, { queries: s, keys: s })).toEqual([
      [0, 100, 'full'],
      [100, 101, 'partial'],
    ]);
  });
});
