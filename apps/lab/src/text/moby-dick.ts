/** The held-out part has at least this many bytes, so that a demo can read 65,536 of them and still know what follows. */
export const HELD_OUT_BYTES = 70_000;

/** A chapter: its heading line and the bytes [start, end) of the book, heading included. */
export interface Chapter {
  readonly heading: string;
  readonly start: number;
  readonly end: number;
}

/** A book cut at a chapter: what models are trained on, and the last chapters that they never see. */
export interface BookSplit {
  readonly training: Uint8Array;
  readonly heldOut: Uint8Array;
  /** Headings of the held-out chapters, in order. */
  readonly chapters: readonly string[];
}

const HEADING = /^CHAPTER \d+\. .*$/gm;

/**
 * The chapters of Moby-Dick, found by their heading lines (`CHAPTER 132. The Symphony.`).
 * @throws RangeError when the text has no such line
 */
export function chapters(book: Uint8Array): Chapter[] {
  // latin1 maps each byte to one code unit, so that indices in the string are byte offsets.
  const text = Buffer.from(book.buffer, book.byteOffset, book.byteLength).toString('latin1');
  const starts = [...text.matchAll(HEADING)].map((match) => ({ heading: match[0], start: match.index }));
  if (starts.length === 0) {
    throw new RangeError(
      'moby-dick: no line reads "CHAPTER <number>. <title>"; give the text of the book as `npm run lab -- prepare` writes it',
    );
  }
  return starts.map(({ heading, start }, index) => ({
    heading: Buffer.from(heading, 'latin1').toString('utf8'),
    start,
    end: starts[index + 1]?.start ?? book.length,
  }));
}

/**
 * Cuts the book at the last chapter heading that leaves at least `heldOutBytes` behind it.
 * @throws RangeError when no heading leaves that many bytes, or when nothing would be left for training
 */
export function splitBook(book: Uint8Array, heldOutBytes: number = HELD_OUT_BYTES): BookSplit {
  const all = chapters(book);
  const first = all.filter(({ start }) => book.length - start >= heldOutBytes).length - 1;
  const cut = all[first]?.start ?? 0;
  if (cut === 0) {
    throw new RangeError(
      `moby-dick: ${book.length} bytes in ${all.length} chapters leave no training text beside ${heldOutBytes} held-out bytes; ask for fewer`,
    );
  }
  return { training: book.subarray(0, cut), heldOut: book.subarray(cut), chapters: all.slice(first).map(({ heading }) => heading) };
}

/** The last chapters of the book, which no shipped model was trained on: at least 70,000 bytes, beginning with a chapter heading. */
export function heldOut(book: Uint8Array): Uint8Array {
  return splitBook(book).heldOut;
}
