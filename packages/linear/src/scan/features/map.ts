/** A feature map as text, for the kernels on fragments; lanes hold whole rows of coordinates as eights of f16, `row0` and following. */
export interface FeatureMap {
  /** Coordinates of a row. */
  readonly dim: number;
  /** Features of a row, before padding to 32. */
  readonly count: number;
  /** Declarations that the text below uses. */
  readonly functions: string;
  /** `epsilon` counts once a key seen: denominators are means. */
  readonly epsilonPerKey: boolean;
  /** Statements before features of a row of keys; `peak` is the largest magnitude of a coordinate among its segment. */
  keyRow(): string;
  /** The same for queries. Declares `most`: no feature is larger. */
  queryRow(): string;
  /**
   * Statements that set `low` and `high`, eights of features 16 n .. 16 n + 15 of the row; queries times `factor`.
   * @param units the two eights that `keyUnit` speaks of, in place of the row
   */
  features(of: 'q' | 'k', n: string, units?: readonly [string, string]): string;
  /** The first of the two eights of a row of keys that features 16 n .. are made of, where they need no other. */
  readonly keyUnit?: (n: string) => string;
  /** The largest feature of keys whose coordinates are at most `peak`: an f32 expression. */
  keyBound(peak: string): string;
  /** What feature `n`, as `features` scaled it for a segment, is multiplied by: an f32 expression. */
  unscaled(n: string, peak: string): string;
  /** What feature `n` is multiplied by in a state that leaves the kernels. */
  stateFactor(n: string): string;
  /** Weights made of four products of coordinates, a vec4f expression. Absent: a weight is the product of features. */
  readonly weight?: (scores: string) => string;
  /** The largest power of two that a state may be multiplied by, so that weights fit beside it: keys of its segment are at most `peak`. */
  mostDown(peak: string): string;
  /** With `weight`: the largest weight of a row of queries, from what `queryRow` declared, with keys of at most `peak`. */
  readonly weightBound?: (peak: string) => string;
}

/** The map's features in whole tiles. */
export function paddedFeatures(map: Pick<FeatureMap, 'count'>): number {
  return Math.ceil(map.count / 32) * 32;
}
