import { f64, f64Like } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Options of the reference; as those of `lla`, all given. */
export interface LlaReferenceOptions {
  causal: boolean;
  scale: number;
  /** A number, or one a query and head, [batch, queries, heads]. */
  ridgeLambda: number | F64Array;
  /** Edge of the diagonal blocks of Sigma that are kept. */
  blockSize: number;
  deltaEps: number;
  ridgeGradient: 'exact' | 'detached';
}

export interface LlaReferenceResult {
  out: F64Array;
  rho: F64Array;
  delta: F64Array;
  omega: F64Array;
}

export interface LlaReferenceGradients {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  ridgeLambda: F64Array;
}

/** One query's system and solution. */
interface Fit {
  /** Keys that the query sees. */
  keys: number;
  /** exp(score - row maximum). */
  weights: Float64Array;
  /** z_j = k_j - q. */
  z: Float64Array[];
  omega: number;
  lambda: number;
  rho: Float64Array;
  delta: number;
  solve: (rhs: Float64Array) => Float64Array;
}

const at = (values: ArrayLike<number>, i: number): number => values[i] as number;

/** Row (batch, token, head) of x [batch, tokens, heads, dim]. */
function row(x: F64Array, b: number, t: number, h: number): Float64Array {
  const [, tokens, heads, dim] = x.shape as [number, number, number, number];
  const first = ((b * tokens + t) * heads + h) * dim;
  return x.values.subarray(first, first + dim);
}

const dot = (a: Float64Array, b: Float64Array): number => a.reduce((sum, x, i) => sum + x * at(b, i), 0);

/** x of A x = b for symmetric positive definite A, by Cholesky. */
function solver(a: Float64Array[], edge: number): (rhs: Float64Array) => Float64Array {
  const n = a.length;
  const l = a.map((line) => Float64Array.from(line));
  const L = (i: number, j: number): number => at(l[i] as Float64Array, j);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = Math.floor(i / edge) === Math.floor(j / edge) ? L(i, j) : 0;
      for (let c = 0; c < j; c++) sum -= L(i, c) * L(j, c);
      (l[i] as Float64Array)[j] = i === j ? Math.sqrt(sum) : sum / L(j, j);
    }
  }
  return (rhs) => {
    const x = Float64Array.from(rhs);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < i; j++) x[i] = at(x, i) - L(i, j) * at(x, j);
      x[i] = at(x, i) / L(i, i);
    }
    for (let i = n - 1; i >= 0; i--) {
      for (let j = i + 1; j < n; j++) x[i] = at(x, i) - L(j, i) * at(x, j);
      x[i] = at(x, i) / L(i, i);
    }
    return x;
  };
}

/** Zuo et al. 2025, section 3: the system of query i and its solution. */
function fit(q: F64Array, k: F64Array, options: LlaReferenceOptions, b: number, i: number, h: number): Fit {
  const [, queries, heads, dim] = q.shape as [number, number, number, number];
  const total = k.shape[1] as number;
  const keys = options.causal ? Math.max(0, Math.min(total, i + 1 + total - queries)) : total;
  const query = row(q, b, i, h);
  const scores = Array.from({ length: keys }, (_, j) => options.scale * dot(query, row(k, b, j, h)));
  const top = scores.reduce((m, s) => Math.max(m, s), -Infinity);
  const weights = Float64Array.from(scores, (s) => Math.exp(s - top));
  const z = Array.from({ length: keys }, (_, j) => row(k, b, j, h).map((x, c) => x - at(query, c)));
  const omega = weights.reduce((sum, w) => sum + w, 0);
  const { ridgeLambda } = options;
  const lambda = typeof ridgeLambda === 'number' ? ridgeLambda : at(ridgeLambda.values, (b * queries + i) * heads + h);
  const mu = new Float64Array(dim);
  const sigma = Array.from({ length: dim }, () => new Float64Array(dim));
  z.forEach((zj, j) => {
    for (let c = 0; c < dim; c++) {
      mu[c] = at(mu, c) + at(weights, j) * at(zj, c);
      const line = sigma[c] as Float64Array;
      for (let d = 0; d < dim; d++) line[d] = at(line, d) + at(weights, j) * at(zj, c) * at(zj, d);
    }
  });
  sigma.forEach((line, c) => (line[c] = at(line, c) + (keys === 0 ? 1 : lambda * omega)));
  const solve = solver(sigma, options.blockSize);
  const rho = solve(mu);
  const plain = omega - dot(mu, rho);
  const delta = keys === 0 ? 0 : plain + options.deltaEps * (plain >= 0 ? 1 : -1);
  return { keys, weights, z, omega, lambda, rho, delta, solve };
}

