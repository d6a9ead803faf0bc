import { add, createKvCache, type Device, scope, type Tensor } from '@heed/core';
import { input } from './inputs.js';
import { Stopwatch } from './measure/stopwatch.js';
import type { OverheadFigures } from './record.js';

const OPS = 1000;
const PASSES = 6;
const DECODE_STEPS = 32;

/**
 * The CPU's side: what one dispatch costs in a chain of 1,000 small ops, recorded and submitted, not waited for; and whether decoding
 * over a cache leaves anything alive.
 */
export async function measureOverhead(device: Device): Promise<OverheadFigures> {
  const x = input(device, 'x', [256]);
  const y = input(device, 'y', [256]);
  const chain = (): Tensor =>
    scope(() => {
      let sum = x;
      for (let i = 0; i < OPS; i++) {
        const next = add(sum, y);
        if (sum !== x) sum.dispose();
        sum = next;
      }
      return sum;
    });
  const microsecondsADispatch: number[] = [];
  for (let pass = 0; pass < PASSES; pass++) {
    await device.idle();
    const started = performance.now();
    const out = chain();
    device.recorder.flush();
    microsecondsADispatch.push(((performance.now() - started) * 1000) / OPS);
    await device.idle();
    out.dispose();
  }
  let gpu: number | undefined;
  if (device.capabilities.timestamps) {
    const stopwatch = new Stopwatch(device, 0);
    const [, second] = await stopwatch.gpuMs(() => [chain()], 2, false);
    if (second !== undefined) gpu = (second * 1000) / OPS;
    stopwatch.dispose();
  }
  [x, y].forEach((t) => t.dispose());
  return {
    chain: { ops: OPS, microsecondsADispatch, ...(gpu !== undefined && { gpuMicrosecondsADispatch: gpu }) },
    decode: await decodeSteps(device),
  };
}

/** Steps over a cache: append one token, attend. */
async function decodeSteps(device: Device): Promise<{ steps: number; liveBytesGrown: number }> {
  const [heads, headDim] = [4, 64];
  const cache = createKvCache(device, { batch: 1, kvHeads: heads, headDim, capacity: 256, dtype: 'f32' });
  const [q, k, v] = ['q', 'k', 'v'].map((name) => input(device, name, [1, 1, heads, headDim])) as [Tensor, Tensor, Tensor];
  const step = (): void => {
    cache.append(k, v);
    cache.attend(q).dispose();
  };
  step();
  await device.idle();
  const before = device.memory().liveBytes;
  for (let i = 0; i < DECODE_STEPS; i++) step();
  await device.idle();
  const liveBytesGrown = device.memory().liveBytes - before;
  for (const t of [q, k, v]) t.dispose();
  cache.dispose();
  return { steps: DECODE_STEPS, liveBytesGrown };
}
