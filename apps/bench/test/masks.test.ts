import { expect, test } from 'vitest';
import { listedShare, pairsOf } from '../src/entries/masks.js';
import { corpusOf, namedMasks } from '../src/masks.js';

const heads = 2;

test.each([96, 149])('the area of each of the 14 masks is what counting pairs gives, at %i tokens', (tokens) => {
  const masks = namedMasks(tokens, heads);
  expect(masks.map(({ number }) => number)).toEqual(Array.from({ length: 14 }, (_, i) => i + 1));
  for (const named of masks) {
    let pairs = 0;
    for (let head = 0; head < heads; head++)
      for (let q = 0; q < tokens; q++) for (let k = 0; k < tokens; k++) pairs += named.mask.visible(0, head, q, k) ? 1 : 0;
    expect([named.name, pairsOf(named, tokens, heads)]).toEqual([named.name, pairs]);
  }
});

test('the predicates are those of the paper', () => {
  const tokens = 24;
  const of = (name: string): ReturnType<typeof namedMasks>[number] => namedMasks(tokens, 1).find((named) => named.name === name) as never;
  const { mask, parameters } = of('full-sliding-window');
  const window = Number(parameters['window']);
  for (let q = 0; q < tokens; q++) for (let k = 0; k < tokens; k++) expect(mask.visible(0, 0, q, k)).toBe(Math.abs(q - k) <= window);
  const global = of('global-sliding-window');
  const w = Number(global.parameters['window']);
  for (let q = 0; q < tokens; q++)
    for (let k = 0; k < tokens; k++) expect(global.mask.visible(0, 0, q, k)).toBe(Math.abs(q - k) <= w || q < 2 * w || k < 2 * w);
  const prefix = of('prefix-lm-causal');
  const p = Number(prefix.parameters['prefix']);
  for (let q = 0; q < tokens; q++) for (let k = 0; k < tokens; k++) expect(prefix.mask.visible(0, 0, q, k)).toBe(k <= q || k < p);
});

test('listed tiles hold the area, and all tiles for the full mask', () => {
  const tokens = 256;
  for (const named of namedMasks(tokens, heads)) {
    const share = listedShare(named, tokens, heads, { query: 32, key: 16 });
    expect(share).toBeGreaterThanOrEqual(pairsOf(named, tokens, heads) / heads / tokens ** 2);
    expect(share).toBeLessThanOrEqual(1);
    if (named.name === 'full') expect(share).toBe(1);
  }
});

test('document lengths come from the corpus of the length', () => {
  expect([4096, 16384, 65536].map(corpusOf)).toEqual(['pile', 'prolong-64k', 'prolong-512k']);
});
