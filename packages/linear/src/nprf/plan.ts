/** How the Toeplitz matrix is applied: pair by pair, or by Fourier transforms. */
export type NprfPath = 'direct' | 'fft';

/** Transforms in flight: what stays in the L2 of large devices. */
export const slabBytes: number = 32 * 2 ** 20;

/** What the choice depends on. */
export interface NprfProblem {
  queries: number;
  keys: number;
  /** Columns of phi: features, or twice as many for trf. */
  features: number;
  valueDim: number;
  causal: boolean;
  /** Length of the transforms. */
  transform: number;
}

/** Seconds an operation of a pair, and a transformed number and step: one H100 through Dawn, 4,096 and 8,192 tokens of 16 heads. */
const measured = { pair: 1 / 8.9e12, point: 1 / 3.4e11, turns: 8 };

/** The faster path by measured rates, longer transforms than 2^20 aside; pure. */
export function planNprf({ queries, keys, features, valueDim, causal, transform }: NprfProblem): NprfPath {
  if (transform > 2 ** 20) return 'direct';
  const share = causal ? Math.max(0, 1 - queries / (2 * Math.max(1, keys))) : 1;
  const pairs = queries * keys * share;
  const direct = 2 * pairs * (features + valueDim + 1) * measured.pair;
  const rows = features * Math.ceil((valueDim + 1) / 2);
  const fft = rows * transform * (measured.turns + Math.log2(transform)) * measured.point;
  return fft < direct ? 'fft' : 'direct';
}

/**
 * Rows of a causal product that go by pairs beside the transforms: an eighth of the keys, at least 128. They see few keys, so that the
 * transforms' error, which is relative to the longest sums, would count. Their pairs are 1/64 of all. Pure.
 */
export function earlyRows(queries: number, keys: number, shift: number): number {
  // without a mask no row sees less than others
  if (shift >= keys) return 0;
  return Math.max(0, Math.min(queries, Math.max(128, Math.ceil(keys / 8)) - shift));
}
