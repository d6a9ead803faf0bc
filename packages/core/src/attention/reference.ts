import { f64, f64Like } from '../float64.js';
import type { F64Array } from '../float64.js';

/** A score as a function of the raw score and of positions: head h of batch entry b, query position q, key position kv. */
export interface ReferenceScoreMod {
  value(score: number, b: number, h: number, q: number, kv: number): number;
  /** d value / d score at the same raw score. */
  derivative(score: number, b: number, h: number, q: number, kv: number): number;
}

/** Options of {@link referenceAttention}; q stands at position `row + queryOffset` for masks, score functions and ALiBi. */
export interface ReferenceAttentionOptions {
  /** Factor on q.k; default 1/sqrt(headDim). */
  scale?: number | undefined;
  /** c in c tanh(s / c), applied to the scaled score. */
  softcap?: number | undefined;
  /** Applied after the softcap. */
  scoreMod?: ReferenceScoreMod | undefined;
  /** Adds slope_h (kv - q), [heads]. */
  alibiSlopes?: ArrayLike<number> | undefined;
  /** Added to every score of a key: [keys], or [batch or 1, heads or kvHeads or 1, keys]. */
  keyBias?: F64Array | undefined;
  /** One logit a query head that joins the denominator without a value, [heads]. */
  sinks?: F64Array | undefined;
  /** Which keys a query sees; default all. */
  mask?: ((b: number, h: number, q: number, kv: number) => boolean) | undefined;
  /** Valid keys of each batch entry. */
  lengths?: ArrayLike<number> | undefined;
  /** Default 0. */
  queryOffset?: number | undefined;
}

export interface ReferenceAttentionResult {
  /** [batch, queries, heads, valueDim]; rows that see nothing are 0. */
  out: F64Array;
  /** Natural logsumexp of the scores, [batch, queries, heads]; minus infinity for rows that see nothing. */
  lse: F64Array;
  /** Sum over the queries of each key's probabilities, [batch, keys, heads]. */
  columnSums: F64Array;
}

export interface ReferenceAttentionGradients {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  sinks?: F64Array;
  keyBias?: F64Array;
}

/**
 * Dense masked softmax attention in float64, the definition that the engine is held against (FlexAttention's order: scale,
 * softcap, score function, biases, mask, softmax). q is [batch, queries, heads, headDim], k [batch, keys, kvHeads, headDim],
 * v [batch, keys, kvHeads, valueDim]; query head h reads KV head floor(h kvHeads / heads).
 */
export function referenceAttention(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  options: ReferenceAttentionOptions = {},
): ReferenceAttentionResult {
  const { batch, queries, keys, heads, kvHeads, valueDim } = sizes(q, k, v);
  const out = f64([batch, queries, heads, valueDim]);
  const lse = f64([batch, queries, heads]);
  const columnSums = f64([batch, keys, heads]);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < queries; i++) {
      for (let h = 0; h < heads; h++) {
        const row = (b * queries + i) * heads + h;
        const kvHead = Math.floor((h * kvHeads) / heads);
        const scores = rowScores(q, k, options, b, i, h);
        const rowLse = logSumExp(scores, options.sinks?.values[h]);
        lse.values[row] = rowLse;
        for (let j = 0; j < keys; j++) {
          const p = probability(scores[j] as number, rowLse);
          add(columnSums, (b * keys + j) * heads + h, p);
          for (let d = 0; d < valueDim; d++) add(out, row * valueDim + d, p * at(v, ((b * keys + j) * kvHeads + kvHead) * valueDim + d));
        }
      }
    }
  }
  return { out, lse, columnSums };
}

/**
 * The gradients of {@link referenceAttention} from cotangents of out and of lse (either may be left out).
 * dS = P (dP - delta), delta = sum_d out dOut - dLse; a sink's P has no value, so its dS is -P delta. Rows that see nothing give 0.
 */
