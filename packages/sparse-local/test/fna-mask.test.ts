import fc from 'fast-check';
import { expect, test } from 'vitest';
import { at, forEachIndex, tokenGrid } from '../src/fna/grid.js';
import { neighborhoodMask } from '../src/fna/mask.js';
import { inverseWindowOf, windowOf } from '../src/fna/window.js';

const problem = fc
  .integer({ min: 1, max: 3 })
  .chain((axes) =>
    fc.array(
      fc.record({
        n: fc.integer({ min: 2, max: axes === 1 ? 150 : axes === 2 ? 19 : 9 }),
        d: fc.integer({ min: 1, max: 3 }),
        w: fc.nat(),
        causal: fc.boolean(),
      }),
      { minLength: axes, maxLength: axes },
    ),
  )
  .chain((list) => {
    const shape = list.map(({ n }) => n);
    const dilation = list.map(({ n, d }) => Math.min(d, n));
    return fc.record({
      shape: fc.constant(shape),
      dilation: fc.constant(dilation),
      window: fc.constant(list.map(({ n, w }, axis) => 1 + (w % Math.floor(n / at(dilation, axis))))),
      causal: fc.constant(list.map(({ causal }) => causal)),
      additional: fc.integer({ min: 0, max: 3 }),
    });
  });

test('every grid is walked once, tile by tile, and comes back', () => {
  fc.assert(
    fc.property(problem, ({ shape, dilation }) => {
      const grid = tokenGrid(shape, dilation);
      const places = grid.order ? grid.order.order : Uint32Array.from({ length: grid.tokens }, (_, i) => i);
      expect([...places].sort((a, b) => a - b)).toEqual(Array.from({ length: grid.tokens }, (_, i) => i));
      grid.order?.inverse.forEach((place, token) => expect(at(places, place)).toBe(token));
      places.forEach((token, place) => {
        const coordinate = shape.map((_, axis) => at(grid.coordinates, axis * grid.tokens + place));
        expect(coordinate.reduce((sum, c, axis) => sum * at(shape, axis) + c, 0)).toBe(token);
      });
    }),
    { seed: 1, numRuns: 60 },
  );
});

test('the inverse window holds exactly the queries whose window holds the key', () => {
  for (const causal of [false, true]) {
    for (let n = 1; n <= 12; n++) {
      for (let window = 1; window <= n; window++) {
        for (let j = 0; j < n; j++) {
          const seen: number[] = [];
          for (let i = 0; i < n; i++) {
            const [start, end] = windowOf(i, n, window, causal);
            if (start <= j && j < end) seen.push(i);
          }
          const [low, high] = inverseWindowOf(j, n, window, causal);
          expect(seen).toEqual(Array.from({ length: high - low }, (_, i) => low + i));
        }
      }
    }
  }
});

test('the predicate is the window on every axis, and runs never call a tile full or empty that is not', () => {
  fc.assert(
    fc.property(
      problem,
      fc.constantFrom({ query: 16, key: 8 }, { query: 64, key: 32 }, { query: 7, key: 5 }),
      ({ shape, dilation, window, causal, additional }, tiles) => {
        const grid = tokenGrid(shape, dilation);
        const { tokens } = grid;
        const mask = neighborhoodMask(grid, { window, causal, additional });
        const keys = tokens + additional;
        const visible = new Uint8Array(tokens * keys);
        for (let q = 0; q < tokens; q++) {
          for (let kv = 0; kv < keys; kv++) {
            let seen = true;
            shape.forEach((n, axis) => {
              if (kv >= tokens) return;
              const [cq, ck, d] = [at(grid.coordinates, axis * tokens + q), at(grid.coordinates, axis * tokens + kv), at(dilation, axis)];
              const group = cq % d;
              const [start, end] = windowOf(Math.floor(cq / d), Math.ceil((n - group) / d), at(window, axis), causal[axis] ?? false);
              const j = Math.floor(ck / d);
              seen &&= ck % d === group && start <= j && j < end;
            });
            visible[q * keys + kv] = seen ? 1 : 0;
          }
        }
        for (let i = 0; i < 40; i++) {
          const [q, kv] = [(i * 7919) % tokens, (i * 104729) % keys];
          expect(mask.visible(0, 0, q, kv)).toBe(visible[q * keys + kv] === 1);
        }
        const check = (transposed: boolean): void => {
          const [rows, columns, rowTile, columnTile] = transposed
            ? [keys, tokens, tiles.key, tiles.query]
            : [tokens, keys, tiles.query, tiles.key];
          for (let tile = 0; tile * rowTile < rows; tile++) {
            const kinds = new Array<string>(Math.ceil(columns / columnTile)).fill('empty');
            const lengths = { queries: tokens, keys, offset: 0 };
            const runs = transposed ? mask.transposedRuns(0, tile, tiles, lengths) : mask.runs(0, tile, tiles, lengths);
            for (const [first, end, kind] of runs) kinds.fill(kind, first, end);
            kinds.forEach((kind, column) => {
              let [some, all] = [false, true];
              forEachIndex([rowTile, columnTile], (index) => {
                const row = tile * rowTile + at(index, 0);
                const other = column * columnTile + at(index, 1);
                const seen =
                  row < rows && other < columns && (transposed ? visible[other * keys + row] : visible[row * keys + other]) === 1;
                some ||= seen;
                all &&= seen;
              });
              if (kind === 'empty') expect(some).toBe(false);
              if (kind === 'full') expect(all).toBe(true);
            });
          }
        };
        check(false);
        check(true);
      },
    ),
    { seed: 2, numRuns: 40 },
  );
});

test('a query tile of the grid reads few key tiles', () => {
  const grid = tokenGrid([128, 128], [1, 1]);
  const mask = neighborhoodMask(grid, { window: [13, 13], causal: [false, false], additional: 0 });
  const lengths = { queries: 16384, keys: 16384, offset: 0 };
  const listed = (tile: number): number =>
    mask.runs(0, tile, { query: 64, key: 64 }, lengths).reduce((sum, [first, end]) => sum + end - first, 0);
  // 13 x 13 around 8 x 8 tokens reaches into 3 x 3 tiles; raster rows of 64 would reach into 13 x 3
  expect(listed(16 * 8 + 8)).toBe(9);
});
