import { type FloatDType, type Tensor, zeros } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { entriesOf, type Piece, pieceOf, planPieces, spanOf } from './pieces.js';
import { planFor, runScan } from './scan.js';

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
}

/**
 * Outputs, and the final state where it is wanted; operands larger than a binding in pieces.
 * @param initial contiguous f32 [batch, heads, keyDim, valueDim]
 */
export function scalarForward(
  { q, k, v, decay, lengths, scale, chunk }: ScalarProblem,
  initial: Tensor | undefined,
  { withState, outDType }: { withState: boolean; outDType: FloatDType },
): { out: Tensor; final: Tensor | undefined } {
  const stateShape = [q.dim(0), q.dim(2), q.dim(3), v.dim(3)];
  const out = empty(v.device, v.shape, outDType);
  if (out.size === 0) return { out, final: withState ? (initial?.alias() ?? zeros(q.device, stateShape)) : undefined };
  const final = withState ? empty(q.device, stateShape) : undefined;
  for (const pieces of planPieces(q.dim(0), q.dim(1), [q, k, v, out].map(spanOf), q.device.limits.maxStorageBufferBindingSize)) {
    let state = initial && entriesOf(initial, pieces[0] as Piece);
    pieces.forEach((piece, i) => {
      const behind = i < pieces.length - 1 ? empty(q.device, [piece.batch, ...stateShape.slice(1)]) : final && entriesOf(final, piece);
      const [partQ, partK, partV, partOut] = [q, k, v, out].map((x) => pieceOf(x, piece)) as [Tensor, Tensor, Tensor, Tensor];
      const scan = { q: partQ, k: partK, v: partV, decay, queryScale: scale, tokensBefore: piece.tokenFirst };
      runScan(
        { ...scan, lengths: lengths && entriesOf(lengths, piece), plan: planFor(partK, partV, chunk) },
        { initial: state, final: behind, out: partOut },
      );
      state = behind;
    });
  }
  return { out, final };
}
