/** How the Toeplitz matrix is applied: pair by pair, by Fourier transforms, or, where the bias is clipped, pairs of a band and sums beyond. */
export type NprfPath = 'direct' | 'fft' | 'band';

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
  /** Distance beyond which the bias is constant. */
  clip?: number | undefined;
}

/** Seconds an operation of a pair, and a transformed number and step: one H100 through Dawn, 4,096 and 8,192 tokens of 16 heads. */
const measured = { pair: 1 / 8.9e12, point: 1 / 3.4e11, turns: 8 };
/** Seconds an operation of a product of core in f32, the same device. */
const product = 1 / 3.2e13;

/** Tokens below which the dispatches of a band cost more than the pairs that it saves. */
const leastBand = 2048;

/** Tokens a block of a clipped bias: what lies two blocks away is beyond `clip`. */
export const clipBlock = (clip: number): number => Math.max(64, clip);

/**
 * The faster path by measured rates, longer transforms than 2^20 aside; pure.
 * @param problem the shapes, and what of the bias is known
 */
export function planNprf({ queries, keys, features, valueDim, causal, transform, clip }: NprfProblem): NprfPath {
  const share = causal ? Math.max(0, 1 - queries / (2 * Math.max(1, keys))) : 1;
  const pairs = queries * keys * share;
  const direct = 2 * pairs * (features + valueDim + 1) * measured.pair;
  const rows = features * Math.ceil((valueDim + 1) / 2);
  const fft = transform > 2 ** 20 ? Infinity : rows * transform * (measured.turns + Math.log2(transform)) * measured.point;
  const near = 2 * queries * (causal ? 1.5 : 3) * clipBlock(clip ?? 0) * (features + valueDim + 1) * measured.pair;
  const far = (causal ? 4 : 8) * queries * features * (valueDim + 1) * product;
  const band = clip === undefined || queries < leastBand ? Infinity : near + far;
  return band < Math.min(direct, fft) ? 'band' : fft < direct ? 'fft' : 'direct';
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
