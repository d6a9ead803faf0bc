import fc from 'fast-check';
import { expect, test } from 'vitest';
import { bitsByPosition } from '../src/record.js';

test('stretches are means, and the last one takes what is left over', () => {
  expect(bitsByPosition([1, 3, 2, 6, 5], 3)).toEqual([
    { position: 0.5, bits: 2 },
    { position: 2.5, bits: 4 },
    { position: 4, bits: 5 },
  ]);
});

test('short texts keep every token, empty ones give nothing', () => {
  expect(bitsByPosition([2, 4]).map(({ bits }) => bits)).toEqual([2, 4]);
  expect(bitsByPosition([])).toEqual([]);
  expect(() => bitsByPosition([1], 0)).toThrow('0 stretches; ask for 1 or more');
});

test('the stretches weighed by their lengths have the mean of all tokens', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 64 }), { minLength: 1, maxLength: 700 }),
      fc.integer({ min: 1, max: 200 }),
      (bits, stretches) => {
        const points = bitsByPosition(bits, stretches);
        const length = Math.ceil(bits.length / stretches);
        const sum = points.reduce((total, point, i) => total + point.bits * Math.min(length, bits.length - i * length), 0);
        expect(points.length).toBeLessThanOrEqual(stretches);
        expect(sum).toBeCloseTo(
          bits.reduce((total, value) => total + value, 0),
          6,
        );
      },
    ),
    { numRuns: 100, seed: 1 },
  );
});
