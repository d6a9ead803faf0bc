import { f64Like, type F64Array } from '@heed/core/testing';

/**
 * Lightning Attention as the left product of the paper (Qin et al. 2024, arXiv 2405.17381, eq. 2), pair by pair in float64:
 * o_i = scale sum over j <= i of lambda_h^(i-j) (q_i.k_j) v_j. q and k are [batch, tokens, heads, keyDim], decay [heads] is log lambda.
 */
export function referenceLightning(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  options: { decay?: ArrayLike<number>; scale?: number; causal?: boolean } = {},
): F64Array {
  const { decay, scale = 1, causal = true } = options;
  const [batch, tokens, heads, keyDim] = q.shape as [number, number, number, number];
  const valueDim = v.shape[3] as number;
  const out = f64Like(v);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < tokens; i++)
        for (let j = 0; j < (causal ? i + 1 : tokens); j++) {
          const [rowI, rowJ] = [(b * tokens + i) * heads + h, (b * tokens + j) * heads + h];
          let score = scale * Math.exp((i - j) * (decay?.[h] ?? 0));
          let dot = 0;
          for (let c = 0; c < keyDim; c++) dot += (q.values[rowI * keyDim + c] as number) * (k.values[rowJ * keyDim + c] as number);
          score *= dot;
          for (let c = 0; c < valueDim; c++)
            out.values[rowI * valueDim + c] =
              (out.values[rowI * valueDim + c] as number) + score * (v.values[rowJ * valueDim + c] as number);
        }
  return out;
}
