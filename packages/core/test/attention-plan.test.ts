import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Device, openDevice, scope, tileOrder, zeros } from '../src/index.js';
import { attentionColumnSums, attentionWithLse, document, mergeAttention, planAttention, scoreMod } from '../src/attention/index.js';
import { leadingKeyTiles } from '../src/attention/plan.js';
import { matrixBackwardBytes } from '../src/attention/kernels/matrix-backward.js';
import { matrixForwardBytes } from '../src/attention/kernels/matrix-forward.js';
import { tileBytes } from '../src/attention/kernels/tile.js';
import { attentionInOrder, capture as captureOf, vjp, workgroupBytes } from '../src/internal.js';
import { baselineCapabilities as baseline, h100Capabilities as h100 } from '../src/testing/index.js';

const capture = captureOf('table', 'f32', { differentiable: true });
const shape = { batch: 1, queries: 4096, keys: 4096, heads: 16, kvHeads: 16, headDim: 64, valueDim: 64 };

test('every head dimension up to 256 has tiles within the guaranteed limits, on hardware and on software devices', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 256 }),
      fc.integer({ min: 1, max: 256 }),
      fc.constantFrom(1, 3, 16, 17, 33, 5000),
      fc.boolean(),
      (headDim, valueDim, queries, software) => {
        const plan = planAttention({ ...shape, headDim, valueDim, queries }, baseline, { software });
        const widest = Math.max(headDim, valueDim);
        const bytes = [
          tileBytes(plan.forward.tile, { contract: headDim, accumulate: valueDim }),
          tileBytes(plan.dq.tile, { contract: widest, accumulate: headDim }),
          tileBytes(plan.dkv.tile, { contract: widest, accumulate: widest }),
        ];
        for (const { tile } of [plan.forward, plan.dq, plan.dkv]) {
          expect(tile.lanesX * tile.lanesY).toBeLessThanOrEqual(256);
          expect(tile.rows % tile.lanesY).toBe(0);
          expect(tile.columns % (tile.lanesX * tile.width)).toBe(0);
          expect(tile.columns % tile.slab).toBe(0);
          expect((tile.rows / tile.lanesY) * (tile.columns / tile.lanesX)).toBeLessThanOrEqual(32);
        }
        expect(Math.max(...bytes)).toBeLessThanOrEqual(16384);
      },
    ),
    { seed: 1 },
  );
});

test('few rows of a group are packed and split over the keys; prefill is not', () => {
  const decode = planAttention({ ...shape, queries: 1, heads: 32, kvHeads: 8, keys: 32768 }, h100).forward;
  expect(decode).toMatchObject({ packed: true, splits: 64, fragments: undefined });
  expect(decode.tile.rows).toBe(4);
  expect(planAttention(shape, h100).forward).toMatchObject({ packed: false, splits: 1 });
  expect(planAttention({ ...shape, queries: 1, keys: 100 }, h100).forward.splits).toBe(1);
});

test('heads with lists of their own are not packed', () => {
  expect(planAttention({ ...shape, queries: 1, kvHeads: 4, sharedList: false }, h100).forward.packed).toBe(false);
});

test('f16 operands take fragments where the device has them', () => {
  const fragments = planAttention({ ...shape, halves: true }, h100).forward.fragments;
  expect(fragments).toMatchObject({ subgroups: 4, blocks: 2, rows: 128, columns: 32, chunk: 32, barriers: false, parts: 1 });
  expect(planAttention(shape, h100).forward.fragments).toBeUndefined();
  expect(planAttention({ ...shape, halves: true }, baseline).forward.fragments).toBeUndefined();
});

test('long sequences take taller tiles, short windows do not, blocks of a selection none taller than themselves', () => {
  const long = planAttention({ ...shape, halves: true, queries: 65536, keys: 65536 }, h100).forward.fragments;
  expect(long?.rows).toBeGreaterThan(128);
  expect(planAttention({ ...shape, halves: true, queries: 65536, keys: 65536, narrow: true }, h100).forward.fragments?.rows).toBe(128);
  expect(planAttention({ ...shape, halves: true, queries: 65536, blockQueries: 64 }, h100).forward.fragments?.rows).toBe(64);
  const blocks = planAttention({ ...shape, halves: true, blockQueries: 32, blockKeys: 64 }, h100);
  expect([blocks.dq.fragments?.rows, blocks.dkv.fragments?.rows]).toEqual([32, 64]);
  expect(planAttention({ ...shape, blockKeys: 32 }, h100).dkv.inRegisters?.lanes).toBe(64);
});

