import { inputAt } from './inputs.js';

/** Coordinates of q and k. */
export const ZETA_DIMS = 3;

/** The setting that is measured: the paper's, with a range that holds the inputs. */
export const ZETA_OPTIONS = { range: [-4, 4], topK: 32, window: 64, chunk: 256, bits: 10 } as const;

/** Codes have 30 bits, and tokens fewer than these 21. */
const MOST_TOKENS = 2 ** 21;

const pointOfQ = inputAt('zetaq', 'fine');
const pointOfK = inputAt('zetak', 'fine');
const valueAt = inputAt('v');

/** Morton code of a point: the cells' bits, highest first, dimension 0 before 1. */
function code(point: (i: number) => number, from: number): number {
  const { range, bits } = ZETA_OPTIONS;
  const [low, high] = range;
  const cells = Array.from({ length: ZETA_DIMS }, (_, c) => {
    const cell = Math.floor(((point(from + c) - low) / (high - low)) * 2 ** bits);
    return Math.min(Math.max(cell, 0), 2 ** bits - 1);
  });
  let out = 0;
  for (let bit = bits - 1; bit >= 0; bit--) for (const cell of cells) out = out * 2 + ((cell >> bit) & 1);
  return out;
}

/** The `count` keys, of those before `end`, that lie around a code on the curve: key by code, then by token. Linear in tokens. */
function around(end: number, from: (key: number) => number, own: number, count: number): number[] {
  const codes = Float64Array.from({ length: end }, (_, key) => code(pointOfK, from(key)));
  // code and token in one number, exact below 2^53: typed arrays sort fastest without a function
  const order = codes.map((one, key) => one * MOST_TOKENS + key).sort();
  const place = codes.reduce((below, other) => below + (other < own ? 1 : 0), 0);
  const start = Math.min(Math.max(place - (count >> 1), 0), Math.max(0, end - count));
  return Array.from(order.subarray(start, start + count), (both) => both % MOST_TOKENS);
}

/** One row of ZETA from its definition (Zeng et al. 2025): chunks before the own one, a window on the curve, the nearest, Cauchy weights, the history mean. */
export function zetaRow({ heads, valueDim }: { heads: number; valueDim: number }, head: number, token: number): Float64Array {
  const { topK, window, chunk } = ZETA_OPTIONS;
  const from = (t: number): number => (t * heads + head) * ZETA_DIMS;
  const valueFrom = (t: number): number => (t * heads + head) * valueDim;
  const distance = (of: (c: number) => number): number => {
    let sum = 0;
    for (let c = 0; c < ZETA_DIMS; c++) sum += (pointOfQ(from(token) + c) - of(c)) ** 2;
    return sum;
  };
  const kept = around(Math.floor(token / chunk) * chunk, from, code(pointOfQ, from(token)), window)
    .map((key) => ({ key, far: distance((c) => pointOfK(from(key) + c)) }))
    .sort((a, b) => a.far - b.far || a.key - b.key)
    .slice(0, topK);
  const mean = (x: (i: number) => number, at: (t: number) => number, c: number): number => {
    let sum = 0;
    for (let past = 0; past <= token; past++) sum += x(at(past) + c);
    return sum / (token + 1);
  };
  const gammaSquared = 0.25; // theta 0
  const weights = kept.map(({ far }) => 1 / (far + gammaSquared));
  const meanWeight = 1 / (distance((c) => mean(pointOfK, from, c)) + gammaSquared);
  const total = weights.reduce((sum, weight) => sum + weight, meanWeight);
  return Float64Array.from({ length: valueDim }, (_, c) => {
    const found = kept.reduce(
      (sum, { key }, i) => sum + (weights[i] as number) * valueAt(valueFrom(key) + c),
      meanWeight * mean(valueAt, valueFrom, c),
    );
    return found / total;
  });
}
