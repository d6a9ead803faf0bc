import { f64, f64Like } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Options of the reference, with the meanings and defaults of `based`. */
export interface BasedReferenceOptions {
  scale?: number | undefined;
  causal?: boolean | undefined;
  normalize?: boolean | undefined;
  eps?: number | undefined;
  /** Valid tokens of each batch entry; later ones count for nothing and have no output. */
  lengths?: ArrayLike<number> | undefined;
}

export interface BasedReferenceResult {
  /** [batch, tokens, heads, valueDim] */
  out: F64Array;
  /** [batch, heads, 1 + f + f^2, valueDim] */
  kvState: F64Array;
  /** [batch, heads, 1 + f + f^2] */
  kState: F64Array;
}

/** The official feature map of one vector: 1, x_i / f^(1/4), x_i x_j / sqrt(2 f), with s = q.k / sqrt(f); for another scale f^(-1/2) becomes it. */
export function referenceFeatures(x: ArrayLike<number>, scale: number): number[] {
  const scaled = Array.from(x, (value) => value * Math.sqrt(scale));
  return [1, ...scaled, ...scaled.flatMap((a) => scaled.map((b) => (a * b) / Math.SQRT2))];
}

/**
 * Based in float64 by its definition (Arora et al. 2024, arXiv 2402.18668, section 4): o_t = sum_j w_tj v_j / (sum_j w_tj + eps) over the keys
 * that t sees, w = 1 + s + s^2 / 2, s = scale q_t.k_j. q, k [batch, tokens, heads, f], v [batch, tokens, heads, valueDim].
 */
export function referenceBased(q: F64Array, k: F64Array, v: F64Array, options: BasedReferenceOptions = {}): BasedReferenceResult {
  const { batch, tokens, heads, featureDim, valueDim, scale, normalize, eps } = settings(q, v, options);
  const features = 1 + featureDim + featureDim ** 2;
  const out = f64(v.shape);
  const kvState = f64([batch, heads, features, valueDim]);
  const kState = f64([batch, heads, features]);
  eachPair(q, v, options, (row, other) => {
    const w = weightOf(dot(q, k, row, other, featureDim) * scale);
    for (let d = 0; d < valueDim; d++) add(out, row * valueDim + d, w * at(v, other * valueDim + d));
  });
  if (normalize) {
    const sums = sumsOf(q, k, v, options);
    for (let row = 0; row < batch * tokens * heads; row++)
      for (let d = 0; d < valueDim; d++)
        out.values[row * valueDim + d] = (sums[row] as number) > 0 ? at(out, row * valueDim + d) / ((sums[row] as number) + eps) : 0;
  }
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < (options.lengths?.[b] ?? tokens); t++) {
      for (let h = 0; h < heads; h++) {
        const row = (b * tokens + t) * heads + h;
        referenceFeatures(k.values.subarray(row * featureDim, (row + 1) * featureDim), scale).forEach((phi, i) => {
          add(kState, (b * heads + h) * features + i, phi);
          for (let d = 0; d < valueDim; d++) add(kvState, ((b * heads + h) * features + i) * valueDim + d, phi * at(v, row * valueDim + d));
        });
      }
    }
  }
  return { out, kvState, kState };
}

/**
 * Gradients of {@link referenceBased}. With A = w and dA/ds = 1 + s: G_tj = (do_t.v_j - do_t.o_t) / Z_t for the keys j that t sees,
 * dq_t = scale sum_j (1 + s_tj) G_tj k_j, dk_j = scale sum_t (1 + s_tj) G_tj q_t, dv_j = sum_t w_tj do_t / Z_t.
 */
export function referenceBasedGradients(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  dOut: F64Array,
  options: BasedReferenceOptions = {},
): { q: F64Array; k: F64Array; v: F64Array } {
  const { featureDim, valueDim, scale, normalize, eps } = settings(q, v, options);
  const { out } = referenceBased(q, k, v, options);
  const sums = sumsOf(q, k, v, options);
  const [dq, dk, dv] = [f64Like(q), f64Like(k), f64Like(v)];
  eachPair(q, v, options, (row, other) => {
    const s = dot(q, k, row, other, featureDim) * scale;
    const z = normalize ? (sums[row] as number) + eps : 1;
    const g = (dot(dOut, v, row, other, valueDim) - (normalize ? dot(dOut, out, row, row, valueDim) : 0)) / z;
    for (let i = 0; i < featureDim; i++) {
      add(dq, row * featureDim + i, scale * (1 + s) * g * at(k, other * featureDim + i));
      add(dk, other * featureDim + i, scale * (1 + s) * g * at(q, row * featureDim + i));
    }
    for (let d = 0; d < valueDim; d++) add(dv, other * valueDim + d, (weightOf(s) * at(dOut, row * valueDim + d)) / z);
  });
  return { q: dq, k: dk, v: dv };
}

function weightOf(s: number): number {
  return 1 + s + (s * s) / 2;
}

function sumsOf(q: F64Array, k: F64Array, v: F64Array, options: BasedReferenceOptions): Float64Array {
  const { batch, tokens, heads, featureDim, scale } = settings(q, v, options);
  const sums = new Float64Array(batch * tokens * heads);
  eachPair(q, v, options, (row, other) => {
    sums[row] = (sums[row] as number) + weightOf(dot(q, k, row, other, featureDim) * scale);
  });
  return sums;
}

/** Every query and every key that it sees, with their rows. */
function eachPair(q: F64Array, v: F64Array, options: BasedReferenceOptions, visit: (row: number, other: number) => void): void {
  const { batch, tokens, heads, causal } = settings(q, v, options);
  for (let b = 0; b < batch; b++) {
    const length = options.lengths?.[b] ?? tokens;
    for (let h = 0; h < heads; h++)
      for (let t = 0; t < length; t++)
        for (let j = 0; j < (causal ? t + 1 : length); j++) visit((b * tokens + t) * heads + h, (b * tokens + j) * heads + h);
  }
}

interface Settings {
  batch: number;
  tokens: number;
  heads: number;
  featureDim: number;
  valueDim: number;
  scale: number;
  causal: boolean;
  normalize: boolean;
  eps: number;
}

function settings(q: F64Array, v: F64Array, { scale, causal = true, normalize = true, eps = 1e-12 }: BasedReferenceOptions): Settings {
  const [batch, tokens, heads, featureDim] = q.shape as [number, number, number, number];
  return {
    batch,
    tokens,
    heads,
    featureDim,
    valueDim: v.shape[3] as number,
    scale: scale ?? 1 / Math.sqrt(featureDim),
    causal,
    normalize,
    eps,
  };
}

function dot(a: F64Array, b: F64Array, row: number, other: number, size: number): number {
  let sum = 0;
  for (let i = 0; i < size; i++) sum += at(a, row * size + i) * at(b, other * size + i);
  return sum;
}

function at(x: F64Array, i: number): number {
  return x.values[i] as number;
}

function add(x: F64Array, i: number, value: number): void {
  x.values[i] = at(x, i) + value;
}
