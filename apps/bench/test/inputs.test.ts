import { openDevice, slice, type Device } from '@heed/core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { input, inputAt } from '../src/inputs.js';
import { rowError } from '../src/samples.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(() => device.close());

test('a tensor longer than one dispatch writes holds the same numbers to its end', async () => {
  const made = input(device, 'q', [1, 2 ** 18 + 1, 8, 8]);
  for (const token of [0, 2 ** 18]) {
    const row = slice(made, 1, token, token + 1);
    expect(Array.from(await row.read(), Number)).toEqual(Array.from({ length: 64 }, (_, i) => inputAt('q')(64 * token + i)));
    row.dispose();
  }
  made.dispose();
});

test('the numbers are those of the Python peers', () => {
  const q = inputAt('q');
  expect([0, 1, 2, 3, 4, 5].map(q)).toEqual([0.9609375, -0.125, 0.7578125, 3.2421875, -1.5703125, 1.125]);
  expect([7, 1_000_003, 2 ** 30 + 5].map(inputAt('dOut'))).toEqual([-0.6171875, 1.5078125, -1.1796875]);
});

test('host and device make the same numbers, coarse and fine', async () => {
  for (const grain of ['coarse', 'fine'] as const) {
    const made = input(device, 'k', [1, 5, 2, 4], { grain });
    expect(Array.from(await made.read(), Number)).toEqual(Array.from({ length: 40 }, (_, i) => inputAt('k', grain)(i)));
    made.dispose();
  }
});

test('coarse numbers are exact in f16, and nearly normal', async () => {
  const made = input(device, 'v', [1, 256, 4, 16], { dtype: 'f16' });
  const values = Array.from(await made.read(), Number);
  made.dispose();
  expect(values).toEqual(Array.from({ length: values.length }, (_, i) => inputAt('v')(i)));
  const mean = values.reduce((a, b) => a + b) / values.length;
  const deviation = Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length);
  expect(Math.abs(mean)).toBeLessThan(0.05);
  expect(deviation).toBeCloseTo(1.155, 1);
});

test('a sparse cotangent is zero but for every n-th token', async () => {
  const made = input(device, 'dOut', [1, 8, 1, 4], { every: 4 });
  const values = Array.from(await made.read(), Number);
  made.dispose();
  values.forEach((value, i) => expect(value === 0).toBe(Math.floor(i / 4) % 4 !== 3));
});

test('every batch entry has numbers of its own, and its own tokens left out', async () => {
  const made = input(device, 'k', [3, 6, 2, 3]);
  expect(Array.from(await made.read(), Number)).toEqual(Array.from({ length: 108 }, (_, i) => inputAt('k')(i)));
  made.dispose();
  const sparse = input(device, 'dOut', [2, 6, 1, 4], { every: 4 });
  const values = Array.from(await sparse.read(), Number);
  sparse.dispose();
  values.forEach((value, i) => expect(value).toBe((Math.floor(i / 4) % 6) % 4 === 3 ? inputAt('dOut')(i) : 0));
});

test('rows below the smallest normal number of their format are held against that number, others against themselves', () => {
  expect(rowError([1.5, 2], [1, 2])).toBeCloseTo(0.5 / Math.sqrt(5), 12);
  expect(rowError([1.5, 2], [1, 2], 'f16')).toBeCloseTo(0.5 / Math.sqrt(5), 12);
  // half a step of subnormal f16 off: a row of 4e-7 cannot be stored better
  expect(rowError([2 ** -25, 0], [4e-7, 4e-7], 'f32')).toBeGreaterThan(0.5);
  expect(rowError([4e-7 + 2 ** -25, 4e-7], [4e-7, 4e-7], 'f16')).toBeLessThan(4e-4);
  expect(rowError([NaN], [1], 'f16')).toBe(Infinity);
});
