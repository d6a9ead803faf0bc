import type { Expr } from '../../kernel/expr/index.js';

/** What a captured array of a mask is bound to: a typed array on the host, or a tensor on the device. */
export type CaptureSource = Int32Array | Uint32Array | Float32Array | { readonly dtype: string; readonly shape: readonly number[] };

/** Edges of the tiles that a kernel works in, in tokens. */
export interface TileSizes {
  readonly query: number;
  readonly key: number;
}

/**
 * Lengths of one attention call, in tokens. Query row i has the logical position i + offset, key row j the position j.
 * `offset` defaults to keys - queries: the last query lines up with the last key (bottom-right).
 */
export interface AttentionLengths {
  readonly queries: number;
  readonly keys: number;
  readonly offset?: number;
}

/** Tiles [first, end) of the other axis of which every pair is visible (`full`) or some pair may be (`partial`). */
export type Run = readonly [first: number, end: number, kind: 'full' | 'partial'];

/** Disjoint half-open intervals of token positions, ascending, not touching, flat: start, end, start, end, ... */
export type Spans = readonly number[];

/** Three-valued visibility of one axis for a range of the other: `all` is within what the whole range sees, `some` covers what any of it sees. */
export interface Coverage {
  readonly all: Spans;
  readonly some: Spans;
}

/** A question to a pattern: positions [low, high) of one axis against positions [from, to) of the other. low < high, from < to. */
export interface Region {
  readonly batch: number;
  readonly head: number;
  readonly low: number;
  readonly high: number;
  readonly from: number;
  readonly to: number;
  /** Spans finer than this many tokens on the other axis are of no use to the asker. */
  readonly grain: number;
}

/**
 * Where a mask is full, partial and empty, without looking at pairs. Both directions answer for positions inside the region only.
 * The answer for a single position must be exact or leave the doubt between `all` and `some`; it must never be wrong.
 */
export interface MaskPattern {
  /** Keys [from, to) that queries [low, high) see. */
  keys(region: Region): Coverage;
  /** Queries [from, to) that see keys [low, high). */
  queries(region: Region): Coverage;
}

/** Which keys a query sees; see `maskFrom`. */
export interface Mask {
  /** Visibility in the i32 variables `b`, `h`, `q`, `kv` (logical positions; head is the query head). */
  readonly predicate: Expr<'bool'>;
  /** Structural cache key of the predicate. Window sizes, lengths and arrays are run-time values and not part of it. */
  readonly key: string;
  /** Values of the predicate's uniforms. */
  readonly uniforms: Readonly<Record<string, number>>;
  /** Arrays that the predicate reads. */
  readonly captures: Readonly<Record<string, CaptureSource>>;
  /** Whether heads, and batch entries, differ. */
  readonly perHead: boolean;
  readonly perBatch: boolean;
  /** The pattern behind `runs`, for combination. */
  readonly pattern: MaskPattern;
  /**
   * The predicate on the host, at logical positions.
   * @throws HeedError UNSUPPORTED when a captured array lives on the device
   */
  visible(batch: number, head: number, q: number, kv: number): boolean;
  /**
   * Key tiles that a query tile needs: ascending, disjoint; tiles not covered are empty. `full` says that every pair is visible and
   * both tiles lie wholly inside the lengths, so tails are partial. In doubt partial. The cost does not depend on the number of pairs.
   */
  runs(head: number, queryTile: number, tiles: TileSizes, lengths: AttentionLengths, batch?: number): Run[];
  /** Query tiles that see a key tile, as `runs`. */
  transposedRuns(head: number, keyTile: number, tiles: TileSizes, lengths: AttentionLengths, batch?: number): Run[];
  /** Number of visible pairs of one head and batch entry, exact; O(queries). */
  area(lengths: AttentionLengths, head?: number, batch?: number): number;
  /** Visible in both. */
  and(other: Mask): Mask;
  /** Visible in either. */
  or(other: Mask): Mask;
  /** Visible exactly where this mask hides. */
  not(): Mask;
}
