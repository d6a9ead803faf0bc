const WHOLE = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const THREE_DIGITS = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });

/** `65,536`. */
export function formatCount(count: number): string {
  return WHOLE.format(count);
}

/** Three significant digits, no exponent; from 1,000 on whole: `0.0421`, `4.21`, `4,213`. */
export function formatNumber(value: number): string {
  return Math.abs(value) >= 1000 ? WHOLE.format(value) : THREE_DIGITS.format(value);
}

/** `3.35 M`, `940 k`. */
export function formatParameters(count: number): string {
  return count >= 1e6 ? `${(count / 1e6).toFixed(2)} M` : `${WHOLE.format(count / 1e3)} k`;
}

/** `12.3 ms`, `1.23 s`, `2.1 min`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${THREE_DIGITS.format(ms)} ms`;
  return ms < 60_000 ? `${THREE_DIGITS.format(ms / 1000)} s` : `${(ms / 60_000).toFixed(1)} min`;
}
