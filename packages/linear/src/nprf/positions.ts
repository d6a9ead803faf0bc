/** Where tokens stand: token t at (t / line) stride + t % line, so that the offset of a pair names its entry of the bias table. */
export interface Positions {
  /** Tokens a line: all of them, or the width of an image. */
  line: number;
  /** Positions from line to line: line, or 2 width - 1. */
  stride: number;
  /** Entry of offset zero. */
  centre: number;
  /** Query i sees keys up to i + shift, counted in positions. */
  shift: number;
}

/** Entries of the table: queries + keys - 1, or (2 height - 1) (2 width - 1). */
export function sequencePositions(queries: number, keys: number, causal: boolean): Positions {
  const line = Math.max(1, queries, keys);
  return { line, stride: line, centre: queries - 1, shift: causal ? keys - queries : keys };
}

export function imagePositions(height: number, width: number): Positions {
  const stride = 2 * width - 1;
  return { line: width, stride, centre: (height - 1) * stride + width - 1, shift: height * stride };
}

/** Positions that `tokens` tokens span. */
export function spanOf({ line, stride }: Positions, tokens: number): number {
  return tokens === 0 ? 0 : Math.floor((tokens - 1) / line) * stride + Math.min(line, tokens);
}
