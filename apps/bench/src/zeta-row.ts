import type { HeadArrays } from './kernels.js';

/** Coordinates of q and k that ZETA uses: the first ones of each head. */
export const ZETA_DIMS = 3;

/** The setting that is measured: the paper's, with a range that holds the inputs. */
export const ZETA_OPTIONS = { range: [-4, 4], topK: 32, window: 64, chunk: 256, bits: 10 } as const;

/** Morton code of point `token`: the cells' bits, highest first, dimension 0 before 1. */
function code(points: Float64Array, headDim: number, token: number): number {
  const { range, bits } = ZETA_OPTIONS;
  const [low, high] = range;
  const cells = Array.from({ length: ZETA_DIMS }, (_, c) => {
    const cell = Math.floor((((points[token * headDim + c] as number) - low) / (high - low)) * 2 ** bits);
    return Math.min(Math.max(cell, 0), 2 ** bits - 1);
  });
  let out = 0;
  for (let bit = bits - 1; bit >= 0; bit--) for (const cell of cells) out = out * 2 + ((cell >> bit) & 1);
  return out;
}

/** One row of ZETA from its definition (Zeng et al. 2025): chunks before the own one, a window on the curve, the nearest, Cauchy weights, the history mean. */
export function zetaRow({ q, k, v, headDim }: HeadArrays, token: number): Float64Array {
  const { topK, window, chunk } = ZETA_OPTIONS;
  const candidates = Array.from({ length: Math.floor(token / chunk) * chunk }, (_, key) => ({ key, code: code(k, headDim, key) }));
  candidates.sort((a, b) => a.code - b.code || a.key - b.key);
  const own = code(q, headDim, token);
  const place = candidates.filter((candidate) => candidate.code < own).length;
  const start = Math.min(Math.max(place - (window >> 1), 0), Math.max(0, candidates.length - window));
  const distance = (of: (c: number) => number): number => {
    let sum = 0;
    for (let c = 0; c < ZETA_DIMS; c++) sum += ((q[token * headDim + c] as number) - of(c)) ** 2;
    return sum;
  };
  const kept = candidates
    .slice(start, start + window)
    .map(({ key }) => ({ key, far: distance((c) => k[key * headDim + c] as number) }))
    .sort((a, b) => a.far - b.far || a.key - b.key)
    .slice(0, topK);
  const mean = (x: Float64Array, c: number): number => {
    let sum = 0;
    for (let past = 0; past <= token; past++) sum += x[past * headDim + c] as number;
    return sum / (token + 1);
  };
  const gammaSquared = 0.25; // theta 0
  const weights = kept.map(({ far }) => 1 / (far + gammaSquared));
  const meanWeight = 1 / (distance((c) => mean(k, c)) + gammaSquared);
  const total = weights.reduce((sum, weight) => sum + weight, meanWeight);
  return Float64Array.from({ length: headDim }, (_, c) => {
    const found = kept.reduce(
      (sum, { key }, i) => sum + (weights[i] as number) * (v[key * headDim + c] as number),
      meanWeight * mean(v, c),
    );
    return found / total;
  });
}