/** Local linear attention in float64, query by query; q [batch, queries, heads, dim], k, v [batch, keys, heads, ..]. */
export function referenceLla(q: F64Array, k: F64Array, v: F64Array, options: LlaReferenceOptions): LlaReferenceResult {
  const [batch, queries, heads] = q.shape as [number, number, number, number];
  const valueDim = v.shape[3] as number;
  const out = f64([batch, queries, heads, valueDim]);
  const rho = f64Like(q);
  const [delta, omega] = [f64([batch, queries, heads]), f64([batch, queries, heads])];
  for (let b = 0; b < batch; b++)
    for (let i = 0; i < queries; i++)
      for (let h = 0; h < heads; h++) {
        const own = fit(q, k, options, b, i, h);
        const index = (b * queries + i) * heads + h;
        delta.values[index] = own.delta;
        omega.values[index] = own.omega;
        row(rho, b, i, h).set(own.rho);
        const o = row(out, b, i, h);
        own.z.forEach((zj, j) => {
          const s = (at(own.weights, j) * (1 - dot(zj, own.rho))) / own.delta;
          row(v, b, j, h).forEach((x, c) => (o[c] = at(o, c) + s * x));
        });
      }
  return { out, rho, delta, omega };
}

/** Gradients of sum(out * dOut), by the formulas of the backward; blocks of Sigma by themselves. */
export function referenceLlaGradients(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  dOut: F64Array,
  options: LlaReferenceOptions,
): LlaReferenceGradients {
  const [batch, queries, heads, dim] = q.shape as [number, number, number, number];
  const { blockSize: edge, scale } = options;
  const grads = { q: f64Like(q), k: f64Like(k), v: f64Like(v), ridgeLambda: f64([batch, queries, heads]) };
  const blocks = dim / edge;
  // x . z over one block
  const part = (x: Float64Array, z: Float64Array, block: number): number => {
    let sum = 0;
    for (let c = block * edge; c < (block + 1) * edge; c++) sum += at(x, c) * at(z, c);
    return sum;
  };
  for (let b = 0; b < batch; b++)
    for (let i = 0; i < queries; i++)
      for (let h = 0; h < heads; h++) {
        const { z, weights, omega, lambda, rho, delta, solve } = fit(q, k, options, b, i, h);
        const g = row(dOut, b, i, h);
        const query = row(q, b, i, h);
        const G = z.map((_, j) => dot(g, row(v, b, j, h)));
        const s = z.map((zj, j) => (at(weights, j) * (1 - dot(zj, rho))) / delta);
        const C = G.map((x, j) => (x * at(weights, j)) / delta);
        const beta = G.reduce((sum, x, j) => sum + (x * (s[j] as number)) / delta, 0);
        const tau = C.reduce((sum, x) => sum + x, 0);
        const t = new Float64Array(dim);
        z.forEach((zj, j) => zj.forEach((x, c) => (t[c] = at(t, c) + (C[j] as number) * x)));
        const u = solve(t);
        const e = u.map((x, c) => -x + 2 * beta * at(rho, c));
        const ridge = dot(u, rho) - beta * dot(rho, rho);
        grads.ridgeLambda.values[(b * queries + i) * heads + h] = z.length === 0 ? 0 : omega * ridge;
        const c0 = options.ridgeGradient === 'exact' ? lambda * ridge : 0;
        const dq = row(grads.q, b, i, h);
        if (z.length > 0) for (let c = 0; c < dim; c++) dq[c] = at(dq, c) - omega * at(e, c) + tau * at(rho, c);
        z.forEach((zj, j) => {
          const w = at(weights, j);
          let slope = G[j]! * s[j]! + w * (c0 - beta);
          for (let block = 0; block < blocks; block++) {
            const [R, U, E] = [part(rho, zj, block), part(u, zj, block), part(e, zj, block)];
            slope += w * (E + 0.5 * R * (U - E));
          }
          const key = row(k, b, j, h);
          const dk = row(grads.k, b, j, h);
          for (let c = 0; c < dim; c++) {
            const block = Math.floor(c / edge);
            const [R, E] = [part(rho, zj, block), part(e, zj, block)];
            dq[c] = at(dq, c) + scale * slope * at(key, c) + w * E * at(rho, c) - w * R * at(u, c);
            dk[c] = at(dk, c) + scale * slope * at(query, c) - C[j]! * at(rho, c) + w * at(e, c) - w * E * at(rho, c) + w * R * at(u, c);
          }
          const dv = row(grads.v, b, j, h);
          g.forEach((x, c) => (dv[c] = at(dv, c) + s[j]! * x));
        });
      }
  return grads;
}
