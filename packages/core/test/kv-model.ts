// A plain array model of a KV cache: what every cache is held against.
import type { RandomStream } from '../src/random/stream.js';
import type { AttendOptions } from '../src/index.js';
import { rounded } from './ops-support.js';

/** One stored row of one head. */
export interface ModelRow {
  k: number[];
  v: number[];
}

export interface ModelSizes {
  kvHeads: number;
  heads: number;
  headDim: number;
  valueDim: number;
}

/** A sequence: rows by KV head, in order of tokens. */
export type ModelSequence = ModelRow[][];

export function emptySequence({ kvHeads }: ModelSizes): ModelSequence {
  return Array.from({ length: kvHeads }, () => []);
}

/** Softmax attention in float64 of the last n tokens of a sequence; `q` is [n, heads, headDim] flat. */
export function modelAttend(
  sequence: ModelSequence,
  q: ArrayLike<number>,
  n: number,
  sizes: ModelSizes,
  options: AttendOptions = {},
): number[] {
  const { kvHeads, heads, headDim, valueDim } = sizes;
  const { scale = 1 / Math.sqrt(headDim), causal = true, window = Infinity, sinkTokens = 0, softcap } = options;
  const out: number[] = [];
  for (let t = 0; t < n; t++) {
    for (let h = 0; h < heads; h++) {
      const rows = sequence[Math.floor((h * kvHeads) / heads)]!;
      const position = rows.length - n + t;
      const seen = rows
        .map((row, p) => ({ row, p }))
        .filter(({ p }) => !causal || (p <= position && (p > position - window || p < sinkTokens)));
      const scores = seen.map(({ row }) => {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += (q[(t * heads + h) * headDim + d] ?? 0) * (row.k[d] ?? 0);
        return softcap === undefined ? dot * scale : softcap * Math.tanh((dot * scale) / softcap);
      });
      const top = Math.max(...scores);
      const weights = scores.map((s) => Math.exp(s - top));
      const sum = weights.reduce((a, b) => a + b, 0);
      for (let d = 0; d < valueDim; d++) out.push(seen.reduce((total, { row }, i) => total + (weights[i] ?? 0) * (row.v[d] ?? 0), 0) / sum);
    }
  }
  return out;
}

/** Random rows of n tokens and their flat form [n, kvHeads, dim], rounded to the dtype that the cache stores. */
export function randomTokens(
  random: RandomStream,
  n: number,
  sizes: ModelSizes,
  dtype: 'f32' | 'f16',
): { rows: ModelRow[][]; k: number[]; v: number[] } {
  const draw = (size: number): number[] => Array.from(random.normal(size), (x) => rounded(x, dtype));
  const k = draw(n * sizes.kvHeads * sizes.headDim);
  const v = draw(n * sizes.kvHeads * sizes.valueDim);
  const rows = Array.from({ length: n }, (_, t) =>
    Array.from({ length: sizes.kvHeads }, (__, h) => {
      const at = t * sizes.kvHeads + h;
      return { k: k.slice(at * sizes.headDim, (at + 1) * sizes.headDim), v: v.slice(at * sizes.valueDim, (at + 1) * sizes.valueDim) };
    }),
  );
  return { rows, k, v };
}

export function push(sequence: ModelSequence, rows: readonly ModelRow[][]): void {
  for (const token of rows) token.forEach((row, head) => sequence[head]!.push(row));
}
