import { f64, type F64Array, f64Like } from '@heed/core/testing';

/** What a gated scan is, besides q, k, v. */
export interface GatedReferenceOptions {
  /** Log-decay, [batch, tokens, heads] or [batch, tokens, heads, keyDim]; default 0. */
  gate?: F64Array | undefined;
  initialState?: F64Array | undefined;
  scale?: number | undefined;
  lengths?: ArrayLike<number> | undefined;
}

/**
 * Gated linear attention token by token in float64 (Yang et al. 2023, arXiv 2312.06635, eq. 3): S_t = diag(exp g_t) S_(t-1) + k_t v_t^T,
 * o_t = scale q_t S_t. The decay is applied before token t is added. q and k are [batch, tokens, heads, keyDim],
 * v [batch, tokens, heads, valueDim]; state [batch, heads, keyDim, valueDim].
 */
export function referenceGatedScan(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  options: GatedReferenceOptions = {},
): { out: F64Array; state: F64Array } {
  const { gate, scale = 1, lengths } = options;
  const [batch, tokens, heads, keyDim] = q.shape as [number, number, number, number];
  const valueDim = v.shape[3] as number;
  const out = f64Like(v);
  const state = f64([batch, heads, keyDim, valueDim], options.initialState?.values);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const size = keyDim * valueDim;
      const S = state.values.subarray((b * heads + h) * size, (b * heads + h + 1) * size);
      for (let t = 0; t < (lengths?.[b] ?? tokens); t++) {
        const row = (b * tokens + t) * heads + h;
        for (let i = 0; i < keyDim; i++) {
          const decay = gate ? Math.exp(at(gate.values, gate.shape.length === 4 ? row * keyDim + i : row)) : 1;
          for (let j = 0; j < valueDim; j++)
            S[i * valueDim + j] = decay * at(S, i * valueDim + j) + at(k.values, row * keyDim + i) * at(v.values, row * valueDim + j);
        }
        for (let j = 0; j < valueDim; j++) {
          let sum = 0;
          for (let i = 0; i < keyDim; i++) sum += at(q.values, row * keyDim + i) * at(S, i * valueDim + j);
          out.values[row * valueDim + j] = scale * sum;
        }
      }
    }
  }
  return { out, state };
}

function at(values: ArrayLike<number>, position: number): number {
  return values[position] as number;
}
