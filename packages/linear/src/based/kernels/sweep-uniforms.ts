import type { Tensor } from '@heed/core';
import type { basedUniforms } from '../text.js';

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

type Values = { [K in keyof typeof basedUniforms]: number };

/** Run-time values of a dispatch: strides in elements, sizes, factors. */
export function sweepUniforms(
  sweep: BasedSweep,
  operands: { q?: Tensor | undefined; k?: Tensor | undefined; v?: Tensor | undefined; d?: Tensor | undefined; out?: Tensor | undefined },
  tiles: number,
): Values {
  const stride = (x: Tensor | undefined, axis: number): number => x?.strides[axis] ?? 0;
  const { q, k, v, d, out } = operands;
  const { tokens, heads, segments, segmentTokens, stateSegments, featureScale, epsilon } = sweep;
  return {
    qBatch: stride(q, 0),
    qToken: stride(q, 1),
    qHead: stride(q, 2),
    kBatch: stride(k, 0),
    kToken: stride(k, 1),
    kHead: stride(k, 2),
    vBatch: stride(v, 0),
    vToken: stride(v, 1),
    vHead: stride(v, 2),
    dBatch: stride(d, 0),
    dToken: stride(d, 1),
    dHead: stride(d, 2),
    outBatch: stride(out, 0),
    outToken: stride(out, 1),
    outHead: stride(out, 2),
    tokens,
    heads,
    segments,
    segmentTokens,
    stateSegments,
    tiles,
    workgroups: tiles * heads * segments * sweep.batch,
    featureScale,
    epsilon,
    reverse: sweep.reverse ? 1 : 0,
  };
}
