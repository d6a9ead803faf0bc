import { HeedError } from '../errors.js';
import { elements, indexOf } from '../float64.js';

/**
 * How an output is held against its reference:
 * - `error`: elementwise |got - expected| <= atol + rtol |expected|;
 * - `exact`: equal numbers (integers, masks);
 * - `set`: each row of the last axis holds the same indices in any order, -1 stands for unused;
 * - `u32`: equal bit patterns, whether stored as i32 or as u32.
 */
export type CompareRule = 'error' | 'exact' | 'set' | 'u32';

/** Elementwise bound: atol + rtol |expected|. */
export interface Tolerance {
  readonly atol: number;
  readonly rtol: number;
}

/** What a comparison found. */
export interface Comparison {
  readonly pass: boolean;
  /** Largest |got - expected| / (atol + rtol |expected|): passes up to 1; for the other rules 0 or Infinity. */
  readonly share: number;
  /** Root mean square of the error over that of the reference (the error itself where the reference is 0); 0 for the other rules. */
  readonly errorRatio: number;
  /** Why it failed, with the worst element; absent when it passed. */
  readonly failure?: string;
}

/** Numbers with a shape: `F64Array` and anything like it. */
export interface Values {
  readonly shape: readonly number[];
  readonly values: ArrayLike<number>;
}

/**
 * Compares an output with its reference. NaN on either side fails, as does infinity unless both are the same one.
 * @param name stands at the head of the failure text
 */
export function compare(name: string, got: Values, expected: Values, rule: CompareRule, tolerance: Tolerance): Comparison {
  if (got.shape.join() !== expected.shape.join()) {
    return refused(`${name}: shape [${got.shape.join(', ')}]; expected [${expected.shape.join(', ')}]`);
  }
  const count = elements(expected.shape);
  if (got.values.length !== count || expected.values.length !== count) {
    return refused(`${name}: ${got.values.length} values against ${expected.values.length} of the reference; the shape holds ${count}`);
  }
  for (const [side, { values }] of [['reference', expected] as const, ['output', got] as const]) {
    const at = firstNaN(values);
    if (at >= 0) return refused(`${name}: the ${side} is NaN at [${indexOf(expected.shape, at).join(', ')}]`);
  }
  if (rule === 'error') return compareError(name, got, expected, tolerance);
  if (rule === 'set') return compareSets(name, got, expected);
  return compareExact(name, got, expected, rule === 'u32' ? (x) => x >>> 0 : (x) => x);
}

/**
 * For tests: throws unless every element is within the bound.
 * @param tolerance default atol and rtol 1e-4
 * @throws HeedError KERNEL_FAILED with the worst element
 */
export function expectClose(name: string, got: Values, expected: Values, tolerance: Tolerance = { atol: 1e-4, rtol: 1e-4 }): void {
  const { failure } = compare(name, got, expected, 'error', tolerance);
  if (failure !== undefined) throw new HeedError('KERNEL_FAILED', failure);
}

/**
 * For tests of low precision and long sums: throws when the root mean square error exceeds `bound` times that of the reference.
 * @throws HeedError KERNEL_FAILED with the ratio and the worst element
 */
export function expectErrorRatio(name: string, got: Values, expected: Values, bound: number): void {
  // With atol 0 and rtol 0 the text names the element that is furthest off.
  const { errorRatio, failure } = compare(name, got, expected, 'error', { atol: 0, rtol: 0 });
  if (errorRatio <= bound) return;
  throw new HeedError('KERNEL_FAILED', `error ratio ${errorRatio.toExponential(2)} is above ${bound}; ${failure}`);
}

function compareError(name: string, got: Values, expected: Values, { atol, rtol }: Tolerance): Comparison {
  let share = 0;
  let worst = 0;
  let worstError = 0;
  let failures = 0;
  let errorSquares = 0;
  let expectedSquares = 0;
  for (let i = 0; i < expected.values.length; i++) {
    const want = expected.values[i] as number;
    const have = got.values[i] as number;
    // Equal infinities differ by NaN.
    const error = have === want ? 0 : Math.abs(have - want);
    const bound = atol + rtol * Math.abs(want);
    const part = error === 0 ? 0 : Number.isFinite(error) ? error / bound : Infinity;
    if (!(part <= 1)) failures++;
    if (part > share || (part === share && error > worstError)) {
      share = part;
      worst = i;
      worstError = error;
    }
    errorSquares += error * error;
    if (Number.isFinite(want)) expectedSquares += want * want;
  }
  const count = Math.max(1, expected.values.length);
  const errorRatio = Math.sqrt(errorSquares / count) / (expectedSquares > 0 ? Math.sqrt(expectedSquares / count) : 1);
  if (share <= 1) return { pass: true, share, errorRatio };
  const failure =
    `${name}: ${failures} of ${count} values are off, the worst at [${indexOf(expected.shape, worst).join(', ')}] by ` +
    `${shareText(share)} x its tolerance: got ${got.values[worst]}, expected ${expected.values[worst]} ` +
    `(atol ${atol}, rtol ${rtol}; error ratio ${errorRatio.toExponential(2)})`;
  return { pass: false, share, errorRatio, failure };
}

function compareExact(name: string, got: Values, expected: Values, as: (x: number) => number): Comparison {
  let failures = 0;
  let first = -1;
  for (let i = 0; i < expected.values.length; i++) {
    if (as(got.values[i] as number) === as(expected.values[i] as number)) continue;
    if (failures++ === 0) first = i;
  }
  if (failures === 0) return { pass: true, share: 0, errorRatio: 0 };
  const index = indexOf(expected.shape, first).join(', ');
  const pair = `got ${as(got.values[first] as number)}, expected ${as(expected.values[first] as number)}`;
  return refused(`${name}: ${failures} of ${expected.values.length} values differ, the first at [${index}]: ${pair}`);
}

function compareSets(name: string, got: Values, expected: Values): Comparison {
  const length = expected.shape.at(-1) ?? 1;
  const rows = length === 0 ? 0 : expected.values.length / length;
  const rowOf = ({ values }: Values, row: number): number[] =>
    Array.from({ length }, (_, i) => values[row * length + i] as number)
      .filter((index) => index !== -1)
      .sort((a, b) => a - b);
  let failures = 0;
  let failure = '';
  for (let row = 0; row < rows; row++) {
    const have = rowOf(got, row);
    const want = rowOf(expected, row);
    if (have.join() === want.join()) continue;
    if (failures++ > 0) continue;
    const index = indexOf(expected.shape.slice(0, -1), row).join(', ');
    failure = `the first at [${index}]: got {${have.join(', ')}}, expected {${want.join(', ')}}`;
  }
  if (failures === 0) return { pass: true, share: 0, errorRatio: 0 };
  return refused(`${name}: ${failures} of ${rows} rows hold other indices, ${failure}`);
}

function refused(failure: string): Comparison {
  return { pass: false, share: Infinity, errorRatio: Infinity, failure };
}

function firstNaN(values: ArrayLike<number>): number {
  for (let i = 0; i < values.length; i++) if (Number.isNaN(values[i])) return i;
  return -1;
}

/** A share of the tolerance for people: `0`, `0.42`, `17.3`, `infinite`. */
export function shareText(share: number): string {
  if (share === 0) return '0';
  if (!Number.isFinite(share)) return 'infinite';
  return share >= 1000 || share < 0.001 ? share.toExponential(1) : share.toPrecision(3);
}

/** The largest share of several comparisons. */
export function worstShare(comparisons: Iterable<Comparison>): number {
  let worst = 0;
  for (const { share } of comparisons) worst = Math.max(worst, share);
  return worst;
}
