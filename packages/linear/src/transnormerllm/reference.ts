import { f64, f64Like, type F64Array } from '@heed/core/testing';

const at = (x: F64Array, i: number): number => x.values[i] as number;

/** LRPE (Qin et al. 2023, arXiv 2307.14995, section 3.1): [z cos(theta t), z sin(theta t)], x [batch, tokens, heads, headDim]. */
export function referenceLrpe(x: F64Array, theta: F64Array, offset = 0): F64Array {
  const [batch, tokens, heads, headDim] = x.shape as [number, number, number, number];
  const out = f64([batch, tokens, heads, 2 * headDim]);
  for (let row = 0; row < batch * tokens * heads; row++) {
    const t = (Math.floor(row / heads) % tokens) + offset;
    for (let c = 0; c < headDim; c++) {
      const angle = at(theta, (row % heads) * headDim + c) * t;
      out.values[row * 2 * headDim + c] = at(x, row * headDim + c) * Math.cos(angle);
      out.values[row * 2 * headDim + headDim + c] = at(x, row * headDim + c) * Math.sin(angle);
    }
  }
  return out;
}

/** SRMSNorm over the last axis: x / sqrt(mean(x^2) + eps). */
export function referenceSrmsNorm(x: F64Array, eps = 1e-6): F64Array {
  const n = x.shape.at(-1) as number;
  const out = f64Like(x);
  for (let row = 0; row < x.values.length; row += n) {
    let squares = 0;
    for (let c = 0; c < n; c++) squares += at(x, row + c) ** 2;
    for (let c = 0; c < n; c++) out.values[row + c] = at(x, row + c) / Math.sqrt(squares / n + eps);
  }
  return out;
}

/**
 * Attention with LRPE-d in its relative form, pair by pair: o_s = sum over t <= s of lambda^(s-t) sum_c q_sc k_tc cos(theta_c (s-t)) v_t.
 * decay is log lambda, [heads].
 */
export function referenceTransnormerllm(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  options: { decay?: ArrayLike<number>; theta?: F64Array } = {},
): F64Array {
  const { decay, theta } = options;
  const [batch, tokens, heads, headDim] = q.shape as [number, number, number, number];
  const valueDim = v.shape[3] as number;
  const out = f64Like(v);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let s = 0; s < tokens; s++)
        for (let t = 0; t <= s; t++) {
          const [rowS, rowT] = [(b * tokens + s) * heads + h, (b * tokens + t) * heads + h];
          let score = 0;
          for (let c = 0; c < headDim; c++)
            score += at(q, rowS * headDim + c) * at(k, rowT * headDim + c) * (theta ? Math.cos(at(theta, h * headDim + c) * (s - t)) : 1);
          score *= Math.exp((s - t) * (decay?.[h] ?? 0));
          for (let c = 0; c < valueDim; c++)
            out.values[rowS * valueDim + c] = at(out, rowS * valueDim + c) + score * at(v, rowT * valueDim + c);
        }
  return out;
}