export function referenceAttentionGradients(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  cotangents: { out?: F64Array | undefined; lse?: F64Array | undefined },
  options: ReferenceAttentionOptions = {},
): ReferenceAttentionGradients {
  const { batch, queries, keys, heads, kvHeads, headDim, valueDim } = sizes(q, k, v);
  const scale = options.scale ?? 1 / Math.sqrt(headDim);
  const { out, lse } = referenceAttention(q, k, v, options);
  const dq = f64Like(q);
  const dk = f64Like(k);
  const dv = f64Like(v);
  const dSinks = options.sinks && f64Like(options.sinks);
  const dKeyBias = options.keyBias && f64Like(options.keyBias);
  for (let b = 0; b < batch; b++) {
    for (let i = 0; i < queries; i++) {
      for (let h = 0; h < heads; h++) {
        const row = (b * queries + i) * heads + h;
        const kvHead = Math.floor((h * kvHeads) / heads);
        const rowLse = at(lse, row);
        if (rowLse === -Infinity) continue;
        let delta = -(cotangents.lse?.values[row] ?? 0);
        for (let d = 0; d < valueDim; d++) delta += at(out, row * valueDim + d) * (cotangents.out?.values[row * valueDim + d] ?? 0);
        if (dSinks) add(dSinks, h, -probability(at(options.sinks as F64Array, h), rowLse) * delta);
        const scores = rowScores(q, k, options, b, i, h);
        for (let j = 0; j < keys; j++) {
          const p = probability(scores[j] as number, rowLse);
          if (p === 0) continue;
          const kvRow = (b * keys + j) * kvHeads + kvHead;
          let dP = 0;
          for (let d = 0; d < valueDim; d++) {
            const dOut = cotangents.out?.values[row * valueDim + d] ?? 0;
            dP += dOut * at(v, kvRow * valueDim + d);
            add(dv, kvRow * valueDim + d, p * dOut);
          }
          const dScore = p * (dP - delta);
          if (dKeyBias) add(dKeyBias, keyBiasPlace(dKeyBias, b, h, j, heads), dScore);
          const dRaw = dScore * scoreDerivative(rawScore(q, k, options, b, i, h, j), options, b, h, i + (options.queryOffset ?? 0), j);
          for (let d = 0; d < headDim; d++) {
            add(dq, row * headDim + d, scale * dRaw * at(k, kvRow * headDim + d));
            add(dk, kvRow * headDim + d, scale * dRaw * at(q, row * headDim + d));
          }
        }
      }
    }
  }
  return { q: dq, k: dk, v: dv, ...(dSinks && { sinks: dSinks }), ...(dKeyBias && { keyBias: dKeyBias }) };
}

interface Sizes {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
}

function sizes(q: F64Array, k: F64Array, v: F64Array): Sizes {
  const [batch, queries, heads, headDim] = q.shape as [number, number, number, number];
  const [, keys, kvHeads] = k.shape as [number, number, number, number];
  return { batch, queries, keys, heads, kvHeads, headDim, valueDim: v.shape[3] as number };
}

/** The scores of one query row after all functions and biases, minus infinity where the key is not seen. */
function rowScores(q: F64Array, k: F64Array, options: ReferenceAttentionOptions, b: number, i: number, h: number): Float64Array {
  const { keys, heads } = sizes(q, k, k);
  const position = i + (options.queryOffset ?? 0);
  const scores = new Float64Array(keys).fill(-Infinity);
  for (let j = 0; j < keys; j++) {
    if (j >= (options.lengths?.[b] ?? keys)) continue;
    if (options.mask && !options.mask(b, h, position, j)) continue;
    let score = softcapped(rawScore(q, k, options, b, i, h, j), options.softcap);
    if (options.scoreMod) score = options.scoreMod.value(score, b, h, position, j);
    if (options.alibiSlopes) score += (options.alibiSlopes[h] as number) * (j - position);
    if (options.keyBias) score += at(options.keyBias, keyBiasPlace(options.keyBias, b, h, j, heads));
    scores[j] = score;
  }
  return scores;
}

function rawScore(q: F64Array, k: F64Array, options: ReferenceAttentionOptions, b: number, i: number, h: number, j: number): number {
  const { queries, keys, heads, kvHeads, headDim } = sizes(q, k, k);
  const row = (b * queries + i) * heads + h;
  const kvRow = (b * keys + j) * kvHeads + Math.floor((h * kvHeads) / heads);
  let dot = 0;
  for (let d = 0; d < headDim; d++) dot += at(q, row * headDim + d) * at(k, kvRow * headDim + d);
  return dot * (options.scale ?? 1 / Math.sqrt(headDim));
}

/** Where the bias of key j for head h of batch entry b lies; heads share an entry where it has fewer of them. */
function keyBiasPlace({ shape }: F64Array, b: number, h: number, j: number, heads: number): number {
  if (shape.length === 1) return j;
  const [batch, biasHeads, keys] = shape as [number, number, number];
  return ((batch === 1 ? 0 : b) * biasHeads + Math.floor((h * biasHeads) / heads)) * keys + j;
}

function softcapped(score: number, softcap: number | undefined): number {
  return softcap === undefined ? score : softcap * Math.tanh(score / softcap);
}

/** d (final score) / d (scaled score): the softcap's 1 - (s' / c)^2 times the score function's own. */
function scoreDerivative(
  raw: number,
  { softcap, scoreMod }: ReferenceAttentionOptions,
  b: number,
  h: number,
  q: number,
  kv: number,
): number {
  const capped = softcapped(raw, softcap);
  const ofCap = softcap === undefined ? 1 : 1 - (capped / softcap) ** 2;
  return ofCap * (scoreMod?.derivative(capped, b, h, q, kv) ?? 1);
}

function logSumExp(scores: Float64Array, sink: number | undefined): number {
  const max = scores.reduce((a, b) => Math.max(a, b), sink ?? -Infinity);
  if (max === -Infinity) return -Infinity;
  let sum = sink === undefined ? 0 : Math.exp(sink - max);
  for (const score of scores) sum += Math.exp(score - max);
  return max + Math.log(sum);
}

function probability(score: number, lse: number): number {
  return score === -Infinity ? 0 : Math.exp(score - lse);
}

function at(array: F64Array, position: number): number {
  return array.values[position] as number;
}

function add(array: F64Array, position: number, amount: number): void {
  array.values[position] = at(array, position) + amount;
}
