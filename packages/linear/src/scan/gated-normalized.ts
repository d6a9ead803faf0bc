import type { FloatDType, Tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { contiguousState, type GatedProblem, type GatedScan, gateForm, planGatedFor, scanOfPiece, sweepOf } from './gated.js';
import { runGatedMatrix, runGatedMatrixStates } from './gated-matrix.js';
import { runGatedSegments } from './gated-segments.js';
import { entriesOf, type Piece, planPieces, spanOf } from './pieces.js';

/** States of a gated scan and of that of a column of ones, f32 [batch, heads, keyDim, valueDim] and [batch, heads, keyDim, 1]. */
export interface NormalizedStates {
  state: Tensor;
  keySum: Tensor;
}

/** True where `normalizedGated` runs: f16 operands on a device with fragments that hold the state. */
export function canNormalizeGated({ q, k, v, gate, chunk }: GatedProblem): boolean {
  return v.size > 0 && planGatedFor(k, v, gateForm(gate), chunk, q).matrix !== undefined;
}

/**
 * A gated scan divided by that of a column of ones plus `eps`, in the dispatches of one scan. No gradient.
 * @param initial f32; both or none
 */
export function normalizedGated(
  problem: GatedProblem,
  initial: NormalizedStates | undefined,
  { eps, withState, outDType }: { eps: number; withState: boolean; outDType: FloatDType },
): { out: Tensor; final: NormalizedStates | undefined } {
  const { q, k, v, gate } = problem;
  const { device } = q;
  const shape = (batch: number, columns: number): number[] => [batch, q.dim(2), q.dim(3), columns];
  const out = empty(device, v.shape, outDType);
  const states = (batch: number): NormalizedStates => ({
    state: empty(device, shape(batch, v.dim(3))),
    keySum: empty(device, shape(batch, 1)),
  });
  const entries = (from: NormalizedStates, piece: Piece): NormalizedStates => ({
    state: entriesOf(from.state, piece),
    keySum: entriesOf(from.keySum, piece),
  });
  const start = initial && {
    state: contiguousState(initial.state) as Tensor,
    keySum: contiguousState(initial.keySum) as Tensor,
  };
  const final = withState ? states(q.dim(0)) : undefined;
  for (const pieces of planPieces(q.dim(0), q.dim(1), [q, k, v, gate, out].map(spanOf), device.limits.maxStorageBufferBindingSize)) {
    let before = start && entries(start, pieces[0] as Piece);
    pieces.forEach((piece, i) => {
      const behind = i < pieces.length - 1 ? states(piece.batch) : final && entries(final, piece);
      const { scan, plan, partOut } = scanOfPiece(problem, out, piece);
      sweepPiece(scan, plan.matrix as NonNullable<typeof plan.matrix>, { before, behind, out: partOut, eps });
      before = behind;
    });
  }
  return { out, final };
}

function sweepPiece(
  scan: GatedScan,
  tiles: NonNullable<ReturnType<typeof planGatedFor>['matrix']>,
  { before, behind, out, eps }: { before: NormalizedStates | undefined; behind: NormalizedStates | undefined; out: Tensor; eps: number },
): void {
  const { q, k, v, plan, gate } = scan;
  const sweep = sweepOf(scan);
  let [initial, keySum] = [before?.state, before?.keySum];
  // the states behind come from the scan over segments, so that the outputs need no binding for them
  if (plan.segments > 1 || behind) {
    const perSegment = [sweep.batch, sweep.heads, plan.segments, k.dim(3)];
    const [state, sums] = [empty(k.device, [...perSegment, v.dim(3)]), empty(k.device, [...perSegment, 1])];
    const totals = empty(k.device, [...perSegment.slice(0, 3), gate.rank === 4 ? k.dim(3) : 1]);
    runGatedMatrixStates(sweep, tiles, { k, v, state, totals, keySum: sums });
    runGatedSegments(sweep, { states: state, totals, initial, final: behind?.state });
    runGatedSegments(sweep, { states: sums, totals, initial: keySum, final: behind?.keySum });
    [initial, keySum] = [state, sums];
  }
  runGatedMatrix({ sweep, tiles, side: 'rows', q, k, v, out, initial, ones: { eps, keySum } });
}
