import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, type DType, openDevice, slice, tensor, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp, workgroupBytes } from '@heed/core/~internal';
import { lightning2Start, lightning2Step, lightning2WithState } from '../src/lightning2/index.js';

// Dawn's null backend compiles and validates every text without a driver, the hardware form of fragments included.
let device: Device;
beforeAll(async () => {
  device = await openDevice({ nullBackend: true, tier: 'matrix' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const heads = 2;
const decay = [-0.5, -0.01];

/** Forward, every gradient and a step, serial and segmented, with and without initial state and lengths. */
async function compile(dtype: DType, keyDim: number, valueDim: number, beside = 0): Promise<void> {
  // with elements beside each row, a view of it starts at an odd one
  const view = (dim: number): Tensor => {
    const whole = zeros(device, [1, 300, heads, dim + beside], { dtype });
    const cut = slice(whole, -1, beside, dim + beside);
    whole.dispose();
    return cut;
  };
  const [q, v] = [view(keyDim), view(valueDim)];
  const initialState = zeros(device, [1, heads, keyDim, valueDim]);
  const lengths = tensor(device, Int32Array.of(250));
  for (const chunk of [300, 64]) {
    for (const options of [{}, { initialState, lengths }]) {
      const { outputs, grads } = vjp(
        () => {
          const { out, state } = lightning2WithState(q, q, v, { decay, chunk, ...options });
          return [out, state];
        },
        [q, v, initialState],
        [v, initialState],
      );
      for (const t of tensorsIn([outputs, grads])) t.dispose();
    }
  }
  const state = lightning2Start(device, { batch: 1, heads, keyDim, valueDim, decay });
  const token = (x: Tensor): Tensor => slice(x, 1, 7, 8);
  const step = [token(q), token(v)] as const;
  lightning2Step(step[0], step[0], step[1], state).dispose();
  state.dispose();
  for (const t of tensorsIn([q, v, initialState, lengths, step])) t.dispose();
  await device.idle();
}

for (const [keyDim, valueDim] of [
  [40, 40],
  [64, 64],
  [80, 96],
  [128, 128],
  [256, 64],
  [7, 5],
  [36, 20],
] as const) {
  for (const dtype of ['f16', 'f32'] as const) {
    test(`every kernel compiles for ${dtype}, key dimension ${keyDim}, value dimension ${valueDim}`, () =>
      compile(dtype, keyDim, valueDim));
  }
}

test('views that start at odd elements get kernels of their own', async () => {
  await compile('f16', 32, 32, 1);
  await compile('f32', 32, 32, 1);
});

test('no kernel takes more workgroup memory or lanes than the device has', () => {
  const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = device.limits;
  const texts = [...device.pipelines.values()].filter(({ name }) => name.startsWith('linear-'));
  expect(new Set(texts.map(({ name }) => name))).toEqual(
    new Set(['linear-chunks', 'linear-recurrent', 'linear-segment-scan', 'linear-token-step']),
  );
  for (const { wgsl } of texts) {
    expect(workgroupBytes(wgsl)).toBeLessThanOrEqual(maxComputeWorkgroupStorageSize);
    expect(Number(/@workgroup_size\((\d+)\)/.exec(wgsl)?.[1])).toBeLessThanOrEqual(maxComputeInvocationsPerWorkgroup);
  }
});
