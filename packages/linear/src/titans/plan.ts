/** What decides how a sequence is cut. */
export interface TitansPlanInput {
  /** Tokens in the buffer of the unfinished chunk. */
  pending: number;
  /** New tokens. */
  tokens: number;
  chunkSize: number;
  /** Chunks between two moves of the gradient point; null: it never moves. */
  period: number | null;
  /** Chunks stored before. */
  chunksBefore: number;
  /** Most chunks whose weights exist at a time. */
  inFlight: number;
}

export interface TitansGroup {
  chunks: number;
  /** The gradient point moves to the weights behind it: readers see them at once, whether tokens follow or not. */
  moves: boolean;
  /** Retrieved rows that are padding, in front. */
  padding: number;
}

export interface TitansPlan {
  groups: readonly TitansGroup[];
  /** Tokens behind the last whole chunk. */
  tail: number;
  /** Rows of zeros in front of the queries: row r reads the memory behind chunk floor(r / chunkSize). */
  padding: number;
  /** Rows that read the last memory; never padding. */
  rest: number;
}

/**
 * Cuts tokens into groups of chunks, none across a move of the gradient point. Token t reads the memory behind
 * floor((t + 1) / chunkSize) chunks, so queries stand one row later than keys.
 */
export function planTitans(input: TitansPlanInput): TitansPlan {
  const { pending, tokens, chunkSize, period, chunksBefore, inFlight } = input;
  const total = pending + tokens;
  const chunks = Math.floor(total / chunkSize);
  const padding = chunks > 0 ? pending + 1 : 0;
  const groups: TitansGroup[] = [];
  for (let done = 0; done < chunks;) {
    const place = chunksBefore + done;
    const left = period === null ? chunks - done : Math.min(chunks - done, period - (place % period));
    const count = Math.min(left, inFlight);
    const padded = Math.min(count * chunkSize, Math.max(0, padding - done * chunkSize));
    groups.push({ chunks: count, moves: period !== null && (place + count) % period === 0, padding: padded });
    done += count;
  }
  return { groups, tail: total - chunks * chunkSize, padding, rest: chunks > 0 ? total + 1 - chunks * chunkSize : tokens };
}
