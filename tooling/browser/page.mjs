// Runs in the browser: the built packages against float64 loops. Leaves its outcomes on `globalThis.outcomes`.
import { HeedError, full, openDevice, tensor } from '@heed/core';

/** @typedef {import('@heed/core').Device} Device */
/** @type {Record<string, (device: Device) => Promise<string>>} name -> test; it throws, or returns what to print */
const TESTS = {
  'the device names its adapter': async (device) => {
    if (device.report.backend !== 'browser') throw new Error(`its backend is ${device.report.backend}`);
    return `${device.report.name}, tier ${device.report.tier}`;
  },

  'values come back as they were written': async (device) => {
    const values = Float32Array.from({ length: 1001 }, (_, index) => index / 7);
    const written = tensor(device, values, [7, 143]);
    const ones = full(device, [3], 1);
    const read = await written.read();
    const constant = await ones.read();
    written.dispose();
    ones.dispose();
    const wrong = values.findIndex((value, index) => value !== read[index]);
    if (wrong >= 0 || constant.some((value) => value !== 1)) throw new Error(`element ${wrong} is ${read[wrong]}`);
    return `${values.length} values`;
  },
};

/** @type {{ name: string, error: string, detail: string }[]} */
const outcomes = [];
try {
  const device = await openDevice();
  for (const [name, test] of Object.entries(TESTS)) {
    const live = device.memory().tensors;
    try {
      const detail = await test(device);
      const left = device.memory().tensors - live;
      outcomes.push({ name, error: left === 0 ? '' : `it left ${left} live tensors`, detail });
    } catch (error) {
      outcomes.push({ name, error: error instanceof Error ? error.message : String(error), detail: '' });
    }
  }
  await device.close();
} catch (error) {
  outcomes.push({
    name: 'a device opens',
    error: error instanceof HeedError ? `${error.code}: ${error.message}` : String(error),
    detail: '',
  });
}
Reflect.set(globalThis, 'outcomes', outcomes);
