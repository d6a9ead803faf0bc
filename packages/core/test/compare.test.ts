import { expect, test } from 'vitest';
import { f64, indexOf, randomArray, toFloat32 } from '../src/float64.js';
import { compare, expectClose, expectErrorRatio, shareText, worstShare } from '../src/testing/compare.js';
import { RandomStream } from '../src/random/stream.js';

const tolerance = { atol: 0.1, rtol: 0.01 };

test('the share is the largest error over its own bound', () => {
  const result = compare('o', f64([2, 2], [10.1, 0.05, 1, 2]), f64([2, 2], [10, 0, 1, 2]), 'error', tolerance);
  expect(result.pass).toBe(true);
  expect(result.share).toBeCloseTo(0.5, 12);
  expect(result.failure).toBeUndefined();
});

test('the error ratio is the RMS error over the RMS of the reference', () => {
  const { errorRatio } = compare('o', f64([2], [3, 5]), f64([2], [3, 4]), 'error', tolerance);
  expect(errorRatio).toBeCloseTo(1 / 5, 12);
  expect(compare('o', f64([4], [2, 0, 0, 0]), f64([4]), 'error', tolerance).errorRatio).toBe(1);
});

test('a failure names the worst element, what came and what was expected', () => {
  const result = compare('grad_q', f64([2, 3], [0, 0, 0, 0, 1, 0.2]), f64([2, 3]), 'error', tolerance);
  expect(result.pass).toBe(false);
  expect(result.failure).toBe(
    'grad_q: 2 of 6 values are off, the worst at [1, 1] by 10.0 x its tolerance: got 1, expected 0 (atol 0.1, rtol 0.01; error ratio 4.16e-1)',
  );
});

test('NaN on either side fails, and so does an infinity on one side', () => {
  const one = f64([1], [1]);
  const nan = f64([1], [NaN]);
  const infinite = f64([1], [-Infinity]);
  expect(compare('o', nan, one, 'error', tolerance).failure).toBe('o: the output is NaN at [0]');
  expect(compare('o', one, nan, 'error', tolerance).failure).toBe('o: the reference is NaN at [0]');
  expect(compare('o', nan, nan, 'exact', tolerance).pass).toBe(false);
  expect(compare('o', one, infinite, 'error', tolerance).share).toBe(Infinity);
  expect(compare('o', infinite, one, 'error', tolerance).share).toBe(Infinity);
  expect(compare('o', infinite, infinite, 'error', tolerance)).toMatchObject({ pass: true, share: 0 });
});

test('a zero tolerance asks for equality', () => {
  const none = { atol: 0, rtol: 0 };
  expect(compare('o', f64([1], [2]), f64([1], [2]), 'error', none).share).toBe(0);
  expect(compare('o', f64([1], [2.5]), f64([1], [2]), 'error', none)).toMatchObject({ pass: false, share: Infinity });
});

test('another shape fails and says both', () => {
  expect(compare('o', f64([2, 1]), f64([1, 2]), 'error', tolerance).failure).toBe('o: shape [2, 1]; expected [1, 2]');
});

test('exact wants equal numbers, u32 equal bit patterns', () => {
  const patterns = { shape: [2], values: Int32Array.of(-1, 7) };
  expect(compare('code', { shape: [2], values: Uint32Array.of(0xffffffff, 7) }, patterns, 'u32', tolerance).pass).toBe(true);
  expect(compare('code', { shape: [2], values: Uint32Array.of(0xffffffff, 7) }, patterns, 'exact', tolerance).failure).toBe(
    'code: 1 of 2 values differ, the first at [0]: got 4294967295, expected -1',
  );
  expect(compare('code', { shape: [2], values: Uint32Array.of(0xfffffffe, 7) }, patterns, 'u32', tolerance).failure).toContain(
    'got 4294967294, expected 4294967295',
  );
});

test('sets compare row by row, in any order, -1 being unused', () => {
  const expected = f64([2, 3], [1, 2, -1, 0, 1, 2]);
  expect(compare('indices', f64([2, 3], [-1, 2, 1, 2, 0, 1]), expected, 'set', tolerance).pass).toBe(true);
  expect(compare('indices', f64([2, 3], [1, 2, 2, 0, 1, 2]), expected, 'set', tolerance).failure).toBe(
    'indices: 1 of 2 rows hold other indices, the first at [0]: got {1, 2, 2}, expected {1, 2}',
  );
  expect(compare('indices', f64([2, 3], [1, -1, -1, 0, 1, 2]), expected, 'set', tolerance).pass).toBe(false);
  expect(compare('indices', f64([2, 0]), f64([2, 0]), 'set', tolerance).pass).toBe(true);
});

test('the expectations throw with the failure text', () => {
  expect(() => expectClose('o', f64([1], [1]), f64([1], [0]))).toThrow('o: 1 of 1 values are off, the worst at [0]');
  expectClose('o', f64([1], [1.00005]), f64([1], [1]));
  expect(() => expectErrorRatio('o', f64([2], [1, 1.1]), f64([2], [1, 1]), 0.05)).toThrow('error ratio 7.07e-2 is above 0.05; o: 1 of 2');
  expectErrorRatio('o', f64([2], [1, 1.1]), f64([2], [1, 1]), 0.08);
});

test('shares read well', () => {
  expect([0, 0.5, 12.345, 12345, 1e-7, Infinity].map(shareText)).toEqual(['0', '0.500', '12.3', '1.2e+4', '1.0e-7', 'infinite']);
  expect(
    worstShare([
      { pass: true, share: 0.2, errorRatio: 0 },
      { pass: false, share: 3, errorRatio: 0 },
    ]),
  ).toBe(3);
});

test('arrays: a shape that the values do not fill is refused, random ones are f32', () => {
  expect(() => f64([2, 2], [1])).toThrow('testing: 1 values for shape [2, 2]; it holds 4');
  expect(indexOf([2, 3, 4], 23)).toEqual([1, 2, 3]);
  const drawn = randomArray(new RandomStream(1), [5], 0.3);
  expect([...toFloat32(drawn)]).toEqual([...drawn.values]);
});
