import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, tensor, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { turningOf } from '../src/layer/turns.js';
import { decayTensor } from '../src/scan/options.js';
import { planFor } from '../src/scan/scan.js';
import { turnsOf } from '../src/scan/turning.js';
import { transnormerNormAttention } from '../src/transnormer/index.js';
import { transnormerllmStart, transnormerllmStep, transnormerllmWithState } from '../src/transnormerllm/index.js';

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

for (const [headDim, valueDim] of [
  [32, 64],
  [64, 64],
  [24, 128],
] as const)
  test(`scans of ${headDim} x ${valueDim} that turn what they load compile, forward, backward and as steps`, async () => {
    const operand = (dim: number, tokens = 1500): Tensor => zeros(device, [1, tokens, heads, dim], { dtype: 'f16' });
    const [q, v] = [operand(headDim), operand(valueDim)];
    const theta = zeros(device, [heads, headDim]);
    const pairs = zeros(device, [headDim / 2]);
    const initialState = zeros(device, [1, heads, 2 * headDim, valueDim]);
    const lengths = tensor(device, Int32Array.of(1250));
    // a decay that leaves runs of tokens to themselves, and none
    for (const decay of [
      [-0.5, -0.3],
      [0, 0],
    ])
      for (const options of [{}, { initialState, lengths }]) {
        const made = vjp(
          () => {
            const { out, state } = transnormerllmWithState(q, q, v, { decay, theta, ...options });
            return [out, state];
          },
          [q, v, theta],
          [v, initialState],
        );
        for (const t of tensorsIn(made)) t.dispose();
      }
    const dOut = zeros(device, [1, 1500, heads, valueDim]);
    const made = vjp(
      () => transnormerNormAttention(q, q, v, { positions: { theta: pairs, householder: new Array(headDim).fill(headDim ** -0.5) } }),
      [q, v, pairs],
      [dOut],
    );
    const stream = transnormerllmStart(device, { batch: 1, heads, headDim, valueDim, lrpe: true });
    const [one, row] = [operand(headDim, 1), operand(valueDim, 1)];
    transnormerllmStep(one, one, row, stream, theta).dispose();
    stream.dispose();
    for (const t of tensorsIn([q, v, theta, pairs, initialState, lengths, dOut, made, one, row])) t.dispose();
    await device.idle();
  });

test('a plan with turns cuts at 32,768 tokens, so that stepped angles keep their digits', () => {
  const k = zeros(device, [1, 100_000, 1, 16], { dtype: 'f16' });
  const theta = zeros(device, [1, 16]);
  const turns = turnsOf(turningOf('concat', theta, 0), 'keys');
  const decay = decayTensor(device, [-1]);
  expect(planFor(k, k, 100_000).segmentTokens).toBe(100_000);
  expect(planFor(k, k, 100_000, turns).segmentTokens).toBe(32_768);
  expect(planFor(k, k, 500, turns).segmentTokens).toBe(500);
  const { ranges, segmentTokens } = planFor(k, k, undefined, turns, decay);
  expect(ranges?.longest ?? segmentTokens).toBeLessThanOrEqual(32_768);
  for (const t of [k, theta, decay]) t.dispose();
});
