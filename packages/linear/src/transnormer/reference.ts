import { f64Like, type F64Array } from '@heed/core/testing';

const at = (x: F64Array, i: number): number => x.values[i] as number;

/** LRPE of TransNormer: z - 2 (z.h) h, then pairs (2c, 2c + 1) turned by theta_c t. `position` gives t of a token. */
export function referencePlaced(
  x: F64Array,
  positions: { theta: ArrayLike<number>; householder?: readonly number[] },
  position: (token: number) => number,
): F64Array {
  const [, tokens, heads, headDim] = x.shape as [number, number, number, number];
  const out = f64Like(x);
  for (let row = 0; row < x.values.length / headDim; row++) {
    const t = position(Math.floor(row / heads) % tokens);
    const z = Array.from({ length: headDim }, (_, c) => at(x, row * headDim + c));
    const h = positions.householder ?? z.map(() => 0);
    const dot = z.reduce((sum, value, c) => sum + value * (h[c] as number), 0);
    const reflected = z.map((value, c) => value - 2 * dot * (h[c] as number));
    for (let c = 0; c < headDim; c++) {
      const pair = Math.floor(c / 2);
      const [a, b] = [reflected[2 * pair] as number, reflected[2 * pair + 1]];
      const angle = (positions.theta[pair] as number) * t;
      out.values[row * headDim + c] =
        b === undefined ? a : c % 2 === 0 ? a * Math.cos(angle) - b * Math.sin(angle) : b * Math.cos(angle) + a * Math.sin(angle);
    }
  }
  return out;
}

/**
 * DiagAttention, pair by pair (Qin et al. 2022, arXiv 2210.10340, section 4.2): token i sees tokens of its own block alone, by softmax
 * or by relu of the scores.
 */
export function referenceDiagAttention(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  options: { block: number; causal?: boolean; softmax?: boolean; scale: number },
): F64Array {
  const { block, causal = true, softmax = true, scale } = options;
  const [batch, tokens, heads, headDim] = q.shape as [number, number, number, number];
  const valueDim = v.shape[3] as number;
  const out = f64Like(v);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < tokens; i++) {
        const first = Math.floor(i / block) * block;
        const seen = Array.from({ length: (causal ? i + 1 : Math.min(first + block, tokens)) - first }, (_, n) => first + n);
        const row = (t: number): number => (b * tokens + t) * heads + h;
        const scores = seen.map((j) => {
          let dot = 0;
          for (let c = 0; c < headDim; c++) dot += at(q, row(i) * headDim + c) * at(k, row(j) * headDim + c);
          return scale * dot;
        });
        const weights = softmax ? scores.map((s) => Math.exp(s - Math.max(...scores))) : scores.map((s) => Math.max(s, 0));
        const sum = softmax ? weights.reduce((a, w) => a + w, 0) : 1;
        seen.forEach((j, n) => {
          for (let c = 0; c < valueDim; c++)
            out.values[row(i) * valueDim + c] =
              at(out, row(i) * valueDim + c) + ((weights[n] as number) / sum) * at(v, row(j) * valueDim + c);
        });
      }
  return out;
}

/** SRMS over the last axis: x / (|x| / sqrt(n) + eps). */
export function referenceSrms(x: F64Array, eps = 1e-8): F64Array {
  const n = x.shape.at(-1) as number;
  const out = f64Like(x);
  for (let row = 0; row < x.values.length; row += n) {
    let squares = 0;
    for (let c = 0; c < n; c++) squares += at(x, row + c) ** 2;
    for (let c = 0; c < n; c++) out.values[row + c] = at(x, row + c) / (Math.sqrt(squares / n) + eps);
  }
  return out;
}
