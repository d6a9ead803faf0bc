import { f64, f64Like } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';
import { referenceSelection, selectionCodes } from './reference-selection.js';
import type { ZetaReferenceSelection } from './reference-selection.js';

export { referenceMorton, referenceOrder, referenceQuantise, referenceSelection } from './reference-selection.js';
export type { ZetaReferenceSelection } from './reference-selection.js';

/** Options of the reference; what a number draws from the paper and what is fixed by us stands at the steps. */
export interface ZetaReferenceOptions extends ZetaReferenceSelection {
  /** Whether the mean of all tokens up to the query (of all tokens when not causal) joins the kept ones. */
  historyMean: boolean;
}

export interface ZetaReferenceResult {
  /** [batch, tokens, heads, valueDim]. */
  out: F64Array;
  /** Kept tokens, -1 unused, [batch, tokens, heads, topK + localWindow]: by ascending distance, then the local ones from the latest back. */
  indices: F64Array;
  /** Codes of the first curve, u32 numbers, [batch, tokens, heads]. */
  codesQ: F64Array;
  codesK: F64Array;
}

export interface ZetaReferenceGradients {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  theta: F64Array;
}

/** gamma^2 never falls below this, so that q = k keeps a finite weight; below it theta has no gradient. */
const minGammaSquared = 1e-6;

/**
 * ZETA in float64 (Zeng et al. 2025, arXiv 2501.14577): codes, selection, Cauchy softmax and history mean. q and k are
 * [batch, tokens, heads, keyDim], v [batch, tokens, heads, valueDim], theta [heads].
 */
export function referenceZeta(q: F64Array, k: F64Array, v: F64Array, theta: F64Array, options: ZetaReferenceOptions): ZetaReferenceResult {
  const indices = referenceSelection(q, k, options);
  const out = referenceZetaAttention(q, k, v, theta, indices, options);
  return { out, indices, codesQ: selectionCodes(q, options, 0), codesK: selectionCodes(k, options, 0) };
}

/**
 * Adaptive Cauchy softmax over a given selection: w_j = 1 / (|q - k_j|^2 + gamma^2), gamma = sigmoid(theta_h), p = w / sum w;
 * the history mean is one more token with its own key and value. A row with nothing to see is 0.
 */
export function referenceZetaAttention(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  theta: F64Array,
  indices: F64Array,
  options: ZetaReferenceOptions,
): F64Array {
  const size = sizes(q, v);
  const out = f64([size.batch, size.tokens, size.heads, size.valueDim]);
  forEachRow(q, k, v, theta, indices, options, (row, seen) => {
    for (const { p, value } of seen) {
      for (let d = 0; d < size.valueDim; d++)
        out.values[row * size.valueDim + d] = at(out, row * size.valueDim + d) + p * (value[d] as number);
    }
  });
  return out;
}

/**
 * The gradients of {@link referenceZetaAttention}; the selection is a constant. With g_j = dOut . v_j and g = sum p_j g_j:
 * dv_j += p_j dOut, dD_j = -w_j p_j (g_j - g), dq += 2 dD_j (q - k_j), dk_j -= 2 dD_j (q - k_j), d(gamma^2) = sum dD_j.
 * What the mean token gets is spread over its tokens.
 */
