import { openDevice, type Device } from '@heed/core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { entriesOf } from '../src/entries/index.js';
import { Clock } from '../src/measure/clock.js';
import { measure } from '../src/measure/measure.js';
import { Stopwatch } from '../src/measure/stopwatch.js';

let device: Device;
let stopwatch: Stopwatch;
beforeAll(async () => {
  device = await openDevice({ exactTimestamps: true });
  stopwatch = new Stopwatch(device, 1 << 16);
});
afterAll(async () => {
  stopwatch.dispose();
  await device.close();
});

const effort = { budgetMs: 1, least: 1, most: 1, warmUpMs: 0 };
const small = ['lightning2/f32/d64/64/forward', 'fna2d/8x8/5x5/f32/d64/forward', 'zeta/64/forward'];

test.each(small)('%s is measured with a small error, and leaves nothing behind', async (id) => {
  const entry = entriesOf(device, { suite: 'quick', software: true, sizes: [64] }).find((one) => one.id === id);
  if (!entry) throw new Error(`there is no entry ${id}`);
  const live = device.memory().tensors;
  const { figures, error } = await measure(device, { stopwatch }, entry, effort);
  expect(error()).toBeLessThan(entry.tolerance);
  expect(figures.ms).toBeGreaterThan(0);
  expect(figures.bytes).toBeGreaterThanOrEqual(figures.memory?.formula ?? Infinity);
  expect(device.memory().tensors).toBe(live);
});

test('a backward pass is held against gradients in float64', async () => {
  const entry = entriesOf(device, { suite: 'quick', software: true, sizes: [40] }).find(
    ({ id }) => id === 'attention/causal/f32/d64/40/backward',
  );
  const { error } = await measure(device, { stopwatch }, entry as NonNullable<typeof entry>, effort);
  expect(error()).toBeLessThan(1e-4);
});

test('the clock is a share of the fastest that was read, and a slower one counts as less', async () => {
  const clock = new Clock(device, stopwatch, 16);
  const readings = [await clock.read(), await clock.read()];
  const fastest = Math.min(...readings);
  expect(fastest).toBeGreaterThan(0);
  expect(readings.map((ms) => clock.share(ms))).toEqual(readings.map((ms) => fastest / ms));
  expect(clock.share(2 * fastest)).toBe(0.5);
});

test('an entry measured with a clock tells its reading, and leaves nothing behind', async () => {
  const entry = entriesOf(device, { suite: 'quick', software: true, sizes: [64] }).find(({ id }) => id === small[0]);
  if (!entry) throw new Error(`there is no entry ${small[0]}`);
  const live = device.memory().tensors;
  const clock = new Clock(device, stopwatch, 16);
  const { pulseMs } = await measure(device, { stopwatch, clock }, entry, effort);
  expect(pulseMs).toBeGreaterThan(0);
  expect(device.memory().tensors).toBe(live);
});

test('ids of the targets are among the entries of a GPU', () => {
  const ids = entriesOf(device, { suite: 'kernels', software: false, sizes: undefined }).map(({ id }) => id);
  expect(ids).toEqual(
    expect.arrayContaining([
      'matmul/f16/4096',
      'matmul/f32/4096',
      'attention/causal/f16/d64/16384/forward',
      'attention/causal/f16/d128/16384/forward',
      'attention/causal/f16/d64/16384/backward',
      'attention/causal/f32/d64/4096/forward',
      'lightning2/f16/d64/65536/forward',
      'lightning2/f16/d128/65536/forward',
      'lightning2/f16/d64/65536/backward',
      'lightning/f16/d64/65536/forward',
      'window1024/f16/d64/16384/forward',
      'fna2d/128x128/13x13/f16/d64/forward',
      'decode/f16/hq32hkv8/d128/131072',
      'decode/f16/hq32hkv8/d128/32768',
      'zeta/65536/forward',
    ]),
  );
  expect(new Set(ids).size).toBe(ids.length);
});
