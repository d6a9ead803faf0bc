import { inputAt } from './inputs.js';

// Rows of softmax attention and its gradients in float64, straight from the definitions. Every function is linear in tokens.

/** An attention problem over the seeded inputs `q`, `k`, `v` and, for gradients, `dOut`. */
export interface AttentionProblem {
  readonly tokens: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Default: as many as tokens. */
  readonly queries?: number;
  /** The keys that a query sees, ascending. */
  readonly visible: (head: number, query: number) => ArrayLike<number>;
}

const q = inputAt('q');
const k = inputAt('k');
const v = inputAt('v');
const dOut = inputAt('dOut');

/** Element 0 of a row of a [tokens, heads, dim] input. */
const at = (token: number, head: number, heads: number, dim: number): number => (token * heads + head) * dim;

function dot(f: (i: number) => number, from: number, other: Float64Array): number {
  let sum = 0;
  for (let c = 0; c < other.length; c++) sum += f(from + c) * (other[c] as number);
  return sum;
}

function addRow(into: Float64Array, f: (i: number) => number, from: number, factor: number): void {
  for (let c = 0; c < into.length; c++) into[c] = (into[c] as number) + factor * f(from + c);
}

const rowOf = (f: (i: number) => number, from: number, dim: number): Float64Array =>
  Float64Array.from({ length: dim }, (_, c) => f(from + c));

export const causalKeys =
  (first: (query: number) => number = () => 0) =>
  (_head: number, query: number): Int32Array => {
    const from = first(query);
    return Int32Array.from({ length: query + 1 - from }, (_, i) => from + i);
  };

/** Probabilities of a query's visible keys. */
function probabilities(p: AttentionProblem, head: number, query: number): { keys: ArrayLike<number>; weights: Float64Array } {
  const { heads, kvHeads, headDim } = p;
  const kv = Math.floor((head * kvHeads) / heads);
  const keys = p.visible(head, query);
  const own = rowOf(q, at(query, head, heads, headDim), headDim);
  const weights = new Float64Array(keys.length);
  let most = -Infinity;
  for (let i = 0; i < keys.length; i++) {
    const logit = dot(k, at(keys[i] as number, kv, kvHeads, headDim), own) / Math.sqrt(headDim);
    weights[i] = logit;
    most = Math.max(most, logit);
  }
  let sum = 0;
  for (let i = 0; i < weights.length; i++) sum += weights[i] = Math.exp((weights[i] as number) - most);
  for (let i = 0; i < weights.length; i++) weights[i] = (weights[i] as number) / sum;
  return { keys, weights };
}

/** A row of the output: sum of p v. */
export function attentionRow(p: AttentionProblem, head: number, query: number): Float64Array {
  const kv = Math.floor((head * p.kvHeads) / p.heads);
  const { keys, weights } = probabilities(p, head, query);
  const out = new Float64Array(p.headDim);
  for (let i = 0; i < keys.length; i++) addRow(out, v, at(keys[i] as number, kv, p.kvHeads, p.headDim), weights[i] as number);
  return out;
}

/** p and dS = p (dOut.v - delta) of a query's visible keys, delta = sum of p dOut.v. */
function scoreGradients(
  p: AttentionProblem,
  head: number,
  query: number,
): { keys: ArrayLike<number>; weights: Float64Array; ds: Float64Array } {
  const { heads, kvHeads, headDim } = p;
  const kv = Math.floor((head * kvHeads) / heads);
  const { keys, weights } = probabilities(p, head, query);
  const cotangent = rowOf(dOut, at(query, head, heads, headDim), headDim);
  const ds = new Float64Array(keys.length);
  let delta = 0;
  for (let i = 0; i < keys.length; i++) {
    ds[i] = dot(v, at(keys[i] as number, kv, kvHeads, headDim), cotangent);
    delta += (weights[i] as number) * (ds[i] as number);
  }
  for (let i = 0; i < keys.length; i++) ds[i] = (weights[i] as number) * ((ds[i] as number) - delta);
  return { keys, weights, ds };
}

/** A row of dq: scale times the sum of dS k. */
export function attentionDq(p: AttentionProblem, head: number, query: number): Float64Array {
  const kv = Math.floor((head * p.kvHeads) / p.heads);
  const { keys, ds } = scoreGradients(p, head, query);
  const out = new Float64Array(p.headDim);
  for (let i = 0; i < keys.length; i++)
    addRow(out, k, at(keys[i] as number, kv, p.kvHeads, p.headDim), (ds[i] as number) / Math.sqrt(p.headDim));
  return out;
}

/**
 * Rows of dk and dv of some keys, summed over `queries`: all queries whose cotangent is not zero and that see one of the keys. As many
 * heads as KV heads.
 */
export function attentionDkv(
  p: AttentionProblem,
  head: number,
  keysWanted: readonly number[],
  queries: readonly number[],
): { dk: Float64Array; dv: Float64Array }[] {
  const { heads, headDim } = p;
  const sums = keysWanted.map(() => ({ dk: new Float64Array(headDim), dv: new Float64Array(headDim) }));
  for (const query of queries) {
    const { keys, weights, ds } = scoreGradients(p, head, query);
    const from = at(query, head, heads, headDim);
    keysWanted.forEach((key, n) => {
      const place = indexIn(keys, key);
      const sum = sums[n];
      if (place < 0 || !sum) return;
      addRow(sum.dk, q, from, (ds[place] as number) / Math.sqrt(headDim));
      addRow(sum.dv, dOut, from, weights[place] as number);
    });
  }
  return sums;
}

function indexIn(ascending: ArrayLike<number>, wanted: number): number {
  let low = 0;
  let high = ascending.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    const value = ascending[middle] as number;
    if (value === wanted) return middle;
    if (value < wanted) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
}

// Linear attention with a fixed decay a head: o_t = sum over s <= t of exp(decay (t - s)) (q_t . k_s) v_s. Terms whose factor is under
// e^-60 are left out: they are 1e-26 of the largest.

export interface DecayProblem {
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly decay: readonly number[];
}

/** Tokens after which a factor is under e^-60. */
const reachOf = (decay: number): number => (decay === 0 ? Infinity : Math.ceil(60 / -decay));

type Input = (i: number) => number;

/** Sum over s of exp(decay |t - s|) (a_t . b_s) c_s, s from t back, or from t on. */
function decayed(p: DecayProblem, [a, b, c]: readonly [Input, Input, Input], head: number, token: number, forward: boolean): Float64Array {
  const { tokens, heads, headDim } = p;
  const decay = p.decay[head] ?? 0;
  const own = rowOf(a, at(token, head, heads, headDim), headDim);
  const out = new Float64Array(headDim);
  const reach = Math.min(reachOf(decay), forward ? tokens - 1 - token : token);
  for (let apart = 0; apart <= reach; apart++) {
    const from = at(forward ? token + apart : token - apart, head, heads, headDim);
    addRow(out, c, from, Math.exp(decay * apart) * dot(b, from, own));
  }
  return out;
}

export const decayRow = (p: DecayProblem, head: number, token: number): Float64Array => decayed(p, [q, k, v], head, token, false);
export const decayDq = (p: DecayProblem, head: number, token: number): Float64Array => decayed(p, [dOut, v, k], head, token, false);
export const decayDk = (p: DecayProblem, head: number, token: number): Float64Array => decayed(p, [v, dOut, q], head, token, true);
export const decayDv = (p: DecayProblem, head: number, token: number): Float64Array => decayed(p, [k, q, dOut], head, token, true);
