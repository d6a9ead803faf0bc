import type { Tensor } from '@heed/core';
import { basedStrides, type basedUniforms } from '../text.js';

/** What one dispatch of a scan kernel goes over. */
export interface BasedSweep {
  batch: number;
  tokens: number;
  heads: number;
  segments: number;
  segmentTokens: number;
  /** States given: one a segment, or 1, which every segment takes. */
  stateSegments: number;
  /** Factor on every coordinate, the square root of that on q.k. */
  featureScale: number;
  epsilon: number;
  /** From the last token to the first. */
  reverse: boolean;
  /** Valid tokens a batch entry, i32 [batch]. */
  lengths?: Tensor | undefined;
}

type Values = ReturnType<typeof basedStrides.values> & { [K in keyof typeof basedUniforms]: number };

/** Run-time values of a dispatch: strides in elements, sizes, factors. */
export function sweepUniforms(
  sweep: BasedSweep,
  operands: { q: Tensor | undefined; k: Tensor; v: Tensor; d?: Tensor | undefined; out?: Tensor | undefined },
  columnTiles: number,
): Values {
  const { q, k, v, d, out } = operands;
  const { tokens, heads, segments, segmentTokens, stateSegments, featureScale, epsilon } = sweep;
  return {
    tokens,
    heads,
    segments,
    segmentTokens,
    stateSegments,
    columnTiles,
    workgroups: columnTiles * heads * segments * sweep.batch,
    featureScale,
    epsilon,
    reverse: sweep.reverse ? 1 : 0,
    ...basedStrides.values({ q, k, v, d, out }),
  };
}
