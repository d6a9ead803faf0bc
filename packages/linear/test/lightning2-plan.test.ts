import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Capabilities } from '@heed/core';
import { baselineCapabilities as baseline } from '@heed/core/testing';
import { matrixLayout, matrixTiles } from '../src/scan/matrix-tile.js';
import { outputLayout } from '../src/scan/output-layout.js';
import { planPieces } from '../src/scan/pieces.js';
import { decayFromSlopes, lightning2Slopes } from '../src/scan/slopes.js';
import { planScan, recurrentTile, type ScanShape, type ScanTuning, stepTile } from '../src/scan/plan.js';

const withMatrix = (workgroupBytes: number, bindings = 8): Capabilities => ({
  ...baseline,
  tier: 'matrix',
  f16: true,
  subgroups: true,
  matrix: 'hardware',
  matrixConfigs: (['f32', 'f16'] as const).map((result) => ({ component: 'f16', result, M: 16, N: 8, K: 16 })),
  limits: {
    ...baseline.limits,
    maxComputeWorkgroupStorageSize: workgroupBytes,
    maxComputeInvocationsPerWorkgroup: 1024,
    maxStorageBuffersPerShaderStage: bindings,
  },
});
const hardware: ScanTuning = { fill: 512, laneRows: 16 };
const shape = (over: Partial<ScanShape>): ScanShape => ({
  batch: 1,
  tokens: 65536,
  heads: 16,
  keyDim: 64,
  valueDim: 64,
  dtype: 'f16',
  ...over,
});

describe('the form of a scan', () => {
  test('few heads and many tokens go in segments that fill the device', () => {
    const plan = planScan(shape({}), withMatrix(49152), hardware);
    expect(plan).toMatchObject({ form: 'segments', kernel: 'matrix', dispatches: ['states', 'segment-scan', 'outputs'] });
    // two workgroups a multiprocessor where their memory allows, else one
    expect(plan.segments * 16).toBe(256);
    expect(planScan(shape({ keyDim: 128, valueDim: 128 }), withMatrix(49152), hardware).segments * 16).toBe(128);
    expect(plan.segmentTokens % plan.matrix!.outputs.chunk).toBe(0);
  });

  test('states of segments are made in parts that fill the device four times over, none of a few tokens', () => {
    expect(planScan(shape({}), withMatrix(49152), hardware)).toMatchObject({ segments: 16, parts: 2 });
    expect(planScan(shape({ tokens: 1 << 20 }), withMatrix(49152), hardware)).toMatchObject({ segments: 16, parts: 2 });
    expect(planScan(shape({ tokens: 4096 }), withMatrix(49152), hardware)).toMatchObject({ segments: 16, parts: 1 });
    expect(planScan(shape({ batch: 3 }), withMatrix(49152), hardware)).toMatchObject({ segments: 5, parts: 2 });
    expect(planScan(shape({ dtype: 'f32' }), withMatrix(49152), hardware).parts).toBe(1);
    expect(planScan(shape({ batch: 32 }), withMatrix(49152), hardware).parts).toBe(1);
  });

  test('heads that are known to forget go in runs that fill the multiprocessors in one dispatch', () => {
    const decays = decayFromSlopes(lightning2Slopes({ heads: 16 }));
    const capabilities = withMatrix(49152, 16);
    const tuning = { ...hardware, multiprocessors: 132 };
    const plan = planScan(shape({ decays }), capabilities, tuning);
    expect(plan).toMatchObject({ form: 'ranges', dispatches: ['outputs'], segments: 16 });
    expect(plan.ranges!.count).toBeGreaterThan(250);
    expect(plan.ranges!.count).toBeLessThanOrEqual(264);
    expect(planScan(shape({ decays, keyDim: 128, valueDim: 128 }), capabilities, tuning).ranges!.count).toBeLessThanOrEqual(132);
    // queries, keys, values, outputs, and a quarter of keys and values again
    expect(plan.bytes / (65536 * 16 * 4 * 64 * 2)).toBeLessThan(1.2);
    // states of segments: where a head never forgets, tokens are few, a chunk is given, or a device binds too few buffers
    expect(planScan(shape({ decays: [...decays.slice(1), 0] }), capabilities, tuning).form).toBe('segments');
    expect(planScan(shape({ decays, tokens: 32768 }), capabilities, tuning).form).toBe('segments');
    expect(planScan(shape({ decays, chunk: 4096 }), capabilities, tuning).form).toBe('segments');
    expect(planScan(shape({ decays }), withMatrix(49152), tuning).form).toBe('segments');
  });

  test('many heads go in one sweep, which reads everything once', () => {
    const plan = planScan(shape({ batch: 32 }), withMatrix(49152), hardware);
    expect(plan).toMatchObject({ form: 'serial', segments: 1, dispatches: ['outputs'] });
    expect(plan.bytes).toBe(32 * 16 * 65536 * 4 * 64 * 2);
  });

  test('two-pass segments at head dimension 64 move 12 KB a token of 16 heads', () => {
    const { bytes } = planScan(shape({}), withMatrix(49152), hardware);
    expect(bytes / 65536).toBeGreaterThan(12000);
    expect(bytes / 65536).toBeLessThan(13000);
  });

  test('a chunk that is given makes the segments, the last one shorter', () => {
    expect(planScan(shape({ tokens: 130, chunk: 64, dtype: 'f32' }), baseline, hardware)).toMatchObject({ segments: 3, segmentTokens: 64 });
    expect(planScan(shape({ tokens: 130, chunk: 4, dtype: 'f32' }), baseline, hardware).form).toBe('chunk-parallel');
    expect(planScan(shape({ tokens: 130, chunk: 500, dtype: 'f32' }), baseline, hardware).form).toBe('serial');
  });

  test('a short sequence is not cut', () => {
    expect(planScan(shape({ tokens: 128 }), baseline, hardware).form).toBe('serial');
  });

  test('f32, and a device without fragments, go token by token', () => {
    expect(planScan(shape({ dtype: 'f32' }), withMatrix(49152), hardware).kernel).toBe('recurrent');
    expect(planScan(shape({}), baseline, hardware).kernel).toBe('recurrent');
  });
});

