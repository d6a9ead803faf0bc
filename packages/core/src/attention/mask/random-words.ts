import { philox4x32 } from '../../random/philox.js';

/** A sequence of 32-bit words from one Philox key: the same on every machine. Streams of one seed are independent. */
export function randomWords(seed: number, stream: number): () => number {
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32) >>> 0] as const;
  let block = 0;
  let words: readonly number[] = [];
  return () => {
    const at = block++ & 3;
    if (at === 0) words = philox4x32([(block - 1) >>> 2, 0, stream >>> 0, 0x6d61736b], key);
    return words[at]!;
  };
}

/** Integers in [0, bound) from a word source; the bias is below bound / 2^32. */
export function below(next: () => number, bound: number): number {
  return Math.floor(next() * 2 ** -32 * bound);
}
