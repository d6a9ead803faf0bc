import { type FloatDType, type Tensor, zeros } from '@heed/core';
import { asContiguous, empty } from '@heed/core/~internal';
import { gatedStepTile, type GatedPlan, planGated } from './gated-plan.js';
import { runGatedMatrix, runGatedMatrixStates } from './gated-matrix.js';
import { type GatedSweep, type GateForm, runGated } from './gated-recurrent.js';
import { runGatedSegments } from './gated-segments.js';
import { entriesOf, type Piece, pieceOf, planPieces, spanOf } from './pieces.js';
import { tuningFor } from './scan.js';
import { runTokenStep } from './token-step.js';

/** One gated scan: out_t = queryScale q_t S_t with S_t = diag(exp g_t) S_(t-1) + keyScale k_t v_t^T. */
export interface GatedScan {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Log-decay, f32 [batch, tokens, heads] or [batch, tokens, heads, keyDim] (valueDim with `transposed`). */
  gate: Tensor;
  lengths?: Tensor | undefined;
  /** Tokens before these that `lengths` counts, too. Default 0. */
  tokensBefore?: number | undefined;
  reverse?: boolean | undefined;
  queryScale?: number | undefined;
  keyScale?: number | undefined;
  /** Segments and their tokens. */
  plan: Pick<GatedPlan, 'segments' | 'segmentTokens'>;
}

/** States that a scan begins with and leaves, contiguous f32 [batch, heads, keyDim, valueDim]. */
export interface GatedStates {
  initial?: Tensor | undefined;
  final?: Tensor | undefined;
}

/** The gate of a problem and what it is differentiated with. */
export interface GatedProblem {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  gate: Tensor;
  lengths?: Tensor | undefined;
  scale: number;
  chunk?: number | undefined;
}

/** Form of a gate: one number a head, or channels, which are those of the key dimension. */
export function gateForm(gate: Tensor, transposed = false): GateForm {
  return gate.rank === 3 ? 'head' : transposed ? 'columns' : 'rows';
}

/** Plan of a gated scan of these tensors on their device. */
export function planGatedFor(k: Tensor, v: Tensor, form: GateForm, chunk: number | undefined, q: Tensor = k): GatedPlan {
  const [batch, tokens, heads, keyDim] = k.shape as [number, number, number, number];
  const dtype = q.dtype === k.dtype && k.dtype === v.dtype ? k.dtype : undefined;
  const shape = { batch, tokens, heads, keyDim, valueDim: v.dim(3), dtype, chunk };
  const { device } = k;
  return planGated(shape, form, device.capabilities, { ...tuningFor(device), blocks: !device.isSoftware });
}

/** What each segment adds, then the state before each, f32 [batch, heads, segments, keyDim, valueDim]. */
export function gatedSegmentStates(scan: Omit<GatedScan, 'q'>, { initial, final }: GatedStates): Tensor {
  const { k, v, plan } = scan;
  const sweep = sweepOf(scan);
  const form = gateForm(scan.gate);
  const { tile, blocks, matrix } = planGatedFor(k, v, form, plan.segmentTokens);
  const states = empty(k.device, [sweep.batch, sweep.heads, plan.segments, k.dim(3), v.dim(3)]);
  if (matrix) {
    const totals = empty(k.device, [sweep.batch, sweep.heads, plan.segments, scan.gate.rank === 4 ? k.dim(3) : 1]);
    runGatedMatrixStates(sweep, matrix, { k, v, state: states, totals });
    runGatedSegments(sweep, { states, totals, initial, final });
    return states;
  }
  runGated({ sweep, tile, blocks, form, k, v, state: states });
  runGatedSegments(sweep, { states, initial, final });
  return states;
}

/** Outputs of every segment from the states before them; with `transposed` those states, and the gates, are of swapped roles. */
export function gatedOutputs(scan: GatedScan, tensors: GatedStates & { transposed?: boolean | undefined; out: Tensor }): void {
  const { q, k, v, plan } = scan;
  const form = gateForm(scan.gate, tensors.transposed);
  const { tile, blocks, matrix } = planGatedFor(k, v, form, plan.segmentTokens, q);
  const { initial, transposed, final, out } = tensors;
  if (matrix) {
    const side = form === 'columns' ? ('columns' as const) : ('rows' as const);
    runGatedMatrix({ sweep: sweepOf(scan), tiles: matrix, side, q, k, v, out, initial, transposed, state: final });
    return;
  }
  runGated({ sweep: sweepOf(scan), tile, blocks, form, q, k, v, out, initial, transposed, state: final });
}