describe('tiles', () => {
  test('every tile on fragments fits the workgroup memory that it was made for', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 256 }),
        fc.integer({ min: 1, max: 256 }),
        fc.constantFrom(16384, 32768, 49152, 65536),
        (keyDim, valueDim, limit) => {
          const tiles = matrixTiles(keyDim, valueDim, withMatrix(limit));
          if (!tiles) return keyDim > 128 || limit < 49152;
          const [outputs, states] = [outputLayout(keyDim, tiles.outputs), matrixLayout(keyDim, { ...tiles.states, valueDim }, false)];
          return outputs.bytes <= limit && states.bytes <= limit && outputs.keys >= keyDim && states.keys >= keyDim;
        },
      ),
    );
  });

  test('head dimensions 40, 64, 80 and 128 have a tile on fragments at 32 KiB and more', () => {
    for (const limit of [32768, 49152]) for (const dim of [40, 64, 80, 128]) expect(matrixTiles(dim, dim, withMatrix(limit))).toBeDefined();
    expect(matrixTiles(64, 64, withMatrix(49152))?.outputs).toEqual({
      chunk: 32,
      columns: 64,
      rowGroups: 2,
      columnGroups: 2,
      fragmentColumns: 8,
      slices: 2,
    });
    expect(outputLayout(64, matrixTiles(64, 64, withMatrix(49152))!.outputs).bytes).toBeLessThanOrEqual(24576);
  });

  test('every token-by-token tile has at most 256 lanes and 16 KiB', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 512 }),
        fc.integer({ min: 1, max: 512 }),
        fc.constantFrom(4, 8, 16),
        (keyDim, valueDim, laneRows) => {
          const { columns, rows, tile } = recurrentTile(keyDim, valueDim, 16384, { fill: 512, laneRows: laneRows as 4 | 8 | 16 });
          const slabs = Math.ceil(keyDim / rows);
          const lanes = slabs * (columns / 4);
          const bytes = 16 * tile * ((2 * slabs * rows) / 4 + columns / 4 + (slabs > 1 ? lanes : 0));
          return (
            lanes <= 256 &&
            bytes <= 16384 &&
            columns % 4 === 0 &&
            Math.ceil(valueDim / columns) * columns < valueDim + 4 * Math.ceil(valueDim / columns)
          );
        },
      ),
    );
  });

  test('a decode step of few heads spreads over narrower columns', () => {
    expect(stepTile(16, 64, 64, 16384, hardware).columns).toBe(16);
    expect(stepTile(1024, 64, 64, 16384, hardware).columns).toBe(64);
  });

  test('a key dimension beyond workgroup memory is refused by name', () => {
    expect(() => recurrentTile(4096, 64, 16384, hardware)).toThrow(/linear: key dimension 4096 needs more than the 16384 bytes/);
  });
});

describe('pieces', () => {
  const spans = (batch: number, tokens: number, tokenBytes: number): { bytes: number; tokenBytes: number }[] => [
    { bytes: batch * tokens * tokenBytes, tokenBytes },
  ];

  test('what fits a binding is one piece', () => {
    expect(planPieces(2, 1000, spans(2, 1000, 2048), 2 ** 27)).toEqual([[{ batchFirst: 0, batch: 2, tokenFirst: 0, tokens: 1000 }]]);
  });

  test('what does not goes by batch entries and runs of tokens, each within a binding', () => {
    const lists = planPieces(2, 1_000_000, spans(2, 1_000_000, 2048), 2 ** 27);
    expect(lists).toHaveLength(2);
    for (const [b, pieces] of lists.entries()) {
      expect(pieces.reduce((sum, { tokens }) => sum + tokens, 0)).toBe(1_000_000);
      let at = 0;
      for (const piece of pieces) {
        expect(piece).toMatchObject({ batchFirst: b, batch: 1, tokenFirst: at });
        expect(piece.tokens * 2048 + 512).toBeLessThanOrEqual(2 ** 27);
        at += piece.tokens;
      }
    }
  });
});
