// The definitions in float64, straight from the papers: what the kernels are compared with. One batch entry, BTHD layout.

/** @typedef {{ tokens: number, heads: number, headDim: number }} Sizes */

/**
 * Causal softmax attention, scale 1/sqrt(headDim).
 * @param {ArrayLike<number>} q @param {ArrayLike<number>} k @param {ArrayLike<number>} v @param {Sizes} sizes
 */
export function causalAttention(q, k, v, { tokens, heads, headDim }) {
  const out = new Float64Array(tokens * heads * headDim);
  const at = (/** @type {number} */ token, /** @type {number} */ head) => (token * heads + head) * headDim;
  for (let head = 0; head < heads; head++) {
    for (let query = 0; query < tokens; query++) {
      const logits = Array.from({ length: query + 1 }, (_, key) => {
        let sum = 0;
        for (let c = 0; c < headDim; c++) sum += Number(q[at(query, head) + c]) * Number(k[at(key, head) + c]);
        return sum / Math.sqrt(headDim);
      });
      const top = Math.max(...logits);
      const weights = logits.map((logit) => Math.exp(logit - top));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      weights.forEach((weight, key) => {
        for (let c = 0; c < headDim; c++) {
          const cell = at(query, head) + c;
          out[cell] = Number(out[cell]) + (weight / total) * Number(v[at(key, head) + c]);
        }
      });
    }
  }
  return out;
}

/**
 * Linear attention with decay, Qin et al. 2024, eq. 5 and 6: S_t = e^decay S_(t-1) + k_t v_t^T, o_t = q_t S_t.
 * @param {ArrayLike<number>} q @param {ArrayLike<number>} k @param {ArrayLike<number>} v @param {readonly number[]} decay one a head
 * @param {Sizes} sizes
 */
export function decayedLinearAttention(q, k, v, decay, { tokens, heads, headDim }) {
  const out = new Float64Array(tokens * heads * headDim);
  for (let head = 0; head < heads; head++) {
    const state = new Float64Array(headDim * headDim);
    for (let token = 0; token < tokens; token++) {
      const at = (token * heads + head) * headDim;
      for (let i = 0; i < headDim; i++) {
        for (let j = 0; j < headDim; j++) {
          const cell = i * headDim + j;
          state[cell] = Math.exp(Number(decay[head])) * Number(state[cell]) + Number(k[at + i]) * Number(v[at + j]);
          out[at + j] = Number(out[at + j]) + Number(q[at + i]) * Number(state[cell]);
        }
      }
    }
  }
  return out;
}
