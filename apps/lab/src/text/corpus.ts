import { splitBook } from './moby-dick.js';

/** A stretch [start, end) of the training bytes with a name that configurations can weigh. */
export interface CorpusPart {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

/** What stands beside `train.bin` in `train.json`. */
export interface CorpusIndex {
  readonly parts: readonly CorpusPart[];
  /** SHA-256 of `train.bin`, hexadecimal. */
  readonly sha256: string;
}

/** Training bytes with their parts. */
export interface Corpus {
  readonly bytes: Uint8Array;
  readonly parts: readonly CorpusPart[];
}

/**
 * The training bytes: the addresses in the order given, then the book without its held-out chapters. Documents are separated by
 * a blank line. The parts are named `sotu` and `moby-dick`.
 * @param addresses cleaned texts
 * @param book cleaned text of Moby-Dick
 * @param heldOutBytes least length of what is kept from training; default 70,000
 */
export function buildCorpus(addresses: readonly string[], book: string, heldOutBytes?: number): Corpus {
  const speeches = Buffer.from(addresses.map((text) => text + '\n').join(''), 'utf8');
  const { training } = splitBook(Buffer.from(book, 'utf8'), heldOutBytes);
  return {
    bytes: Buffer.concat([speeches, training]),
    parts: [
      { name: 'sotu', start: 0, end: speeches.length },
      { name: 'moby-dick', start: speeches.length, end: speeches.length + training.length },
    ],
  };
}
