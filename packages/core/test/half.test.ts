import { expect, test } from 'vitest';
import fc from 'fast-check';
import {
  bfloat16ArrayToFloat32,
  float32ArrayToBfloat16,
  float32ArrayToHalf,
  float32ToHalf,
  halfArrayToFloat32,
  halfToFloat32,
} from '../src/tensor/half.js';

const allHalves = Uint16Array.from({ length: 65536 }, (_, i) => i);
const isNaNHalf = (half: number): boolean => (half & 0x7fff) > 0x7c00;

/** The definition in plain arithmetic: sign, exponent and mantissa of binary16. */
function valueOf(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const mantissa = half & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1024 + mantissa) * 2 ** (exponent - 25));
}

test('every half has the value of its definition, one by one and as an array', () => {
  const values = halfArrayToFloat32(allHalves);
  const wrong = allHalves.filter((half) => !Object.is(values[half], valueOf(half)) || !Object.is(halfToFloat32(half), valueOf(half)));
  expect([...wrong]).toEqual([]);
});

test('every half survives the way to f32 and back, NaN as a quiet NaN', () => {
  const back = float32ArrayToHalf(halfArrayToFloat32(allHalves));
  const wrong = allHalves.filter((half) => (isNaNHalf(half) ? !isNaNHalf(back[half] as number) : back[half] !== half));
  expect([...wrong]).toEqual([]);
});

test('between two neighbours the nearer one is taken, and the even one at the middle', () => {
  const wrong = allHalves.slice(0, 0x7bff).filter((half) => {
    const middle = (valueOf(half) + valueOf(half + 1)) / 2;
    const step = (valueOf(half + 1) - valueOf(half)) / 512;
    return (
      float32ToHalf(middle) !== half + (half % 2) ||
      float32ToHalf(middle - step) !== half ||
      float32ToHalf(-(middle + step)) !== ((half + 1) | 0x8000)
    );
  });
  expect([...wrong]).toEqual([]);
});

test('the ends of the range', () => {
  expect(float32ToHalf(65519.99)).toBe(0x7bff);
  expect(float32ToHalf(65520)).toBe(0x7c00);
  expect(float32ToHalf(-1e30)).toBe(0xfc00);
  expect(float32ToHalf(2 ** -25)).toBe(0);
  expect(float32ToHalf(2 ** -25 * 1.001)).toBe(1);
  expect(float32ToHalf(-0)).toBe(0x8000);
  expect(isNaNHalf(float32ToHalf(NaN))).toBe(true);
});

test('bfloat16 is the upper half of an f32, rounded to nearest even', () => {
  expect([...float32ArrayToBfloat16(Float32Array.of(1, -2.5, 1 + 2 ** -8, 1 + 3 * 2 ** -8, Infinity, 3.4e38))]).toEqual([
    0x3f80, 0xc020, 0x3f80, 0x3f82, 0x7f80, 0x7f80,
  ]);
  const nan = float32ArrayToBfloat16(new Float32Array(Uint32Array.of(0x7f800001).buffer));
  expect(bfloat16ArrayToFloat32(nan)[0]).toBeNaN();
  fc.assert(
    fc.property(fc.float({ noNaN: true }), (x) => {
      const near = bfloat16ArrayToFloat32(float32ArrayToBfloat16(Float32Array.of(x)))[0] as number;
      return !Number.isFinite(near) || Math.abs(near - x) <= Math.max(Math.abs(x) * 2 ** -8, 2 ** -134);
    }),
    { seed: 3, numRuns: 500 },
  );
});

test('a view into a larger buffer converts its own part only', () => {
  const view = new Float32Array(Float32Array.of(9, 1, 2, 9).buffer, 4, 2);
  expect([...float32ArrayToHalf(view)]).toEqual([0x3c00, 0x4000]);
});
