import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, slice, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp, workgroupBytes } from '@heed/core/~internal';
import { lla, llaSolve, llaStart, llaStep } from '../src/lla/index.js';
import { nprf } from '../src/nprf/index.js';
import { pairBytes, pairTiles, planPairs } from '../src/pairs/plan.js';

// Dawn's null backend compiles and validates every text without a driver. It is no software device: loops have the bounds of hardware.
let device: Device;
beforeAll(async () => {
  device = await openDevice({ nullBackend: true });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const cut = (x: Tensor, tokens: number): Tensor => slice(x, 1, 0, tokens);

for (const [dim, valueDim, blockSize] of [
  [64, 64, 64],
  [64, 64, 16],
  [96, 96, 96],
  [32, 48, 32],
  [16, 16, 4],
  [7, 5, 7],
  [6, 6, 3],
] as const)
  test(`lla of ${dim} and ${valueDim} channels in blocks of ${blockSize} compiles in every variant`, async () => {
    const [q, v, ridge] = [zeros(device, [1, 90, 2, dim]), zeros(device, [1, 90, 2, valueDim]), zeros(device, [1, 90, 2])];
    const whole = blockSize === dim && dim <= 64;
    for (const solver of whole ? (['cg', 'cholesky'] as const) : (['cg'] as const))
      for (const ridgeLambda of [1, ridge]) {
        const inputs = [q, v, ...(ridgeLambda === ridge ? [ridge] : [])];
        const { outputs, grads } = vjp(() => lla(q, q, v, { ridgeLambda, solver, blockSize }), inputs, [v]);
        for (const t of tensorsIn([outputs, grads])) t.dispose();
      }
    for (const t of tensorsIn(llaSolve(q, q, { ridgeLambda: 1, solver: 'cg', preconditioner: 'jacobi', blockSize }))) t.dispose();
    const state = llaStart(device, { batch: 1, heads: 2, headDim: dim, valueDim, capacity: 90, ridgeLambda: 1, blockSize });
    for (const tokens of [5, 1]) {
      const part = [cut(q, tokens), cut(q, tokens), cut(v, tokens)] as const;
      for (const t of tensorsIn([llaStep(...part, state), part])) t.dispose();
    }
    for (const t of tensorsIn([q, v, ridge, state])) t.dispose();
    await device.idle();
    for (const { name, text } of texts()) expect(workgroupBytes(text), name).toBeLessThanOrEqual(24 * 1024);
  });

for (const [features, valueDim, tokens] of [
  [64, 64, 700],
  [7, 5, 40],
  [300, 128, 90],
] as const)
  test(`nprf of ${features} features and ${valueDim} values compiles by pairs and by transforms`, async () => {
    const [q, v] = [zeros(device, [1, tokens, 2, 16]), zeros(device, [1, tokens, 2, valueDim])];
    const [w, bias] = [zeros(device, [2, features, 16]), zeros(device, [2, 2 * tokens - 1])];
    for (const path of ['direct', 'fft'] as const)
      for (const causal of [true, false]) {
        const { outputs, grads } = vjp(() => nprf(q, q, v, w, bias, { path, causal }), [q, v, bias], [v]);
        for (const t of tensorsIn([outputs, grads])) t.dispose();
      }
    for (const t of [q, v, w, bias]) t.dispose();
    await device.idle();
    for (const { name, text } of texts()) expect(workgroupBytes(text), name).toBeLessThanOrEqual(24 * 1024);
  });

/** Texts of this package's kernels that were compiled. */
function texts(): { name: string; text: string }[] {
  return [...device.pipelines.values()].filter(({ name }) => /^(lla|nprf)-/.test(name)).map(({ name, wgsl }) => ({ name, text: wgsl }));
}

test('a tile has a lane for each 4 x 4 sums and each block of scores, and fits', () => {
  for (const columns of [1, 3, 4, 16, 17, 32, 64])
    for (const bytes of [16384, 24576]) {
      const problem = { columns, memory: { perRow: 2 * columns, perOther: columns, planes: 1 }, bytes, lanes: 256, dots: 2 };
      for (const tile of pairTiles(problem)) {
        expect(tile.lanes).toBe((tile.rows / 4) * columns);
        expect((tile.rows / tile.laneRows) * (tile.others / tile.laneOthers)).toBe(tile.lanes);
        expect(pairBytes(problem, tile)).toBeLessThanOrEqual(bytes);
      }
      const planned = planPairs(problem);
      if (columns <= 32) expect(planned?.lanes).toBeGreaterThanOrEqual(columns >= 16 ? 32 : columns);
      expect(planPairs({ ...problem, software: true })?.lanes ?? 0).toBeLessThanOrEqual(256);
    }
  expect(
    planPairs({ columns: 16, memory: { perRow: 35, perOther: 17, planes: 1, perLane: 1 }, bytes: 24576, lanes: 256, dots: 2 }),
  ).toMatchObject({
    rows: 32,
    others: 8,
  });
});
