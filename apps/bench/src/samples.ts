import { slice, type Tensor } from '@heed/core';

/** One row of an output: a token and a head. */
export interface Row {
  readonly token: number;
  readonly head: number;
}

/** Beyond so many tokens three rows have to do: their references take seconds. */
const MANY_TOKENS = 2 ** 18;

/** Few rows that meet the ends, the middle and odd places, over several heads. The Python peers take the same. */
export function sampleRows(tokens: number, heads: number): Row[] {
  const places: readonly (readonly [number, number])[] = [
    [0, 0],
    [1, heads - 1],
    [Math.floor(tokens / 4), heads >> 1],
    [Math.floor((tokens * 37) / 100), 1],
    [Math.floor(tokens / 2), 0],
    [tokens - 2, heads - 1],
    [tokens - 1, heads >> 1],
  ];
  const rows = places
    .filter((_, i) => tokens <= MANY_TOKENS || i % 3 === 0)
    .map(([token, head]) => ({ token: Math.min(Math.max(token, 0), tokens - 1), head: Math.min(head, heads - 1) }));
  return rows.filter((row, i) => rows.findIndex((other) => other.token === row.token && other.head === row.head) === i);
}

/** Reads rows of x [1, tokens, heads, dim]; only the tokens asked for travel. */
export async function readRows(x: Tensor, rows: readonly Row[]): Promise<Float64Array[]> {
  const [, , heads = 1, dim = 1] = x.shape;
  const found: Float64Array[] = [];
  for (const { token, head } of rows) {
    const view = slice(x, 1, token, token + 1);
    const values = Float64Array.from(await view.read(), Number);
    view.dispose();
    if (values.length !== heads * dim) throw new Error(`bench: a row of ${x.describe()} has ${values.length} elements`);
    found.push(values.subarray(head * dim, (head + 1) * dim));
  }
  return found;
}

/** Smallest normal numbers: below them a format has fewer digits, down to none. */
const SMALLEST_NORMAL = { f16: 2 ** -14, f32: 2 ** -126 } as const;

/**
 * The error of a row: |got - expected| over |expected|, Euclidean lengths, so that small rows count as much as large ones. Rows below the
 * smallest normal number of their format are counted against that number: the exact row, rounded, may be off by percents there (the
 * gradient of the last of 16,384 keys, 7.6e-7 in f16, by 2.4 %). Infinity for what is no number.
 * @param dtype the format of `got`
 */
export function rowError(got: ArrayLike<number>, expected: ArrayLike<number>, dtype: 'f16' | 'f32' = 'f32'): number {
  let apart = 0;
  let length = 0;
  for (let i = 0; i < expected.length; i++) {
    apart += ((got[i] as number) - (expected[i] as number)) ** 2;
    length += (expected[i] as number) ** 2;
  }
  if (!Number.isFinite(apart)) return Infinity;
  if (length === 0) return Math.sqrt(apart);
  return Math.sqrt(apart / Math.max(length, expected.length * SMALLEST_NORMAL[dtype] ** 2));
}

/** The worst of several. */
export function worst(errors: readonly number[]): number {
  return errors.reduce((most, error) => (error > most || Number.isNaN(error) ? error : most), 0);
}
