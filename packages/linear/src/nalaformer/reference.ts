import { f64 } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Options of the reference, with the meanings and defaults of `nalaformer`. */
export interface NalaformerReferenceOptions {
  lambda?: number;
  tau?: number;
  keyPower?: number;
  map?: 'relu' | 'cos';
  angleScale?: number;
  eps?: number;
  causal?: boolean;
  /** [tokens, headDim] */
  rope?: { sin: F64Array; cos: F64Array };
  lengths?: ArrayLike<number>;
}

/** Exponent of a query of norm n: lambda (tau + tanh n). */
export function referenceExponent(n: number, lambda = 3, tau = 0.5): number {
  return lambda * (tau + Math.tanh(n));
}

/** Features of one query or key: two numbers a coordinate, first halves before second ones. */
export function referenceNalaFeatures(x: ArrayLike<number>, of: 'q' | 'k', options: NalaformerReferenceOptions = {}): number[] {
  const { lambda = 3, tau = 0.5, keyPower = 3, map = 'relu', angleScale = Math.PI / 4 } = options;
  const values = Array.from(x);
  const norm = Math.max(Math.hypot(...values), 1e-12);
  const weights = values.map((value) =>
    of === 'q' ? Math.abs(value / norm) ** referenceExponent(norm, lambda, tau) : Math.abs(value) ** keyPower,
  );
  const first = weights.map((w, i) =>
    map === 'cos' ? w * Math.cos((angleScale * (values[i] as number)) / norm) : (values[i] as number) > 0 ? w : 0,
  );
  const second = weights.map((w, i) =>
    map === 'cos' ? w * Math.sin((angleScale * (values[i] as number)) / norm) : (values[i] as number) < 0 ? w : 0,
  );
  return [...first, ...second];
}

/**
 * NaLaFormer in float64, key by key (Meng et al. 2025, arXiv 2506.21137; released code): o_i = sum_j r_ij v_j / (sum_j w_ij + eps n_i) over the n_i
 * keys that i sees, w = phi(q_i).phi(k_j), r the same with both turned by their positions.
 */
export function referenceNalaformer(q: F64Array, k: F64Array, v: F64Array, options: NalaformerReferenceOptions = {}): F64Array {
  const { eps = 1e-6, causal = false, rope, lengths } = options;
  const [batch, tokens, heads, dim] = q.shape as [number, number, number, number];
  const valueDim = v.shape[3] as number;
  const out = f64(v.shape);
  const rowOf = (x: F64Array, b: number, t: number, h: number, size: number): Float64Array => {
    const first = ((b * tokens + t) * heads + h) * size;
    return x.values.subarray(first, first + size);
  };
  const turned = (phi: number[], t: number): number[] => {
    if (!rope) return phi;
    return phi.map((value, e) => {
      const i = e % dim;
      const other = phi[e - i + (i ^ 1)] as number;
      const place = t * dim + i;
      return value * (rope.cos.values[place] as number) + (i % 2 === 0 ? -other : other) * (rope.sin.values[place] as number);
    });
  };
  const dot = (a: number[], b: number[]): number => a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
  for (let b = 0; b < batch; b++) {
    const length = Math.min(lengths?.[b] ?? tokens, tokens);
    for (let h = 0; h < heads; h++) {
      const keys = Array.from({ length }, (_, j) => referenceNalaFeatures(rowOf(k, b, j, h, dim), 'k', options));
      for (let t = 0; t < length; t++) {
        const query = referenceNalaFeatures(rowOf(q, b, t, h, dim), 'q', options);
        const seen = causal ? t + 1 : length;
        let sum = 0;
        const row = rowOf(out, b, t, h, valueDim);
        for (let j = 0; j < seen; j++) {
          sum += dot(query, keys[j] as number[]);
          const weight = dot(turned(query, t), turned(keys[j] as number[], j));
          rowOf(v, b, j, h, valueDim).forEach((value, d) => (row[d] = (row[d] as number) + weight * value));
        }
        for (let d = 0; d < valueDim; d++) row[d] = (row[d] as number) / (sum + eps * seen);
      }
    }
  }
  return out;
}