export function referenceZetaGradients(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  theta: F64Array,
  indices: F64Array,
  dOut: F64Array,
  options: ZetaReferenceOptions,
): ZetaReferenceGradients {
  const size = sizes(q, v);
  const { tokens, heads, keyDim, valueDim } = size;
  const dq = f64Like(q);
  const dk = f64Like(k);
  const dv = f64Like(v);
  const dTheta = f64Like(theta);
  forEachRow(q, k, v, theta, indices, options, (row, seen, { b, t, h }) => {
    const g = seen.map(({ value }) => value.reduce((sum, x, d) => sum + x * at(dOut, row * valueDim + d), 0));
    const mean = seen.reduce((sum, { p }, n) => sum + p * (g[n] as number), 0);
    const gamma = sigmoid(at(theta, h));
    for (const [n, { p, w, key, token }] of seen.entries()) {
      const dD = -w * p * ((g[n] as number) - mean);
      // d(gamma^2) / dtheta = 2 gamma gamma (1 - gamma).
      if (gamma * gamma > minGammaSquared) dTheta.values[h] = at(dTheta, h) + dD * 2 * gamma * gamma * (1 - gamma);
      const [first, last] = token >= 0 ? [token, token] : meanRange(t, tokens, options);
      const share = 1 / (last - first + 1);
      for (let d = 0; d < keyDim; d++) {
        const difference = at(q, row * keyDim + d) - (key[d] as number);
        dq.values[row * keyDim + d] = at(dq, row * keyDim + d) + 2 * dD * difference;
        for (let j = first; j <= last; j++) {
          const place = ((b * tokens + j) * heads + h) * keyDim + d;
          dk.values[place] = at(dk, place) - 2 * dD * difference * share;
        }
      }
      for (let d = 0; d < valueDim; d++) {
        for (let j = first; j <= last; j++) {
          const place = ((b * tokens + j) * heads + h) * valueDim + d;
          dv.values[place] = at(dv, place) + p * at(dOut, row * valueDim + d) * share;
        }
      }
    }
  });
  return { q: dq, k: dk, v: dv, theta: dTheta };
}

/** What a row attends to: a token, or the history mean (token -1), with its weight and probability. */
interface SeenToken {
  token: number;
  key: number[];
  value: number[];
  w: number;
  p: number;
}

function forEachRow(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  theta: F64Array,
  indices: F64Array,
  options: ZetaReferenceOptions,
  visit: (row: number, seen: SeenToken[], place: { b: number; t: number; h: number }) => void,
): void {
  const { batch, tokens, heads, keyDim, valueDim } = sizes(q, v);
  const slots = indices.shape[3] as number;
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const gammaSquared = Math.max(sigmoid(at(theta, h)) ** 2, minGammaSquared);
      const vector = (x: F64Array, j: number, dim: number): number[] =>
        Array.from({ length: dim }, (_, d) => at(x, ((b * tokens + j) * heads + h) * dim + d));
      const meanOf = (x: F64Array, t: number, dim: number): number[] => {
        const [first, last] = meanRange(t, tokens, options);
        const sums = Array.from({ length: dim }, () => 0);
        for (let j = first; j <= last; j++) vector(x, j, dim).forEach((value, d) => (sums[d] = (sums[d] as number) + value));
        return sums.map((sum) => sum / (last - first + 1));
      };
      for (let t = 0; t < tokens; t++) {
        const row = (b * tokens + t) * heads + h;
        const query = vector(q, t, keyDim);
        const seen: SeenToken[] = [];
        const see = (token: number, key: number[], value: number[]): void => {
          const distance = key.reduce((sum, x, d) => sum + ((query[d] as number) - x) ** 2, 0);
          seen.push({ token, key, value, w: 1 / (distance + gammaSquared), p: 0 });
        };
        for (let slot = 0; slot < slots; slot++) {
          const token = at(indices, row * slots + slot);
          if (token >= 0) see(token, vector(k, token, keyDim), vector(v, token, valueDim));
        }
        if (options.historyMean) see(-1, meanOf(k, t, keyDim), meanOf(v, t, valueDim));
        const sum = seen.reduce((total, { w }) => total + w, 0);
        for (const one of seen) one.p = one.w / sum;
        visit(row, seen, { b, t, h });
      }
    }
  }
}

/** The tokens that the history mean of query t covers: 0 .. t (inclusive, fixed here), or all when not causal. */
function meanRange(t: number, tokens: number, { causal }: ZetaReferenceOptions): [number, number] {
  return [0, causal ? t : tokens - 1];
}

function sizes(q: F64Array, v: F64Array): { batch: number; tokens: number; heads: number; keyDim: number; valueDim: number } {
  const [batch, tokens, heads, keyDim] = q.shape as [number, number, number, number];
  return { batch, tokens, heads, keyDim, valueDim: v.shape[3] as number };
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

function at(array: F64Array, position: number): number {
  return array.values[position] as number;
}
