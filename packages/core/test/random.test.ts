import { expect, test } from 'vitest';
import fc from 'fast-check';
import { mulHigh, philox4x32 } from '../src/random/philox.js';
import { RandomStream, drawWords, randomKey, streamId } from '../src/random/stream.js';

const hex = (words: readonly number[]): string => words.map((w) => w.toString(16).padStart(8, '0')).join(' ');

test('the known answers of Random123 come out', () => {
  expect(hex(philox4x32([0, 0, 0, 0], [0, 0]))).toBe('6627e8d5 e169c58d bc57ac4c 9b00dbd8');
  const ones = 0xffffffff;
  expect(hex(philox4x32([ones, ones, ones, ones], [ones, ones]))).toBe('408f276d 41c83b0e a20bc7c6 6d5451fd');
  expect(hex(philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]))).toBe(
    'd16cfe09 94fdcceb 5001e420 24126ea1',
  );
});

test('the high half of a product is exact', () => {
  const word = fc.integer({ min: 0, max: 0xffffffff });
  fc.assert(
    fc.property(word, word, (a, b) => mulHigh(a, b) === Number((BigInt(a) * BigInt(b)) >> 32n)),
    { seed: 1, numRuns: 500 },
  );
});

test('FNV-1a of the published test strings', () => {
  expect(streamId('').toString(16)).toBe('811c9dc5');
  expect(streamId('a').toString(16)).toBe('e40c292c');
  expect(streamId('foobar').toString(16)).toBe('bf9cf968');
});

test('the key is the low seed word and the high one xor the stream', () => {
  expect(randomKey(5 * 2 ** 32 + 7, 0x0f)).toEqual([7, 5 ^ 0x0f]);
});

test('element i is word i % 4 of the counter (i / 4 low, i / 4 high, step, op)', () => {
  const draw = new RandomStream(3, 'init').at({ step: 9, op: 4 }).take();
  expect(draw).toEqual({ key: randomKey(3, streamId('init')), step: 9, op: 4 });
  expect(drawWords(draw, 2 ** 32 + 6)).toEqual(philox4x32([6, 1, 9, 4], draw.key));
  const uniform = new RandomStream(3, 'init').at({ step: 9, op: 4 }).uniform(7);
  expect(uniform[6]).toBe((drawWords(draw, 1)[2] >>> 8) / 2 ** 24);
});

test('uniform numbers fill [0, 1) evenly and are f32', () => {
  const values = new RandomStream(1).uniform(20_001);
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  expect(Math.abs(mean - 0.5)).toBeLessThan(0.01);
  expect(Math.min(...values)).toBeGreaterThanOrEqual(0);
  expect(Math.max(...values)).toBeLessThan(1);
});

test('normal numbers have mean 0, variance 1 and a fourth moment of 3', () => {
  const values = new RandomStream(2).normal(40_003);
  const moment = (power: number): number => values.reduce((sum, x) => sum + x ** power, 0) / values.length;
  expect(Math.abs(moment(1))).toBeLessThan(0.02);
  expect(Math.abs(moment(2) - 1)).toBeLessThan(0.03);
  expect(Math.abs(moment(4) - 3)).toBeLessThan(0.2);
});

test('a shorter draw is a prefix of a longer one', () => {
  const long = new RandomStream(4, 'noise').normal(11);
  expect(new RandomStream(4, 'noise').normal(6)).toEqual(long.slice(0, 6));
});

test('streams of other names, steps and draws give other numbers, the same ones the same', () => {
  const root = new RandomStream(11);
  const draws = [
    root.stream('dropout').uniform(8),
    root.stream('init').uniform(8),
    root.stream('init').stream('dropout').uniform(8),
    root.at({ step: 1 }).stream('dropout').uniform(8),
    new RandomStream(12).stream('dropout').uniform(8),
    root.uniform(8),
    root.uniform(8),
  ];
  expect(new Set(draws.map(String)).size).toBe(draws.length);
  expect(root.position).toEqual({ step: 0, op: 2 });
  expect(new RandomStream(11, 'dropout').uniform(8)).toEqual(draws[0]);
  expect(new RandomStream(11, '', { step: 0, op: 1 }).uniform(8)).toEqual(draws[6]);
});

test('a permutation holds every number once and is not the identity', () => {
  const order = new RandomStream(5).permutation(257);
  expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 257 }, (_, i) => i));
  expect([...order]).not.toEqual(Array.from({ length: 257 }, (_, i) => i));
  expect(new RandomStream(5).permutation(0)).toHaveLength(0);
});

test('every order of three is about equally likely', () => {
  const stream = new RandomStream(6);
  const counts = new Map<string, number>();
  for (let i = 0; i < 6000; i++) {
    const order = stream.permutation(3).join('');
    counts.set(order, (counts.get(order) ?? 0) + 1);
  }
  expect(counts.size).toBe(6);
  for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(150);
});

test('integers stay below their bound, also for a bound that rejects half of the words', () => {
  const bound = 2 ** 31 + 1;
  const values = new RandomStream(7).integers(2000, bound);
  expect(Math.max(...values)).toBeLessThan(bound);
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  expect(Math.abs(mean / bound - 0.5)).toBeLessThan(0.03);
});

test('a bad seed, bound or count says what to use', () => {
  expect(() => new RandomStream(-1)).toThrow('random: seed is -1; use an integer from 0 to 2^53 - 1');
  expect(() => new RandomStream(0.5)).toThrow('seed is 0.5');
  expect(() => new RandomStream(0).integers(1, 0)).toThrow('bound is 0');
  expect(() => new RandomStream(0).uniform(-1)).toThrow('ask for a whole number');
  expect(() => new RandomStream(0).at({ step: 2 ** 32 })).toThrow('step is 4294967296');
});
