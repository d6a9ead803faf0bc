import { openDevice, type Device } from '@heed/core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { kernels } from '../src/kernels.js';
import { measure } from '../src/measure.js';
import { readOptions } from '../src/options.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(() => device.close());

test.each(Object.entries(kernels))('%s is measured with a small error, and leaves nothing behind', async (name, kernel) => {
  const options = readOptions(['--repeats', '1', '--window', '9', '--head-dim', '16', '--dtype', 'f32'])(device);
  const live = device.memory().tensors;
  const measurement = await measure(device, name, kernel, 330, options);
  expect(measurement.error).toBeLessThan(1e-4);
  expect(measurement.wallMs).toBeGreaterThan(0);
  expect(measurement.peakBytes).toBeGreaterThan(0);
  expect(device.memory().tensors).toBe(live);
});

test('a window counts the pairs that it keeps', () => {
  const options = readOptions(['--window', '3'])({ isSoftware: true });
  expect(kernels['attention-window']?.pairs(5, options)).toBe(1 + 2 + 3 + 3 + 3);
  expect(kernels['attention-causal']?.pairs(5, options)).toBe(15);
});
