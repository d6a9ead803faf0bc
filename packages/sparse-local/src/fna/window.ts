/** Half-open interval. */
export type Interval = readonly [start: number, end: number];

/**
 * Keys that the query at index `i` of a dilation group of `n` tokens sees (arXiv 2403.04690, section 3; even windows as in
 * NATTEN: one further to the left). At borders the window is shifted inside, never cut; a causal one is shorter at the start.
 */
export function windowOf(i: number, n: number, window: number, causal: boolean): Interval {
  if (causal) return [Math.max(0, i - window + 1), i + 1];
  const start = Math.min(Math.max(i - Math.floor(window / 2), 0), n - window);
  return [start, start + window];
}

/** Queries that see the key at index `j`: the inverse of `windowOf`; longer than the window near borders. */
export function inverseWindowOf(j: number, n: number, window: number, causal: boolean): Interval {
  if (causal) return [j, Math.min(n, j + window)];
  const left = Math.floor(window / 2);
  const right = left + (window % 2) - 1;
  return [j < window ? 0 : j - right, j >= n - window ? n : Math.min(n, j + left + 1)];
}
