// Plans are remembered by what they depend on, and by nothing less.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { prepareCall } from '../src/attention/call.js';
import { type AttentionOptions, document } from '../src/attention/index.js';
import { planCall } from '../src/attention/forward.js';
import { planAttention } from '../src/attention/plan.js';
import { type Device, openDevice, zeros } from '../src/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(async () => {
  expect(device.tensors).toBe(0);
  await device.close();
});

function planOf(queries: number, keys: number, options: AttentionOptions = {}, heads = 2): ReturnType<typeof planCall> {
  const [q, k] = [zeros(device, [1, queries, heads, 8]), zeros(device, [1, keys, 2, 8])];
  try {
    return planCall(prepareCall('test', q, k, k, options));
  } finally {
    q.dispose();
    k.dispose();
  }
}

test('the same lengths get the plan of before, others a plan of their own', () => {
  const { capabilities, isSoftware: software } = device;
  const sizes = { batch: 1, heads: 2, kvHeads: 2, headDim: 8, valueDim: 8 };
  const first = planOf(32, 32);
  expect(planOf(32, 32)).toBe(first);
  for (const [queries, keys] of [
    [32, 64],
    [1, 64],
    [32, 32],
  ] as const)
    expect(planOf(queries, keys)).toEqual(
      planAttention({ ...sizes, queries, keys, narrow: false, sharedList: true }, capabilities, { software }),
    );
  expect(planOf(32, 32, {}, 4)).not.toBe(first);
  expect(planOf(32, 32, { precision: 'f16' })).not.toBe(first);
});

test('a mask has plans of its own', () => {
  const [one, other] = [16, 8].map((end) => document(Int32Array.from({ length: 32 }, (_, i) => (i < end ? 0 : 1))));

  const plan = planOf(32, 32, { mask: one! });
  expect(planOf(32, 32, { mask: one! })).toBe(plan);
  expect(planOf(32, 32, { mask: other! })).not.toBe(plan);
  expect(planOf(32, 32)).not.toBe(plan);
});

test('lengths that grow without end do not grow what is remembered', () => {
  const first = planOf(4, 4);
  for (let keys = 5; keys < 75; keys++) planOf(4, keys);
  const again = planOf(4, 4);
  expect(again).not.toBe(first);
  expect(again).toEqual(first);
});
