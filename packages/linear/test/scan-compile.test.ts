import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, type DType, openDevice, tensor, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { lrpe } from '../src/layer/turns.js';
import { planGated } from '../src/scan/gated-plan.js';
import { linearScanStep, linearScanWithState } from '../src/scan/linear-scan.js';

// Dawn's null backend compiles and validates every text without a driver.
let device: Device;
beforeAll(async () => {
  device = await openDevice({ nullBackend: true, tier: 'matrix' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

for (const dtype of ['f32', 'f16'] as const satisfies readonly DType[])
  for (const [keyDim, valueDim] of [
    [64, 64],
    [128, 128],
    [7, 5],
    [36, 1],
    [1024, 8],
  ] as const)
    test(`gated scans of ${dtype} ${keyDim} x ${valueDim} compile, forward, backward and as steps`, async () => {
      const [q, v] = [zeros(device, [1, 300, 2, keyDim], { dtype }), zeros(device, [1, 300, 2, valueDim], { dtype })];
      const initialState = zeros(device, [1, 2, keyDim, valueDim]);
      const lengths = tensor(device, Int32Array.of(250));
      for (const gate of [zeros(device, [1, 300, 2]), zeros(device, [1, 300, 2, keyDim])]) {
        for (const options of [{ chunk: 300 }, { chunk: 64, initialState, lengths }]) {
          const { outputs, grads } = vjp(
            () => {
              const { out, state } = linearScanWithState(q, q, v, { gate, ...options });
              return [out, state];
            },
            [q, v, gate, initialState],
            [v, initialState],
          );
          for (const t of tensorsIn([outputs, grads])) t.dispose();
        }
        const token = (x: Tensor): Tensor => x.view({ shape: [1, 1, ...x.shape.slice(2)] });
        const step = [token(q), token(v), token(gate)] as const;
        linearScanStep(step[0], step[0], step[1], initialState, { gate: step[2] }).dispose();
        for (const t of tensorsIn([gate, step])) t.dispose();
      }
      for (const t of tensorsIn([q, v, initialState, lengths])) t.dispose();
      await device.idle();
    });

test('turns of f32 and f16 compile', async () => {
  for (const dtype of ['f32', 'f16'] as const) {
    const x = zeros(device, [1, 70, 2, 9], { dtype });
    const theta = zeros(device, [2, 9]);
    const dy = zeros(device, [1, 70, 2, 18], { dtype });
    const { outputs, grads } = vjp(() => lrpe(x, theta), [x, theta], [dy]);
    for (const t of tensorsIn([x, theta, dy, outputs, grads])) t.dispose();
  }
  await device.idle();
});

test('a plan of a gated scan fills the device with segments, and a head dimension that fits nowhere is refused', () => {
  const shape = { batch: 1, tokens: 65536, heads: 16, keyDim: 64, valueDim: 64 };
  const tuning = { fill: 512, laneRows: 16, blocks: true } as const;
  const { capabilities } = device;
  const plan = planGated(shape, 'rows', capabilities, tuning);
  expect(plan.segments * 16).toBeGreaterThanOrEqual(256);
  expect(plan.segments * plan.segmentTokens).toBeGreaterThanOrEqual(65536);
  expect(planGated({ ...shape, tokens: 100 }, 'rows', capabilities, tuning).segments).toBe(1);
  expect(planGated({ ...shape, chunk: 100 }, 'head', capabilities, tuning).segmentTokens).toBe(100);
  expect(() => planGated({ ...shape, keyDim: 5000 }, 'rows', capabilities, tuning)).toThrow(/key dimension 5000 needs more/);
});