test('values wider than 128 are cut into parts; the backward of such heads stays on register tiles', () => {
  const plan = planAttention({ ...shape, halves: true, headDim: 256, valueDim: 200 }, h100);
  expect(plan.forward.fragments).toMatchObject({ parts: 2, valueColumns: 112 });
  expect(plan.dq.fragments).toBeUndefined();
  expect(planAttention({ ...shape, halves: true, headDim: 128, valueDim: 128 }, h100).dkv.fragments).toBeDefined();
});

test('subgroups whose lanes may not run as one meet at barriers', () => {
  const other = { ...h100, subgroupMinSize: 16 };
  expect(planAttention({ ...shape, halves: true }, other).forward.fragments?.barriers).toBe(true);
});

test('every tile on fragments fits the workgroup memory and lanes that it was planned for', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 256 }),
      fc.integer({ min: 1, max: 256 }),
      fc.constantFrom(17, 64, 1000, 65536),
      fc.constantFrom(16384, 32768, 49152),
      fc.constantFrom(16, 32),
      (headDim, valueDim, queries, maxComputeWorkgroupStorageSize, subgroupMinSize) => {
        const device = { ...h100, subgroupMinSize, limits: { ...h100.limits, maxComputeWorkgroupStorageSize } };
        const plan = planAttention({ ...shape, halves: true, headDim, valueDim, queries }, device);
        const { barriers } = plan.forward.fragments ?? { barriers: false };
        if (plan.forward.fragments)
          expect(
            matrixForwardBytes(plan.forward.fragments, { headDim, valueColumns: plan.forward.fragments.valueColumns }, true),
          ).toBeLessThanOrEqual(maxComputeWorkgroupStorageSize);
        for (const { fragments } of [plan.dq, plan.dkv])
          if (fragments)
            expect(matrixBackwardBytes({ ...fragments, barriers }, { headDim, valueDim }, true)).toBeLessThanOrEqual(
              maxComputeWorkgroupStorageSize,
            );
      },
    ),
    { seed: 2 },
  );
});

test('a score function keeps the backward on register tiles', () => {
  const plan = planAttention({ ...shape, halves: true, scoreFunction: true }, h100);
  expect(plan.forward.fragments).toBeDefined();
  expect(plan.dq.fragments).toBeUndefined();
});

test('few key tiles under many queries are cut into parts', () => {
  expect(planAttention({ ...shape, heads: 1, kvHeads: 1, keys: 64, queries: 65536 }, h100).dkv.splits).toBe(32);
  expect(planAttention(shape, h100).dkv.splits).toBe(1);
});

function compileAll(device: Device): void {
  const ids = Int32Array.from({ length: 70 }, (_, i) => i >> 4);
  const blocks = zeros(device, [1, 2, 5, 3], { dtype: 'u32' });
  const bits = zeros(device, [1, 1, 5, 1], { dtype: 'u32' });
  const bias = zeros(device, [2, 70]).view({ shape: [1, 2, 70], strides: [140, 70, 1] });
  const sinks = zeros(device, [2]);
  const lengths = zeros(device, [1], { dtype: 'i32' });
  for (const dtype of ['f32', 'f16'] as const) {
    for (const [headDim, valueDim] of [
      [64, 64],
      [40, 80],
      [128, 128],
      [7, 5],
      [256, 256],
    ] as const) {
      const q = zeros(device, [1, 70, 2, headDim], { dtype });
      const k = zeros(device, [1, 70, 1, headDim], { dtype });
      const v = zeros(device, [1, 70, 1, valueDim], { dtype });
      const table = zeros(device, [139]);
      const options = [
        { causal: true },
        { mask: document(ids), sinks, keyBias: bias, lengths },
        { selection: { blockQueries: 16, blockKeys: 16, ids: blocks }, softcap: 3, queryOffset: lengths },
        { selection: { blockQueries: 16, blockKeys: 16, bits }, causal: true },
        { scoreMod: scoreMod((s, { q: row, kv }) => s.add(capture.at(kv.sub(row).add(69))), { captures: { table } }) },
      ];
      for (const option of headDim === 64 ? options : options.slice(0, 2)) {
        const inputs = [q, k, v, ...('keyBias' in option ? [bias, sinks] : []), ...('scoreMod' in option ? [table] : [])];
        const dOut = zeros(device, [1, 70, 2, valueDim], { dtype });
        const { outputs } = vjp(
          () => {
            const { out, lse } = attentionWithLse(q, k, v, option);
            return [out, lse];
          },
          inputs,
          [dOut, null],
        );
        attentionColumnSums(q, k, outputs[1]!, option);
      }
      const dOut = zeros(device, [1, 70, 2, valueDim], { dtype });
      vjp(() => attentionInOrder(q, k, v, tileOrder([10, 7], [4, 4]), { mask: document(ids) }).out(), [q, k, v], [dOut]);
      const one = q.view({ shape: [1, 1, 2, headDim], strides: q.strides });
      const { out, lse } = attentionWithLse(one, k, v);
      mergeAttention([
        { out, lse },
        { out, lse },
      ]);
    }
  }
}

