import { cast, slice, type Tensor, zeros } from '@heed/core';
import { attention } from '@heed/core/attention';
import { decayFromSlopes, lightning2, lightning2Slopes } from '@heed/linear/lightning2';
import { fna } from '@heed/sparse-local/fna';
import { zeta } from '@heed/topk/zeta';
import type { BenchOptions } from './options.js';
import { ZETA_DIMS, ZETA_OPTIONS, zetaRow } from './zeta-row.js';

/** q, k and v of one head in float64, [tokens, headDim] each. */
export interface HeadArrays {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  readonly headDim: number;
}

/** One thing to measure. */
export interface BenchKernel {
  run(q: Tensor, k: Tensor, v: Tensor, options: BenchOptions): Tensor;
  /** Row `token` of the output of head 0, straight from the definition: what the error is measured against. */
  row(head: HeadArrays, token: number, options: BenchOptions): Float64Array;
  /** Pairs of query and key that the result depends on, a head: the work that the figure in FLOP/s counts, 4 x headDim each. */
  pairs(tokens: number, options: BenchOptions): number;
}

const dot = ({ q, k, headDim }: HeadArrays, token: number, key: number): number => {
  let sum = 0;
  for (let c = 0; c < headDim; c++) sum += (q[token * headDim + c] as number) * (k[key * headDim + c] as number);
  return sum;
};

function weighted({ v, headDim }: HeadArrays, weights: ReadonlyMap<number, number>): Float64Array {
  const out = new Float64Array(headDim);
  for (const [key, weight] of weights)
    for (let c = 0; c < headDim; c++) out[c] = (out[c] as number) + weight * (v[key * headDim + c] as number);
  return out;
}

/** Softmax attention of one row over keys `first` to `token`. */
function softmaxRow(head: HeadArrays, first: number, token: number): Float64Array {
  const logits = new Map<number, number>();
  for (let key = first; key <= token; key++) logits.set(key, dot(head, token, key) / Math.sqrt(head.headDim));
  const top = Math.max(...logits.values());
  let sum = 0;
  for (const [key, logit] of logits) {
    const weight = Math.exp(logit - top);
    logits.set(key, weight);
    sum += weight;
  }
  for (const [key, weight] of logits) logits.set(key, weight / sum);
  return weighted(head, logits);
}

const triangle = (tokens: number): number => (tokens * (tokens + 1)) / 2;
const band = (tokens: number, window: number): number => triangle(tokens) - triangle(Math.max(0, tokens - window));

export const kernels: Readonly<Record<string, BenchKernel>> = {
  'attention-causal': {
    run: (q, k, v) => attention(q, k, v, { causal: true }),
    row: (head, token) => softmaxRow(head, 0, token),
    pairs: triangle,
  },
  'attention-window': {
    run: (q, k, v, { window }) => attention(q, k, v, { causal: true, window }),
    row: (head, token, { window }) => softmaxRow(head, Math.max(0, token - window + 1), token),
    pairs: (tokens, { window }) => band(tokens, window),
  },
  lightning2: {
    run: (q, k, v, { heads }) => lightning2(q, k, v, { decay: decayFromSlopes(lightning2Slopes({ heads })) }),
    row: (head, token, { heads }) => {
      const decay = Number(decayFromSlopes(lightning2Slopes({ heads }))[0]);
      const weights = new Map<number, number>();
      for (let key = 0; key <= token; key++) weights.set(key, Math.exp(decay * (token - key)) * dot(head, token, key));
      return weighted(head, weights);
    },
    // state update and read-out, the recurrent form: headDim x headDim each, counted in units of a pair
    pairs: (tokens, { headDim }) => tokens * headDim,
  },
  'fna-causal': {
    run: (q, k, v, { window }) => fna(q, k, v, { window: Math.min(window, q.dim(1)), causal: true }),
    row: (head, token, { window }) => softmaxRow(head, Math.max(0, token - window + 1), token),
    pairs: (tokens, { window }) => band(tokens, window),
  },
  zeta: {
    run: (q, k, v, { heads }) => {
      const points = (x: Tensor): Tensor => cast(slice(x, -1, 0, ZETA_DIMS), 'f32');
      return zeta(points(q), points(k), v, zeros(q.device, [heads]), ZETA_OPTIONS);
    },
    row: (head, token) => zetaRow(head, token),
    pairs: (tokens) => tokens * (ZETA_OPTIONS.topK + 1),
  },
};
