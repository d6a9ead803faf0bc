import { type FloatDType, type Tensor, zeros } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { entriesOf, type Piece, pieceOf, planPieces, type Span, spanOf } from './pieces.js';
import { planFor, runScan } from './scan.js';
import { type Turning, turningFrom, turnsOf, turnsOnLoad } from './turning.js';

/** A scan with one decay a head. */
export interface ScalarProblem {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Log-decay, f32 [heads]. */
  decay: Tensor;
  lengths?: Tensor | undefined;
  scale: number;
  chunk?: number | undefined;
  /** Turns of q and k. */
  turning?: Turning | undefined;
}

/** Width of keys once they are turned. */
export function turnedDim(k: Tensor, turning: Turning | undefined): number {
  return turning?.form === 'concat' ? 2 * k.dim(3) : k.dim(3);
}

/** How much of a buffer a contiguous copy of x with rows of `dim` elements spans. */
export function wideSpan(x: Tensor, dim: number): Span {
  const tokenBytes = x.dim(2) * dim * (x.dtype === 'f16' ? 2 : 4);
  return { bytes: x.dim(0) * x.dim(1) * tokenBytes, tokenBytes };
}

/**
 * Outputs, and the final state where it is wanted; operands larger than a binding in pieces.
 * @param initial contiguous f32 [batch, heads, keyDim, valueDim]
 */
export function scalarForward(
  { q, k, v, decay, lengths, scale, chunk, turning }: ScalarProblem,
  initial: Tensor | undefined,
  { withState, outDType }: { withState: boolean; outDType: FloatDType },
): { out: Tensor; final: Tensor | undefined } {
  const keyDim = turnedDim(k, turning);
  const stateShape = [q.dim(0), q.dim(2), keyDim, v.dim(3)];
  const out = empty(v.device, v.shape, outDType);
  if (out.size === 0) return { out, final: withState ? (initial?.alias() ?? zeros(q.device, stateShape)) : undefined };
  const final = withState ? empty(q.device, stateShape) : undefined;
  const { capabilities, limits } = q.device;
  const on = turning && turnsOf(turning, 'keys');
  const onLoad = on && turnsOnLoad(planFor(k, v, chunk, on), { ...on, headDim: k.dim(3), keyDim }, capabilities);
  const spans = [q, k, v, out].map(spanOf);
  if (on && !onLoad) spans.push(wideSpan(k, keyDim));
  for (const pieces of planPieces(q.dim(0), q.dim(1), spans, limits.maxStorageBufferBindingSize)) {
    let state = initial && entriesOf(initial, pieces[0] as Piece);
    pieces.forEach((piece, i) => {
      const behind = i < pieces.length - 1 ? empty(q.device, [piece.batch, ...stateShape.slice(1)]) : final && entriesOf(final, piece);
      const before = piece.tokenFirst;
      const turns = onLoad ? turnsOf(turning, 'keys', before) : undefined;
      const copied = turning && !onLoad ? turningFrom(turning, before) : undefined;
      const [partQ, partK] = [q, k].map((x) => copied?.kernels.copy(pieceOf(x, piece), copied) ?? pieceOf(x, piece)) as [Tensor, Tensor];
      const [partV, partOut] = [v, out].map((x) => pieceOf(x, piece)) as [Tensor, Tensor];
      const scan = { q: partQ, k: partK, v: partV, decay, queryScale: scale, tokensBefore: before, turns };
      runScan(
        { ...scan, lengths: lengths && entriesOf(lengths, piece), plan: planFor(partK, partV, chunk, turns, decay) },
        { initial: state, final: behind, out: partOut },
      );
      if (copied) for (const copy of [partQ, partK]) copy.dispose();
      state = behind;
    });
  }
  return { out, final };
}
