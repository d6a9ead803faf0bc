import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  blockCausalDocument,
  byHead,
  causal,
  causalBlockwise,
  causalDocument,
  document,
  full,
  lengths,
  prefixLmDocument,
  sharedQuestion,
  sinks,
  slidingWindow,
  uniformBlockSparse,
  variableBlockSparse,
  blockCausal,
  leadingQueries,
  maskFrom,
  q,
  kv,
  h,
} from '../src/attention/mask/index.js';
import { capture, classify, uniform, variable } from '../src/kernel/expr/index.js';
import { compile } from '../src/kernel/expr/index.js';
import { integers } from './expr-arbitrary.js';
import type { Mask } from '../src/attention/mask/index.js';
import { DOCUMENTS, bruteArea, expectSoundMask, shape, shapeWithOffset, tiles } from './mask-cases.js';
describe('combination', () => {
  const scattered = Int32Array.from({ length: 50 }, (_, i) => [0, 1, -1, 0, 2, 2, 1, -1, 3, 3][(i * 7) % 10]!);
  const leaves = fc.oneof(
    fc.constantFrom(
      full(),
      causal(),
      causal({ offset: 3 }),
      causal({ offset: -4 }),
      document(DOCUMENTS),
      document(scattered),
      causalDocument(scattered),
    ),
    fc.constantFrom(
      sharedQuestion(scattered),
      causalBlockwise(scattered),
      prefixLmDocument(scattered, 3),
      lengths(Int32Array.of(20, 35)),
      blockCausalDocument(scattered, 6),
    ),
    fc.integer({ min: 1, max: 60 }).map((window) => slidingWindow({ window })),
    fc.integer({ min: 1, max: 60 }).map((window) => slidingWindow({ window, causal: true })),
    fc.integer({ min: 0, max: 20 }).map((n) => sinks(n)),
    fc.integer({ min: 0, max: 20 }).map((n) => leadingQueries(n)),
    fc.integer({ min: 1, max: 20 }).map((n) => blockCausal(n)),
    fc
      .integer({ min: 0, max: 99 })
      .map((seed) => uniformBlockSparse({ queries: 50, keys: 50, blockSize: 7, ratio: 0.3, seed, heads: 2, scope: 'head' })),
    fc
      .integer({ min: 0, max: 99 })
      .map((seed) => variableBlockSparse({ queries: 44, keys: 50, meanBlock: 9, minBlock: 2, ratio: 0.5, seed })),
  );
  const trees = fc.letrec<{ tree: Mask }>((tie) => ({
    tree: fc.oneof(
      { maxDepth: 3, withCrossShrink: true },
      leaves,
      fc.tuple(tie('tree'), tie('tree')).map(([x, y]) => x.and(y)),
      fc.tuple(tie('tree'), tie('tree')).map(([x, y]) => x.or(y)),
      tie('tree').map((x) => x.not()),
      fc.tuple(tie('tree'), tie('tree')).map(([x, y]) => byHead([1, 0], [x, y])),
    ),
  })).tree;

  test('runs of random combinations hold', () => {
    fc.assert(
      fc.property(
        trees,
        tiles,
        shapeWithOffset,
        fc.integer({ min: 0, max: 1 }),
        fc.integer({ min: 0, max: 1 }),
        (mask, edges, sizes, head, batch) => {
          expectSoundMask(mask, edges, sizes, head, batch);
        },
      ),
      { seed: 13, numRuns: 250 },
    );
  });

  test('areas of random combinations are exact', () => {
    fc.assert(
      fc.property(trees, shapeWithOffset, fc.integer({ min: 0, max: 1 }), (mask, sizes, head) => {
        expect(mask.area(sizes, head)).toBe(bruteArea(mask, sizes, head));
      }),
      { seed: 14, numRuns: 80 },
    );
  });

  test('and, or and not are those of the predicates', () => {
    fc.assert(
      fc.property(trees, trees, fc.nat(49), fc.nat(49), (x, y, i, j) => {
        const [a, c] = [x.visible(0, 1, i, j), y.visible(0, 1, i, j)];
        expect([x.and(y), x.or(y), x.not()].map((m) => m.visible(0, 1, i, j))).toEqual([a && c, a || c, !a]);
      }),
      { seed: 15, numRuns: 200 },
    );
  });

  test('two windows keep their own sizes, and sizes are not part of the key', () => {
    const two = (m: number, n: number): Mask =>
      slidingWindow({ window: m, causal: true }).and(slidingWindow({ window: n, causal: true }).not());
    expect(two(9, 4).uniforms).toEqual({ windowLeft: 8, windowLeft_2: 3 });
    expect(two(9, 4).key).toBe(two(100, 50).key);
    expect(two(9, 4).key).toBe(two(9, 9).key);
    expect(two(9, 4).key).not.toBe(slidingWindow({ window: 9, causal: true }).key);
    expect(two(9, 4).and(two(7, 2)).uniforms).toEqual({ windowLeft: 8, windowLeft_2: 3, windowLeft_3: 6, windowLeft_4: 1 });
  });

  test('one array of ids is bound once however often it is read', () => {
    expect(Object.keys(sharedQuestion(DOCUMENTS).captures)).toEqual(['documents']);
    expect(Object.keys(document(DOCUMENTS).or(document(scattered)).captures)).toEqual(['documents', 'documents_2']);
  });
});

