import { RandomStream } from '@heed/core';
import type { LabelledBatch } from './labelled.js';

/** Tokens of the task, a vocabulary of 64. */
export const passkeyTokens: Readonly<
  Record<'pad' | 'begin' | 'key' | 'end' | 'ask' | 'digit' | 'filler' | 'cycle' | 'vocabulary' | 'digits', number>
> = {
  pad: 0,
  begin: 1,
  key: 2,
  end: 3,
  ask: 4,
  digit: 10,
  filler: 20,
  cycle: 25,
  vocabulary: 64,
  digits: 5,
} as const;

/** Tokens that are not filler: BOS, KEY d1..d5 END, ASK, and d1..d4, which are shown while the next digit is asked for. */
const fixed = 1 + 7 + 1 + 4;

/** Length of the shortest sequence. */
export const shortestPasskey: number = fixed;

/**
 * Sequences of `tokens` tokens: BOS, filler, KEY d1..d5 END, filler, ASK d1..d4; the labels are the five digits, at ASK and behind each
 * digit, so that they are all right exactly where greedy generation is. The filler is a cycle of 25 tokens at a random phase; the key
 * stands at a random depth. A sequence is a function of seed, split and its number.
 * @param depth share of the filler in front of the key, in place of a random one
 * @throws RangeError for fewer tokens than the key needs
 */
export function passkeyBatch(
  tokens: number,
  random: { seed: number; split: string },
  first: number,
  count: number,
  depth?: number,
): LabelledBatch {
  const { begin, key, end, ask, digit, filler, cycle, digits } = passkeyTokens;
  if (tokens < fixed) throw new RangeError(`passkey: ${tokens} tokens; the key and the question take ${fixed}`);
  const inputs = new Uint32Array(count * tokens);
  const positions = new Uint32Array(count * digits);
  const labels = new Uint32Array(count * digits);
  const room = tokens - fixed;
  for (let row = 0; row < count; row++) {
    const stream = new RandomStream(random.seed, `passkey/${random.split}`).at({ step: first + row });
    const code = stream.integers(digits, 10).map((d) => digit + d);
    const [phase = 0] = stream.integers(1, cycle);
    const [drawn = 0] = stream.integers(1, room + 1);
    const before = depth === undefined ? drawn : Math.round(depth * room);
    const sequence = inputs.subarray(row * tokens, (row + 1) * tokens);
    for (let t = 0; t < tokens; t++) sequence[t] = filler + ((phase + t) % cycle);
    sequence[0] = begin;
    sequence[1 + before] = key;
    sequence.set(code, 2 + before);
    sequence[2 + before + digits] = end;
    const question = tokens - digits;
    sequence[question] = ask;
    sequence.set(code.subarray(0, digits - 1), question + 1);
    for (let i = 0; i < digits; i++) {
      positions[row * digits + i] = row * tokens + question + i;
      labels[row * digits + i] = code[i] as number;
    }
  }
  return { batch: count, tokens, inputs, positions, labels };
}
