import { HeedError } from '../errors.js';
import { mulHigh, normalPairInto, philox4x32, philoxInto, uniformOf } from './philox.js';
import type { PhiloxKey, Uint32x4 } from './philox.js';

/** Where one draw lies in the space of random numbers: element i of it is word i % 4 of counter (i / 4 low, i / 4 high, step, op). */
export interface RandomDraw {
  readonly key: PhiloxKey;
  readonly step: number;
  readonly op: number;
}

/** What a checkpoint keeps of a stream; {@link RandomStream.at} goes back there. */
export interface RandomPosition {
  readonly step: number;
  readonly op: number;
}

/** The id of a named stream: FNV-1a, 32 bits, over the UTF-8 bytes of the name. */
export function streamId(name: string): number {
  let hash = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) hash = Math.imul(hash ^ byte, 0x01000193);
  return hash >>> 0;
}

/** The Philox key of a seed (an integer in 0 .. 2^53 - 1) and a stream id. */
export function randomKey(seed: number, id: number): PhiloxKey {
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new HeedError('INVALID_ARGUMENT', `random: seed is ${seed}; use an integer from 0 to 2^53 - 1`);
  }
  return [seed >>> 0, (Math.floor(seed / 2 ** 32) ^ id) >>> 0];
}

/** The four words that hold elements 4 x block .. 4 x block + 3 of a draw. */
export function drawWords(draw: RandomDraw, block: number): Uint32x4 {
  return philox4x32([block >>> 0, Math.floor(block / 2 ** 32), draw.step, draw.op], draw.key);
}

function drawWordsInto(out: Uint32Array, draw: RandomDraw, block: number): void {
  philoxInto(out, block >>> 0, Math.floor(block / 2 ** 32), draw.step, draw.op, draw.key);
}

/**
 * A named stream of random numbers: the same seed, name and position give the same numbers on the host and on every device.
 * Each draw moves `op` on by one; streams of different names do not shift one another.
 * Counter and key: Philox4x32-10 with key (seedLow, seedHigh xor streamId), counter (element / 4 low, high, step, op).
 */
export class RandomStream {
  readonly seed: number;
  /** Names from the root, joined by `/`. */
  readonly name: string;
  readonly key: PhiloxKey;
  readonly step: number;
  #op: number;

  /**
   * @param seed an integer in 0 .. 2^53 - 1
   * @param name default '' (the root)
   * @param position default step 0, op 0
   * @throws HeedError INVALID_ARGUMENT for another seed, or a step or op outside 0 .. 2^32 - 1
   */
  constructor(seed: number, name = '', position: RandomPosition = { step: 0, op: 0 }) {
    this.key = randomKey(seed, streamId(name));
    expectWord('step', position.step);
    expectWord('op', position.op);
    this.seed = seed;
    this.name = name;
    this.step = position.step;
    this.#op = position.op;
  }

  /** Where the next draw lies. */
  get position(): RandomPosition {
    return { step: this.step, op: this.#op };
  }

  /** The stream of this name beneath this one, at this stream's step and op 0. */
  stream(name: string): RandomStream {
    return new RandomStream(this.seed, this.name === '' ? name : `${this.name}/${name}`, { step: this.step, op: 0 });
  }

  /** The same stream at another position, as for the next training step or after loading a checkpoint; `op` defaults to 0. */
  at(position: { step: number; op?: number }): RandomStream {
    return new RandomStream(this.seed, this.name, { step: position.step, op: position.op ?? 0 });
  }

  /** Reserves the next draw; a device op that draws numbers takes one and passes it to its kernel. */
  take(): RandomDraw {
    expectWord('op', this.#op);
    return { key: this.key, step: this.step, op: this.#op++ };
  }

  /** `count` uniform numbers in [0, 1), bit-equal to the device's. */
  uniform(count: number): Float32Array<ArrayBuffer> {
    const out = new Float32Array(expectCount('uniform', count));
    this.#words(count, (word, i) => {
      out[i] = uniformOf(word);
    });
    return out;
  }

  /** `count` standard normal numbers. */
  normal(count: number): Float32Array<ArrayBuffer> {
    const out = new Float32Array(expectCount('normal', count));
    const draw = this.take();
    const words = new Uint32Array(4);
    for (let at = 0; at < count; at += 4) {
      drawWordsInto(words, draw, at / 4);
      normalPairInto(out, at, words[0] as number, words[1] as number);
      if (at + 2 < count) normalPairInto(out, at + 2, words[2] as number, words[3] as number);
    }
    return out;
  }

  /** `count` integers, each equally likely in 0 .. bound - 1. */
  integers(count: number, bound: number): Uint32Array<ArrayBuffer> {
    const out = new Uint32Array(expectCount('integers', count));
    const next = this.#boundedIntegers();
    for (let i = 0; i < count; i++) out[i] = next(bound);
    return out;
  }

  /** A random order of 0 .. count - 1, each order equally likely (Fisher-Yates). */
  permutation(count: number): Uint32Array<ArrayBuffer> {
    const out = new Uint32Array(expectCount('permutation', count)).map((_, i) => i);
    const next = this.#boundedIntegers();
    for (let i = count - 1; i > 0; i--) {
      const j = next(i + 1);
      const kept = out[i] as number;
      out[i] = out[j] as number;
      out[j] = kept;
    }
    return out;
  }

  #words(count: number, use: (word: number, index: number) => void): void {
    const draw = this.take();
    const words = new Uint32Array(4);
    for (let block = 0; block * 4 < count; block++) {
      drawWordsInto(words, draw, block);
      for (let lane = 0; lane < 4 && block * 4 + lane < count; lane++) use(words[lane] as number, block * 4 + lane);
    }
  }

  /** One draw, word by word; the multiply of Lemire 2019 with rejection, so that no value is favoured. */
  #boundedIntegers(): (bound: number) => number {
    const draw = this.take();
    let index = 0;
    let words: Uint32x4 = [0, 0, 0, 0];
    return (bound) => {
      if (!Number.isInteger(bound) || bound < 1 || bound > 2 ** 32 - 1) {
        throw new HeedError('INVALID_ARGUMENT', `random: bound is ${bound}; use an integer from 1 to 2^32 - 1`);
      }
      const rejected = (2 ** 32 - bound) % bound;
      for (;;) {
        if (index % 4 === 0) words = drawWords(draw, index / 4);
        const word = words[index++ % 4] as number;
        if (Math.imul(word, bound) >>> 0 >= rejected) return mulHigh(word, bound);
      }
    };
  }
}

function expectWord(name: string, value: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) {
    throw new HeedError('INVALID_ARGUMENT', `random: ${name} is ${value}; use an integer from 0 to 2^32 - 1`);
  }
}

function expectCount(what: string, count: number): number {
  if (!Number.isSafeInteger(count) || count < 0) {
    throw new HeedError('INVALID_ARGUMENT', `random: ${what} of ${count} numbers; ask for a whole number of them, 0 or more`);
  }
  return count;
}