describe('documents', () => {
  test('padding sees nothing and is seen by nothing', () => {
    const mask = document(Int32Array.of(0, 0, -1, -1, 1));
    expect([0, 1, 2, 3, 4].map((j) => mask.visible(0, 0, 2, j))).toEqual([false, false, false, false, false]);
    expect(mask.area({ queries: 5, keys: 5 })).toBe(5);
    expect(mask.runs(0, 1, { query: 2, key: 2 }, { queries: 5, keys: 5 })).toEqual([]);
  });

  test('batch entries have ids of their own', () => {
    const mask = document({ ids: Int32Array.of(0, 0, 1, 1, 0, 1, 1, 1), batch: 2 });
    expect(mask.perBatch).toBe(true);
    expect([mask.area({ queries: 4, keys: 4 }, 0, 0), mask.area({ queries: 4, keys: 4 }, 0, 1)]).toEqual([8, 10]);
    expectSoundMask(mask, { query: 2, key: 1 }, { queries: 4, keys: 4 }, 0, 1);
  });

  test('ids on the device give partial tiles everywhere and refuse single pairs', () => {
    const mask = causal().and(document({ ids: { dtype: 'i32', shape: [64] } }));
    expect(mask.runs(0, 1, { query: 16, key: 16 }, { queries: 64, keys: 64 })).toEqual([[0, 2, 'partial']]);
    expect(() => mask.visible(0, 0, 1, 1)).toThrow('"documents" is a tensor on the device');
  });

  test('a document of thousands of scattered tokens has few runs', () => {
    const striped = Int32Array.from({ length: 4096 }, (_, i) => i % 2);
    const runs = document(striped).runs(0, 3, { query: 64, key: 64 }, { queries: 4096, keys: 4096 });
    expect(runs).toEqual([[0, 64, 'partial']]);
  });

  test('wrong ids are refused', () => {
    expect(() => document({ ids: new Float32Array(4) })).toThrow('Float32Array');
    expect(() => document({ ids: new Int32Array(5), batch: 2 })).toThrow('5 ids for 2 batch entries');
    expect(() => document({ ids: { dtype: 'f32', shape: [4] } })).toThrow('give i32');
  });
});

describe('masks of heads and of plain predicates', () => {
  test('byHead gives each head its mask', () => {
    const mask = byHead([0, 1, 0], [causal(), slidingWindow({ window: 3, causal: true }).or(sinks(1))]);
    expect(mask.perHead).toBe(true);
    expect([0, 1, 2].map((head) => mask.area({ queries: 20, keys: 20 }, head))).toEqual([210, 74, 210]);
    expect(() => byHead([2], [causal()])).toThrow('assignment of 2');
  });

  test('a predicate alone gives sound runs by interval arithmetic, tight for bands', () => {
    const strides = maskFrom({ predicate: q.sub(kv).mod(4).eq(0).and(kv.le(q)) });
    const band = maskFrom({ predicate: kv.le(q).and(q.sub(kv).lt(uniform('width', 'i32'))), uniforms: { width: 9 } });
    const slopes = maskFrom({ predicate: q.sub(kv).abs().le(capture('widths', 'i32').at(h)), captures: { widths: Int32Array.of(2, 30) } });
    const learned = maskFrom({
      predicate: capture('first', 'i32').at(q).le(kv),
      captures: { first: Int32Array.from({ length: 300 }, (_, i) => (i * 7) % 40) },
    });
    fc.assert(
      fc.property(tiles, shape, fc.integer({ min: 0, max: 1 }), (edges, sizes, head) => {
        for (const mask of [strides, band, slopes, learned, band.not().or(strides)]) expectSoundMask(mask, edges, sizes, head);
      }),
      { seed: 16, numRuns: 40 },
    );
    const twin = slidingWindow({ window: 9, causal: true });
    for (let t = 0; t < 8; t++) {
      const edges = { query: 6, key: 6 };
      expect(band.runs(0, t, edges, { queries: 48, keys: 48 })).toEqual(twin.runs(0, t, edges, { queries: 48, keys: 48 }));
    }
    expect(slopes.perHead).toBe(true);
  });

  test('interval bounds are never wrong for random integer predicates', () => {
    const range = fc.tuple(fc.integer({ min: -60, max: 60 }), fc.nat(4)).map(([low, size]) => ({ low, high: low + size }));
    fc.assert(
      fc.property(integers, fc.integer({ min: -50, max: 50 }), range, range, (e, limit, m, n) => {
        const predicate = e.le(limit);
        const verdict = classify(predicate, { variables: { m, n } });
        const f = compile(predicate, ['m', 'n']);
        for (let i = m.low; i <= m.high; i++)
          for (let j = n.low; j <= n.high; j++) if (verdict !== 'unknown') expect(f(i, j)).toBe(verdict === 'full' ? 1 : 0);
      }),
      { seed: 17, numRuns: 1500 },
    );
  });

  test('a predicate with unknown names is refused', () => {
    expect(() => maskFrom({ predicate: variable('k', 'i32').le(q) })).toThrow('reads i32 "k"');
    expect(() => maskFrom({ predicate: q.le(uniform('w', 'i32')) })).toThrow('uniform "w" has no value');
    expect(() => slidingWindow({ window: 0 })).toThrow('slidingWindow: window is 0');
  });
});
