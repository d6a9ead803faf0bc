/** A median with its quartiles, in milliseconds. */
export interface Timing {
  readonly ms: number;
  readonly quartiles: readonly [number, number];
  readonly repeats: number;
}

/** The value below which a share of the others lies, linear between neighbours. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const place = share * (sorted.length - 1);
  const below = sorted[Math.floor(place)] ?? Number.NaN;
  const above = sorted[Math.ceil(place)] ?? Number.NaN;
  return below + (above - below) * (place - Math.floor(place));
}

/** Median and quartiles. */
export function timingOf(values: readonly number[]): Timing {
  return { ms: quantile(values, 0.5), quartiles: [quantile(values, 0.25), quantile(values, 0.75)], repeats: values.length };
}
