import { f64 } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Which tokens each query keeps. */
export interface ZetaReferenceSelection {
  /** Bits of a cell index a dimension; bits x keyDim <= 32. */
  bits: number;
  /** The range that the cells divide; what lies outside falls into the outermost ones. */
  rangeLow: number;
  rangeHigh: number;
  /** Tokens kept by distance. */
  topK: number;
  /** Candidates taken around the query's place in the sorted codes, from all curves together. */
  window: number;
  /** Tokens a chunk; a causal query searches the chunks before its own. */
  chunk: number;
  causal: boolean;
  /** Default 1. */
  curves?: 1 | 2 | undefined;
  /** Default 0: the last tokens, the own one included, that are kept besides the topK; see {@link referenceSelection}. */
  localWindow?: number | undefined;
}

/** Cell of x (fixed here): clamp(floor((x - low) / (high - low) 2^bits), 0, 2^bits - 1). */
export function referenceQuantise(x: number, low: number, high: number, bits: number): number {
  return Math.min(Math.max(Math.floor(((x - low) / (high - low)) * 2 ** bits), 0), 2 ** bits - 1);
}

/** Morton code, u32: bit p of dimension j goes to code bit p d + (d - 1 - j). */
export function referenceMorton(cells: readonly number[], bits: number): number {
  let code = 0;
  for (let p = 0; p < bits; p++) {
    cells.forEach((cell, j) => {
      if ((cell >>> p) & 1) code += 2 ** (p * cells.length + cells.length - 1 - j);
    });
  }
  return code;
}

/** Stable ascending order of codes: by code, then by position. */
export function referenceOrder(codes: ArrayLike<number>): number[] {
  return Array.from({ length: codes.length }, (_, i) => i).sort((a, b) => (codes[a] as number) - (codes[b] as number) || a - b);
}

/**
 * Codes of x [batch, tokens, heads, keyDim] on a curve, [batch, tokens, heads]. Curve 1, the second one, moves every coordinate
 * up by 1/6 of the range and codes it over a range of twice the size, so that the cell borders of the two do not coincide.
 */
export function selectionCodes(x: F64Array, { bits, rangeLow, rangeHigh }: ZetaReferenceSelection, curve: 0 | 1): F64Array {
  const dim = x.shape[3] as number;
  const codes = f64(x.shape.slice(0, 3));
  const range = rangeHigh - rangeLow;
  for (let row = 0; row < codes.values.length; row++) {
    const cells = Array.from(x.values.subarray(row * dim, (row + 1) * dim), (value) =>
      curve === 0
        ? referenceQuantise(value, rangeLow, rangeHigh, bits)
        : referenceQuantise(value + range / 6, rangeLow, rangeLow + 2 * range, bits),
    );
    codes.values[row] = referenceMorton(cells, bits);
  }
  return codes;
}

/**
 * The tokens that each query keeps, [batch, tokens, heads, topK + localWindow], -1 unused.
 *
 * A query in chunk m = floor(t / chunk) searches the n = m chunk tokens before its chunk (all tokens when not causal). In their
 * order by (code, position), p tokens have a smaller code; its window is the sorted places [s, min(n, s + W)) with
 * s = clamp(p - floor(W / 2), 0, max(0, n - W)). With two curves the first takes W = ceil(window / 2), the second
 * floor(window / 2), and a token found by both counts once. Of the window the topK nearest by squared distance are kept,
 * ties to the smaller position, in ascending order of distance.
 *
 * localWindow (causal only, not in the paper): the last localWindow tokens, the query's own included, are kept whatever their
 * distance, from the latest backwards in the slots after topK. What the search finds of them is left out of its window, so that
 * nothing is kept twice. With localWindow >= chunk every token up to the query is seen or searched.
 */
export function referenceSelection(q: F64Array, k: F64Array, options: ZetaReferenceSelection): F64Array {
  const { topK, chunk, causal, curves = 1, localWindow = 0, window } = options;
  const [batch, tokens, heads, dim] = q.shape as [number, number, number, number];
  const slots = topK + localWindow;
  const indices = f64([batch, tokens, heads, slots]);
  indices.values.fill(-1);
  const curveWindows = curves === 1 ? [window] : [Math.ceil(window / 2), Math.floor(window / 2)];
  const codes = curveWindows.map(
    (_, curve) => [selectionCodes(q, options, curve as 0 | 1), selectionCodes(k, options, curve as 0 | 1)] as const,
  );
  for (const b of range(batch)) {
    for (const h of range(heads)) {
      const rowOf = (t: number): number => (b * tokens + t) * heads + h;
      const distance = (t: number, j: number): number => {
        let sum = 0;
        for (let d = 0; d < dim; d++) sum += (at(q, rowOf(t) * dim + d) - at(k, rowOf(j) * dim + d)) ** 2;
        return sum;
      };
      const searched = curveWindows.map((size, curve) => {
        const [codesQ, codesK] = codes[curve] as (typeof codes)[0];
        const order = referenceOrder(range(tokens).map((t) => at(codesK, rowOf(t))));
        return (t: number, n: number): number[] => {
          const candidates = order.filter((j) => j < n);
          const smaller = candidates.filter((j) => at(codesK, rowOf(j)) < at(codesQ, rowOf(t))).length;
          const start = Math.min(Math.max(smaller - Math.floor(size / 2), 0), Math.max(0, n - size));
          return candidates.slice(start, Math.min(n, start + size));
        };
      });
      for (const t of range(tokens)) {
        const chunkStart = Math.floor(t / chunk) * chunk;
        const found = new Set(searched.flatMap((search) => search(t, causal ? chunkStart : tokens)));
        const nearest = [...found]
          .filter((j) => !causal || j <= t - localWindow)
          .map((j) => ({ j, distance: distance(t, j) }))
          .sort((one, other) => one.distance - other.distance || one.j - other.j)
          .slice(0, topK);
        nearest.forEach(({ j }, slot) => (indices.values[rowOf(t) * slots + slot] = j));
        if (!causal) continue;
        for (let back = 0; back < Math.min(localWindow, t + 1); back++) indices.values[rowOf(t) * slots + topK + back] = t - back;
      }
    }
  }
  return indices;
}

function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}

function at(array: F64Array, position: number): number {
  return array.values[position] as number;
}