test('f32 rows stay in registers where subgroups are wide enough: half as many of them on GPUs with fewer registers', () => {
  const { forward, dq, dkv } = planAttention(shape, h100);
  for (const { inRegisters } of [forward, dq, dkv]) expect(inRegisters).toMatchObject({ lanes: 128, share: 4, spread: 8 });
  const narrow = planAttention(shape, { ...h100, subgroupMinSize: 8, subgroupMaxSize: 32 }).forward.inRegisters;
  expect(narrow).toMatchObject({ spread: 1, rowsALane: 2 });
  const small = planAttention(shape, { ...h100, limits: { ...h100.limits, maxComputeWorkgroupStorageSize: 32_768 } }).forward.inRegisters;
  expect(small).toMatchObject({ spread: 8, rowsALane: 2 });
  expect(planAttention({ ...shape, headDim: 128, valueDim: 128 }, h100).forward.inRegisters).toMatchObject({ share: 8, spread: 4 });
  expect(planAttention(shape, baseline).forward.inRegisters).toBeUndefined();
  expect(planAttention(shape, h100, { software: true }).dq.inRegisters).toBeUndefined();
  // as many rows at least as a tile owns, and enough tiles to fill a large GPU
  expect(planAttention({ ...shape, queries: 20 }, h100).forward.inRegisters).toBeUndefined();
  expect(planAttention({ ...shape, queries: 512, keys: 512 }, h100).forward.inRegisters?.lanes).toBe(64);
});

test('the walk of sink tiles is cut where windows make the others short', () => {
  expect(leadingKeyTiles({ queries: 65536, keys: 65536 }, { left: 255, prefix: 65 }, 64)).toBe(2);
  expect(leadingKeyTiles({ queries: 65536, keys: 65536 }, { left: 2 ** 29, prefix: 4 }, 64)).toBe(0);
  expect(leadingKeyTiles({ queries: 1000, keys: 1000 }, { left: 15, prefix: 4 }, 64)).toBe(0);
});

test('the forms without barriers compile', async () => {
  const device = await openDevice({ nullBackend: true, tier: 'matrix' });
  Object.assign(device.capabilities, { subgroupMinSize: 32, subgroupMaxSize: 32 });
  scope(() => compileAll(device));
  await device.idle();
  const text = [...device.pipelines.values()].find((p) => p.name === 'attention-forward' && p.tier === 'matrix')?.wgsl ?? '';
  expect(text).toContain('subgroupAny');
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test.each(['baseline', 'subgroups', 'matrix'] as const)(
  'every variant compiles on tier %s for real hardware, within its workgroup memory',
  async (tier) => {
    const device = await openDevice({ nullBackend: true, tier });
    scope(() => compileAll(device));
    await device.idle();
    const attention = [...device.pipelines.values()].filter((p) => p.name.startsWith('attention'));
    expect(new Set(attention.map((p) => p.name)).size).toBeGreaterThanOrEqual(11);
    for (const { wgsl } of attention) expect(workgroupBytes(wgsl)).toBeLessThanOrEqual(device.limits.maxComputeWorkgroupStorageSize);
    if (tier === 'matrix')
      expect(attention.filter((p) => p.tier === 'matrix').map((p) => p.name)).toEqual(
        expect.arrayContaining(['attention-forward', 'attention-dq', 'attention-dkv']),
      );
    expect(device.memory().tensors).toBe(0);
    await device.close();
  },
);