/** A few tokens from a contiguous state that is updated in place; allocates nothing but the outputs. */
export function gatedStep(scan: Omit<GatedScan, 'plan' | 'reverse'>, state: Tensor, outDType: FloatDType): Tensor {
  const { q, k, v } = scan;
  const [batch, tokens, heads, keyDim] = k.shape as [number, number, number, number];
  const out = empty(k.device, [batch, tokens, heads, v.dim(3)], outDType);
  if (out.size === 0) return out;
  if (tokens === 1) {
    runTokenStep(scan, state, out);
    return out;
  }
  const form = gateForm(scan.gate);
  const { maxComputeWorkgroupStorageSize } = k.device.capabilities.limits;
  const tile = gatedStepTile(batch * heads, { keyDim, valueDim: v.dim(3) }, form, maxComputeWorkgroupStorageSize, tuningFor(k.device));
  const sweep = sweepOf({ ...scan, plan: { segments: 1, segmentTokens: tokens } });
  runGated({ sweep, tile, form, q, k, v, out, state, inPlace: true });
  return out;
}

/**
 * Outputs, and the final state where it is wanted; operands larger than a binding in pieces.
 * @param initial contiguous f32 [batch, heads, keyDim, valueDim]
 */
export function gatedForward(
  problem: GatedProblem,
  initial: Tensor | undefined,
  { withState, outDType }: { withState: boolean; outDType: FloatDType },
): { out: Tensor; final: Tensor | undefined } {
  const { q, k, v, gate } = problem;
  const stateShape = [q.dim(0), q.dim(2), q.dim(3), v.dim(3)];
  const out = empty(v.device, v.shape, outDType);
  if (out.size === 0) return { out, final: withState ? (initial?.alias() ?? zeros(q.device, stateShape)) : undefined };
  const final = withState ? empty(q.device, stateShape) : undefined;
  for (const pieces of planPieces(q.dim(0), q.dim(1), [q, k, v, gate, out].map(spanOf), q.device.limits.maxStorageBufferBindingSize)) {
    let state = initial && entriesOf(initial, pieces[0] as Piece);
    pieces.forEach((piece, i) => {
      const behind = i < pieces.length - 1 ? empty(q.device, [piece.batch, ...stateShape.slice(1)]) : final && entriesOf(final, piece);
      const { scan, plan, partOut } = scanOfPiece(problem, out, piece);
      if (plan.segments === 1) gatedOutputs(scan, { initial: state, final: behind, out: partOut });
      else gatedOutputs(scan, { initial: gatedSegmentStates(scan, { initial: state, final: behind }), out: partOut });
      state = behind;
    });
  }
  return { out, final };
}

type Five = [Tensor, Tensor, Tensor, Tensor, Tensor];

/** A piece of a problem as a scan of its own with its plan, and the part of `out` that it writes. */
export function scanOfPiece(
  { q, k, v, gate, lengths, scale, chunk }: GatedProblem,
  out: Tensor,
  piece: Piece,
): { scan: GatedScan; plan: GatedPlan; partOut: Tensor } {
  const [partQ, partK, partV, partGate, partOut] = [q, k, v, gate, out].map((x) => pieceOf(x, piece)) as Five;
  const plan = planGatedFor(partK, partV, gateForm(gate), chunk, partQ);
  const scan: GatedScan = {
    q: partQ,
    k: partK,
    v: partV,
    gate: partGate,
    queryScale: scale,
    plan,
    lengths: lengths && entriesOf(lengths, piece),
    tokensBefore: piece.tokenFirst,
  };
  return { scan, plan, partOut };
}

export function sweepOf(scan: Omit<GatedScan, 'q'>): GatedSweep {
  const { k, gate, lengths, plan } = scan;
  return {
    batch: k.dim(0),
    tokens: k.dim(1),
    heads: k.dim(2),
    segments: plan.segments,
    segmentTokens: plan.segmentTokens,
    gate,
    lengths,
    tokensBefore: scan.tokensBefore ?? 0,
    reverse: scan.reverse ?? false,
    queryScale: scan.queryScale ?? 1,
    keyScale: scan.keyScale ?? 1,
  };
}

/** A contiguous state, or undefined. */
export function contiguousState(state: Tensor | null | undefined): Tensor | undefined {
  return state ? asContiguous(state) : undefined;
}
