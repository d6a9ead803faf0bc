import { RandomStream } from '@heed/core';
import type { LabelledBatch } from './labelled.js';

/** A configuration of multi-query associative recall (Arora et al. 2023, Zoology; the official generator's definition). */
export interface MqarOptions {
  /** Token 0 is padding, keys are below vocabulary / 2, values from there. */
  readonly vocabulary: number;
  /** Length of a sequence, even. */
  readonly tokens: number;
  /** Key-value pairs, each queried once; 4 pairs <= tokens. */
  readonly pairs: number;
  /** Slots of queries are drawn by weight (slot + 1)^(power - 1). Default 0.01: most queries soon after the context. */
  readonly power?: number;
  /** Fills what is neither context nor query with random tokens, else with 0. Default true. */
  readonly randomNonQueries?: boolean;
}

/**
 * Sequences `first` .. `first + count` of a split. Context k1 v1 ... kn vn; then each key once more, at a drawn even place behind it, with
 * its value as the label of that position; the answer itself is never shown. A sequence is a function of seed, split and its number.
 * @throws RangeError for sizes that do not fit
 */
export function mqarBatch(options: MqarOptions, random: { seed: number; split: string }, first: number, count: number): LabelledBatch {
  const { vocabulary, tokens, pairs, power = 0.01, randomNonQueries = true } = options;
  if (tokens % 2 !== 0 || 4 * pairs > tokens || vocabulary <= tokens || pairs < 1)
    throw new RangeError(
      `mqar: ${pairs} pairs in ${tokens} tokens of a vocabulary of ${vocabulary}; it takes an even length of at least 4 pairs, below the vocabulary`,
    );
  const half = Math.floor(vocabulary / 2);
  const inputs = new Uint32Array(count * tokens);
  const positions = new Uint32Array(count * pairs);
  const labels = new Uint32Array(count * pairs);
  const slots = (tokens - 2 * pairs) / 2;
  const split = new RandomStream(random.seed, `mqar/${random.split}`);
  for (let row = 0; row < count; row++) {
    // one draw a sequence: noise, keys, values, slots, and the orders of these three
    const draws = split.at({ step: first + row }).uniform(tokens + 5 * pairs + slots);
    let taken = 0;
    const next = (): number => draws[taken++] as number;
    const sequence = inputs.subarray(row * tokens, (row + 1) * tokens);
    for (let t = 0; t < tokens; t++) sequence[t] = randomNonQueries ? Math.floor(next() * vocabulary) : 0;
    const keys = distinct(next, half - 1, pairs).map((key) => key + 1);
    const values = distinct(next, vocabulary - half, pairs).map((value) => value + half);
    for (let i = 0; i < pairs; i++) {
      sequence[2 * i] = keys[i] as number;
      sequence[2 * i + 1] = values[i] as number;
    }
    const queries = drawSlots(next, slots, pairs, power).map((slot, i) => ({ at: 2 * pairs + 2 * slot, i }));
    queries.sort((a, b) => a.at - b.at);
    queries.forEach(({ at, i }, n) => {
      sequence[at] = keys[i] as number;
      positions[row * pairs + n] = row * tokens + at;
      labels[row * pairs + n] = values[i] as number;
    });
  }
  return { batch: count, tokens, inputs, positions, labels };
}

/** `count` different numbers below `bound`: Floyd's sampling, then in random order; takes 2 count draws. */
function distinct(next: () => number, bound: number, count: number): number[] {
  const chosen = new Set<number>();
  for (let i = 0; i < count; i++) {
    const top = bound - count + i;
    const pick = Math.floor(next() * (top + 1));
    chosen.add(chosen.has(pick) ? top : pick);
  }
  return shuffled([...chosen], next);
}

/** Different slots, drawn one after the other by weight (slot + 1)^(power - 1): the least of exponential numbers over the weights. */
function drawSlots(next: () => number, slots: number, count: number, power: number): number[] {
  const times = Array.from({ length: slots }, (_, slot) => ({ slot, time: -Math.log(1 - next()) / (slot + 1) ** (power - 1) }));
  const first = times.sort((a, b) => a.time - b.time).slice(0, count);
  return shuffled(
    first.map(({ slot }) => slot),
    next,
  );
}

function shuffled(list: number[], next: () => number): number[] {
  for (let i = list.length - 1; i >= 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [list[i], list[j]] = [list[j] as number, list[i] as number];
  }
  return list;
}
