// RazorAttention's forward in float64 (Tang et al. 2024, eq. 4 and 5), and rows as they come back from codes.
import { rounded } from './ops-support.js';

export interface RazorShape {
  batch: number;
  kvHeads: number;
  heads: number;
  headDim: number;
  valueDim: number;
  /** Tokens that k and v hold, of which the first `end` are in the cache. */
  tokens: number;
  end: number;
  sinks: number;
  recent: number;
  retrieval: readonly boolean[];
}

/** q [batch, heads, headDim] of the newest token over k, v [batch, tokens, kvHeads, dim]. */
export function razorReference(q: ArrayLike<number>, k: ArrayLike<number>, v: ArrayLike<number>, shape: RazorShape): number[] {
  const { batch, kvHeads, heads, headDim, valueDim, tokens, end, sinks, recent, retrieval } = shape;
  const out: number[] = [];
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const head = Math.floor((h * kvHeads) / heads);
      const row = (x: ArrayLike<number>, dim: number, n: number): number[] =>
        Array.from({ length: dim }, (_, d) => x[((b * tokens + n) * kvHeads + head) * dim + d] ?? Number.NaN);
      const dropped = retrieval[head] || end <= sinks + recent ? 0 : end - sinks - recent;
      const kept: { k: number[]; v: number[]; bias: number }[] = [];
      const mean = { k: new Array<number>(headDim).fill(0), v: new Array<number>(valueDim).fill(0), bias: Math.log(dropped) };
      for (let n = 0; n < end; n++) {
        const key = row(k, headDim, n);
        const value = row(v, valueDim, n);
        if (n < sinks || n >= sinks + dropped) kept.push({ k: key, v: value, bias: 0 });
        else {
          key.forEach((x, d) => (mean.k[d] = (mean.k[d] ?? 0) + x / dropped));
          value.forEach((x, d) => (mean.v[d] = (mean.v[d] ?? 0) + x / dropped));
        }
      }
      if (dropped > 0) kept.push(mean);
      const scores = kept.map(
        (r) => r.bias + r.k.reduce((sum, x, d) => sum + x * (q[(b * heads + h) * headDim + d] ?? 0), 0) / Math.sqrt(headDim),
      );
      const top = Math.max(...scores);
      const weights = scores.map((s) => Math.exp(s - top));
      const total = weights.reduce((a, w) => a + w, 0);
      for (let d = 0; d < valueDim; d++) out.push(kept.reduce((sum, r, i) => sum + (weights[i] ?? 0) * (r.v[d] ?? 0), 0) / total);
    }
  }
  return out;
}

/** Values of rows after codes of `bits` with an f16 scale and minimum a group of neighbours. */
export function codesRoundTrip(x: ArrayLike<number>, dim: number, bits: number, group: number): Float64Array {
  const out = new Float64Array(x.length);
  const most = 2 ** bits - 1;
  for (let row = 0; row < x.length; row += dim) {
    for (let begin = 0; begin < dim; begin += group) {
      const members = Array.from({ length: Math.min(group, dim - begin) }, (_, i) => row + begin + i);
      const values = members.map((i) => x[i] ?? Number.NaN);
      const low = Math.min(...values);
      const scale = (Math.max(...values) - low) / most;
      for (const i of members) {
        const code = scale === 0 ? 0 : Math.min(most, Math.max(0, roundHalfEven(((x[i] ?? Number.NaN) - low) / scale)));
        out[i] = code * rounded(scale, 'f16') + rounded(low, 'f16');
      }
    }
  }
  return out;
}

function roundHalfEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}
