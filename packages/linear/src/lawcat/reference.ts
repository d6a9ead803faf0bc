import { f64, type F64Array } from '@heed/core/testing';

/** Options of the reference; defaults as `lawcat`. */
export interface LawcatReferenceOptions {
  gateNormalizer?: number;
  eps?: number;
  scale?: number;
  /** [batch, heads, keyDim, valueDim + 1] */
  initialState?: F64Array;
}

/**
 * Normalised gated linear attention token by token in float64 (Liu et al. 2025, section 3): S_t = diag(exp g_t) S_(t-1) + k_t [v_t, 1]^T,
 * [n_t, z_t] = scale q_t S_t, o_t = n_t / (z_t + eps), g = log-sigmoid(gate) / gateNormalizer.
 * @param q features, [batch, tokens, heads, keyDim]; k and gate as q
 * @param v [batch, tokens, heads, valueDim]
 */
export function referenceLawcat(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  gate: F64Array,
  options: LawcatReferenceOptions = {},
): { out: F64Array; state: F64Array; numerator: F64Array; normalizer: F64Array } {
  const [batch, tokens, heads, dk] = q.shape as [number, number, number, number];
  const dv = v.shape[3] as number;
  const { gateNormalizer = 16, eps = 1e-10, scale = 1 / Math.sqrt(dk), initialState } = options;
  const out = f64(v.shape);
  const numerator = f64(v.shape);
  const normalizer = f64([batch, tokens, heads]);
  const state = f64([batch, heads, dk, dv + 1], initialState?.values);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const S = state.values.subarray((b * heads + h) * dk * (dv + 1), (b * heads + h + 1) * dk * (dv + 1));
      for (let t = 0; t < tokens; t++) {
        const row = (b * tokens + t) * heads + h;
        const sums = new Float64Array(dv + 1);
        for (let i = 0; i < dk; i++) {
          const a = gate.values[row * dk + i] as number;
          const keep = Math.exp(-(Math.max(-a, 0) + Math.log1p(Math.exp(-Math.abs(a)))) / gateNormalizer);
          for (let j = 0; j <= dv; j++) {
            const value = j < dv ? (v.values[row * dv + j] as number) : 1;
            const at = i * (dv + 1) + j;
            S[at] = keep * (S[at] as number) + (k.values[row * dk + i] as number) * value;
            sums[j] = (sums[j] as number) + scale * (q.values[row * dk + i] as number) * (S[at] as number);
          }
        }
        normalizer.values[row] = sums[dv] as number;
        for (let j = 0; j < dv; j++) {
          numerator.values[row * dv + j] = sums[j] as number;
          out.values[row * dv + j] = (sums[j] as number) / ((sums[dv] as number) + eps);
        }
      }
    }
  }
  return { out, state, numerator, normalizer };
}

/** phi(u) = [softmax(u W_h), softmax(-u W_h)], at least 1e-12; u [batch, tokens, heads, headDim], weight [heads, headDim, features]. */
export function referenceFeatures(u: F64Array, weight: F64Array): F64Array {
  const [batch, tokens, heads, d] = u.shape as [number, number, number, number];
  const features = weight.shape[2] as number;
  const out = f64([batch, tokens, heads, 2 * features]);
  for (let row = 0; row < batch * tokens * heads; row++) {
    const h = row % heads;
    const y = Array.from({ length: features }, (_, f) => {
      let sum = 0;
      for (let i = 0; i < d; i++) sum += (u.values[row * d + i] as number) * (weight.values[(h * d + i) * features + f] as number);
      return sum;
    });
    for (const [half, sign] of [1, -1].entries()) {
      const most = Math.max(...y.map((x) => sign * x));
      const e = y.map((x) => Math.exp(sign * x - most));
      const total = e.reduce((a, b) => a + b, 0);
      e.forEach((x, f) => (out.values[row * 2 * features + half * features + f] = Math.max(x / total, 1e-12)));
    }
  }
  return out;
}

/**
 * With the softmax window: o = (beta sum e v + gamma n) / (beta sum e + gamma z + eps), e = exp(s - max s) over the last `window` keys.
 * @param q [batch, tokens, heads, headDim], rotated; k as q
 * @param linear what `referenceLawcat` gave
 */
export function referenceWindow(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  linear: { numerator: F64Array; normalizer: F64Array },
  options: { window: number; windowFactor: F64Array; affine?: boolean; eps?: number },
): F64Array {
  const [batch, tokens, heads, d] = q.shape as [number, number, number, number];
  const dv = v.shape[3] as number;
  const out = f64(v.shape);
  const { window, affine = false, eps = 1e-10 } = options;
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const beta = 1 / (1 + Math.exp(-(options.windowFactor.values[h] as number)));
      const gamma = affine ? 1 - beta : 1;
      for (let t = 0; t < tokens; t++) {
        const rowOf = (j: number): number => (b * tokens + j) * heads + h;
        const from = Math.max(0, t - window + 1);
        const s = Array.from({ length: t - from + 1 }, (_, i) => {
          let sum = 0;
          for (let c = 0; c < d; c++) sum += (q.values[rowOf(t) * d + c] as number) * (k.values[rowOf(from + i) * d + c] as number);
          return sum / Math.sqrt(d);
        });
        const most = Math.max(...s);
        const e = s.map((x) => Math.exp(x - most));
        const denominator = beta * e.reduce((a, x) => a + x, 0) + gamma * (linear.normalizer.values[rowOf(t)] as number) + eps;
        for (let j = 0; j < dv; j++) {
          const soft = e.reduce((a, x, i) => a + x * (v.values[rowOf(from + i) * dv + j] as number), 0);
          out.values[rowOf(t) * dv + j] = (beta * soft + gamma * (linear.numerator.values[rowOf(t) * dv + j] as number)) / denominator;
        }
      }
    }
  }
  return out;
}
