// Bits of the partial tiles of a mask: what kernels read in place of the predicate.
import { expect, test } from 'vitest';
import { maskArena, partialTiles } from '../src/attention/arena.js';
import { bindCall } from '../src/attention/bind.js';
import { prepareCall } from '../src/attention/call.js';
import { listedPairs } from '../src/attention/listed.js';
import { planForwardFragments } from '../src/attention/plan-fragments.js';
import { causalDocument, documentIds, globalSlidingWindow, type Mask, readRow, tileRuns } from '../src/attention/mask/index.js';
import { openDevice, scope, zeros } from '../src/index.js';
import { h100Capabilities as h100 } from '../src/testing/index.js';

const tiles = { query: 8, key: 16 };

test('partial tiles are numbered row by row, and too many of them get no bits', () => {
  const runs = tileRuns(globalSlidingWindow(5), { queries: 50, keys: 50, heads: 1, batch: 1, tiles }).arena;
  const { firstTiles, list, rowWords, words } = partialTiles(runs, { tiles, queries: 50, keys: 50, transposed: false })!;
  expect(rowWords).toBe(1);
  expect(words).toBe((list.length / 2) * 8);
  let next = 0;
  let run = 0;
  for (let row = 0; row < 7; row++) {
    const own = readRow(runs, 'forward', 0, 0, row);
    run += own.filter(([, , kind]) => kind === 'full').length;
    for (const [first, end] of own.filter(([, , kind]) => kind === 'partial')) {
      for (let tile = first; tile < end; tile++, next++) {
        expect((firstTiles[run]! + tile) >>> 0).toBe(next);
        expect([list[2 * next], list[2 * next + 1]]).toEqual([row, tile]);
      }
      run++;
    }
  }
  expect(next).toBe(list.length / 2);
  expect(partialTiles(runs, { tiles, queries: 1, keys: 1, transposed: false })).toBeUndefined();
});

const documents = causalDocument(documentIds([13, 1, 20, 16]));
test.each<[string, Mask, number, boolean]>([
  ['documents, by queries', documents, 50, false],
  ['documents, by keys', documents, 50, true],
  ['a window beside global rows and columns, by queries', globalSlidingWindow(5), 47, false],
  ['a window beside global rows and columns, by keys', globalSlidingWindow(5), 47, true],
])('the device finds the pairs that the host finds: %s', async (_, mask, tokens, transposed) => {
  const device = await openDevice({ tier: 'baseline' });
  const q = zeros(device, [1, tokens, 1, 8]);
  scope(() => {
    const call = prepareCall('test', q, q, q, { mask });
    const bound = bindCall(call, { q, k: q, v: q, arrays: [], selection: [] }, { width: 4, tiles, transposed, bits: true });
    expect(bound.spec.bits).toBe(1);
  });
  const shape = { queries: tokens, keys: tokens, offset: 0, heads: 1, batch: 1, tiles, transposed, bits: true };
  const arena = maskArena(device, mask, shape);
  expect(arena.bits!.pending).toBeUndefined();
  const bytes = await device.readBytes(arena.operand.storage, 0, 4 * arena.operand.extent);
  const words = new Uint32Array(bytes.buffer, 0, arena.operand.extent);
  const { list } = partialTiles(tileRuns(mask, shape).arena, shape)!;
  expect(list.length).toBeGreaterThan(4);
  const [rows, columns] = transposed ? [tiles.key, tiles.query] : [tiles.query, tiles.key];
  for (let n = 0; n < list.length / 2; n++) {
    const [row = 0, tile = 0] = [list[2 * n], list[2 * n + 1]];
    for (let i = 0; i < rows; i++) {
      let expected = 0;
      for (let j = 0; j < columns; j++) {
        const [own, other] = [row * rows + i, tile * columns + j];
        const [query, key] = transposed ? [other, own] : [own, other];
        if (query < tokens && key < tokens && mask.visible(0, 0, query, key)) expected |= 1 << j;
      }
      expect(words[arena.bits!.bitsAt + n * rows + i]).toBe(expected >>> 0);
    }
  }
  q.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('the tile is the one that has least to do for its speed', () => {
  const need = { headDim: 64, valueDim: 64, rows: 16_384, allRows: 16 * 16_384 };
  const rowsFor = (listed: (t: { query: number; key: number }) => number): number | undefined =>
    planForwardFragments({ ...need, listed }, h100)?.rows;
  const tallest = planForwardFragments(need, h100)!.rows;
  expect(tallest).toBeGreaterThan(128);
  expect(rowsFor(() => 1)).toBe(tallest);
  // halos: twice the pairs in tall tiles; blocks of 64 chosen at random: every further row of blocks lists its own
  expect(rowsFor(({ query }) => (query > 128 ? 2 : 1))).toBe(128);
  expect(rowsFor(({ query }) => Math.max(64, query))).toBe(64);
});

test('listed pairs are those of the lists where the sample holds all query tiles', async () => {
  const device = await openDevice({ nullBackend: true });
  const mask = globalSlidingWindow(5);
  const q = zeros(device, [1, 50, 1, 8]);
  const count = listedPairs(prepareCall('test', q, q, q, { mask }))!;
  expect(count(tiles)).toBe(tileRuns(mask, { queries: 50, keys: 50, offset: 0, heads: 1, batch: 1, tiles }).listedPairs);
  expect(listedPairs(prepareCall('test', q, q, q, { causal: true }))).toBeUndefined();
  q.dispose();
  await device.close();
});
