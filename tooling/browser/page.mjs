// Runs in the browser: the built packages against float64 loops. Leaves its outcomes on `globalThis.outcomes`.
import { HeedError, RandomStream, full, grad, mean, openDevice, scope, tensor } from '@heed/core';
import { attention } from '@heed/core/attention';
import { decayFromSlopes, lightning2, lightning2Slopes } from '@heed/linear/lightning2';
import { causalAttention, decayedLinearAttention } from './definitions.mjs';

/** @typedef {import('@heed/core').Device} Device */

const sizes = { tokens: 131, heads: 2, headDim: 40 };
const values = ['q', 'k', 'v'].map((name) => new RandomStream(7, name).normal(sizes.tokens * sizes.heads * sizes.headDim));
const [q, k, v] = /** @type {[Float32Array, Float32Array, Float32Array]} */ (values);

/** Throws when the largest error exceeds a share of the largest expected value. @param {ArrayLike<number>} got @param {Float64Array} expected */
function compare(got, expected) {
  let worst = 0;
  let largest = 0;
  expected.forEach((value, i) => {
    const error = Math.abs(value - Number(got[i]));
    worst = Number.isFinite(error) ? Math.max(worst, error) : Infinity;
    largest = Math.max(largest, Math.abs(value));
  });
  const text = `error ${(worst / largest).toExponential(1)} of the largest value`;
  if (got.length !== expected.length || !(worst <= 1e-5 * largest)) throw new Error(text);
  return text;
}

/** q, k and v on the device, freed after the call. @param {Device} device @param {(q: import('@heed/core').Tensor, k: import('@heed/core').Tensor, v: import('@heed/core').Tensor) => import('@heed/core').Tensor} call */
async function outputOf(device, call) {
  const shape = [1, sizes.tokens, sizes.heads, sizes.headDim];
  const out = scope(() => call(tensor(device, q, shape), tensor(device, k, shape), tensor(device, v, shape)));
  const read = await out.read();
  out.dispose();
  return read;
}

/** @type {Record<string, (device: Device) => Promise<string>>} name -> test; it throws, or returns what to print */
const TESTS = {
  'the device names its adapter': async (device) => {
    if (device.report.backend !== 'browser') throw new Error(`its backend is ${device.report.backend}`);
    return `${device.report.name}, tier ${device.tier}`;
  },

  'values come back as they were written': async (device) => {
    const written = tensor(device, q);
    const ones = full(device, [3], 1);
    const read = await written.read();
    const constant = await ones.read();
    written.dispose();
    ones.dispose();
    const wrong = q.findIndex((value, index) => value !== read[index]);
    if (wrong >= 0 || constant.some((value) => value !== 1)) throw new Error(`element ${wrong} is ${read[wrong]}`);
    return `${q.length} values`;
  },

  'causal attention is what its definition says': async (device) =>
    compare(await outputOf(device, (...x) => attention(...x, { causal: true })), causalAttention(q, k, v, sizes)),

  'lightning2 is what its recurrence says': async (device) => {
    const decay = decayFromSlopes(lightning2Slopes({ heads: sizes.heads }));
    return compare(await outputOf(device, (...x) => lightning2(...x, { decay })), decayedLinearAttention(q, k, v, decay, sizes));
  },

  'gradients reach q through attention': async (device) => {
    const slope = await outputOf(device, (x, y, z) =>
      grad((/** @type {import('@heed/core').Tensor} */ p) => mean(attention(p, y, z, { causal: true })))(x),
    );
    // finite differences of the definition in float64, at a place in the middle
    const place = (64 * sizes.heads + 1) * sizes.headDim + 7;
    const step = 1e-4;
    const average = (/** @type {number} */ change) => {
      const moved = Float64Array.from(q);
      moved[place] = Number(moved[place]) + change;
      return causalAttention(moved, k, v, sizes).reduce((sum, value) => sum + value, 0) / q.length;
    };
    const expected = (average(step) - average(-step)) / (2 * step);
    const error = Math.abs(Number(slope[place]) - expected) / Math.abs(expected);
    if (!(error < 1e-3)) throw new Error(`the slope is ${slope[place]}, finite differences give ${expected}`);
    return `error ${error.toExponential(1)}`;
  },
};

/** @type {{ name: string, error: string, detail: string }[]} */
const outcomes = [];
for (const tier of /** @type {const} */ (['baseline', 'subgroups'])) {
  try {
    const device = await openDevice({ tier });
    for (const [name, test] of Object.entries(TESTS)) {
      const live = device.memory().tensors;
      const title = `${tier}: ${name}`;
      try {
        const detail = await test(device);
        const left = device.memory().tensors - live;
        outcomes.push({ name: title, error: left === 0 ? '' : `it left ${left} live tensors`, detail });
      } catch (error) {
        outcomes.push({ name: title, error: error instanceof Error ? error.message : String(error), detail: '' });
      }
    }
    await device.close();
  } catch (error) {
    outcomes.push({
      name: `${tier}: a device opens`,
      error: error instanceof HeedError ? `${error.code}: ${error.message}` : String(error),
      detail: '',
    });
  }
}
Reflect.set(globalThis, 'outcomes', outcomes);
