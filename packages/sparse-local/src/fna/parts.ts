import { type DType, slice, type Tensor } from '@heed/core';
import type { HeadPart } from '@heed/core/~internal';
import type { FnaOptions, FnaProblem } from './options.js';

/** Entries and heads of a problem that are attended together. */
export interface FnaPart {
  queries: HeadPart;
  /** Its keys and values, by their number in `FnaParts.keys`: query heads of one group may be cut apart. */
  keysAt: number;
}

/** A problem whose tensors are larger than a binding, cut into even parts. */
export interface FnaParts {
  list: readonly FnaPart[];
  keys: readonly HeadPart[];
}

/** Bytes that a binding may begin ahead of its first element, and that arrays are rounded up by. */
const slack = 512;

/**
 * How a problem is cut: into batch entries, and where one of them is still too large into groups of heads. Undefined where it fits
 * as a whole, and where one head is too large. Pure.
 */
export function planParts(
  { batch, grid, heads, kvHeads, headDim, valueDim, additional }: FnaProblem,
  dtype: DType,
  bindingBytes: number,
): FnaParts | undefined {
  const size = dtype === 'f16' ? 2 : 4;
  const tokens = grid.reduce((p, n) => p * n, 1);
  const group = heads / kvHeads;
  const keyHeads = (n: number): number => Math.max(1, n / group);
  const fits = (entries: number, n: number): boolean => {
    // rows of queries, of their output and of its two f32 statistics; gradients of keys and values share a buffer
    const queryBytes = entries * tokens * n * Math.max(headDim * size, valueDim * size, 8);
    const keyBytes = entries * (tokens + additional) * keyHeads(n) * (headDim + valueDim) * size;
    return Math.max(queryBytes, keyBytes) + slack <= bindingBytes;
  };
  if (fits(batch, heads)) return undefined;
  const choices = [
    ...divisors(batch).map((entries) => [entries, heads] as const),
    ...divisors(heads)
      .filter((n) => n % group === 0 || group % n === 0)
      .map((n) => [1, n] as const),
  ];
  const found = choices.find(([entries, n]) => fits(entries, n));
  if (!found) return undefined;
  const [entries, n] = found;
  const cut = (all: number, part: number): HeadPart[] =>
    Array.from({ length: (batch / entries) * (all / part) }, (_, i) => {
      const across = all / part;
      return { entry: Math.floor(i / across) * entries, entries, head: (i % across) * part, heads: part };
    });
  const keys = cut(kvHeads, keyHeads(n));
  const list = cut(heads, n);
  return { keys, list: list.map((queries, i) => ({ queries, keysAt: Math.floor((i * keys.length) / list.length) })) };
}

/** Divisors, the largest first. */
function divisors(n: number): number[] {
  return Array.from({ length: n }, (_, i) => n - i).filter((d) => n % d === 0);
}

/** Options of a part: its heads of the bias, its entries and heads of the additional keys and values. */
export function partOptions(options: FnaOptions, { queries, keysAt }: FnaPart, keys: readonly HeadPart[]): FnaOptions {
  const { bias, additionalKeys, additionalValues } = options;
  const { entry = 0, entries = 0, head = 0, heads = 0 } = keys[keysAt] ?? {};
  const own = (x: Tensor): Tensor => slice(slice(x, 0, entry, entry + entries), 2, head, head + heads);
  return {
    ...options,
    ...(bias && { bias: slice(bias, 0, queries.head, queries.head + queries.heads) }),
    ...(additionalKeys && additionalValues && { additionalKeys: own(additionalKeys), additionalValues: own(additionalValues) }),
  };
}
