import { type Device, type FloatDType, tensor, type Tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { planScan, type ScanPlan, type ScanTuning, stepTile } from './plan.js';
import { runMatrix } from './matrix.js';
import { decaysOf } from './ranges.js';
import type { MatrixTiles } from './matrix-tile.js';
import { runRecurrent } from './recurrent.js';
import { runSegmentScan } from './segment-scan.js';
import { keyDimOf, type ScanTurns, type Sweep, valueDimOf } from './sweep.js';
import { runTokenStep } from './token-step.js';
import { mostTurned } from './tile-turns.js';
import { type Turning, turnsOf } from './turning.js';

/** One scan: out_t = queryScale q_t S_t with S_t = lambda S_(t-1) + keyScale k_t v_t^T. */
export interface Scan {
  /** [batch, tokens, heads, keyDim]; views are fine. */
  q: Tensor;
  k: Tensor;
  /** [batch, tokens, heads, valueDim]. */
  v: Tensor;
  /** Log-decay a head, f32 [heads], <= 0. */
  decay: Tensor;
  /** Valid tokens a batch entry, i32 [batch]; later ones leave the state alone and give zeros. */
  lengths?: Tensor | undefined;
  /** Tokens before these that `lengths` counts, too. Default 0. */
  tokensBefore?: number | undefined;
  /** From the last token to the first: the state that a token meets is the one behind it, undecayed. */
  reverse?: boolean | undefined;
  queryScale?: number | undefined;
  keyScale?: number | undefined;
  /** Outputs are multiplied by the element behind the decays (see cotangent.ts). */
  gain?: boolean | undefined;
  /** Operands turned by position as they are loaded; only where `turnsOnLoad` allows it. */
  turns?: ScanTurns | undefined;
  plan: ScanPlan;
}

/** Four workgroups a multiprocessor of the largest GPUs (runs, which end together, fill those of an H100 exactly); a few for a processor. */
export function tuningFor(device: Device): ScanTuning {
  return device.isSoftware ? { fill: 8, laneRows: 4 } : { fill: 512, laneRows: 16, multiprocessors: 132 };
}

/**
 * Plan of a scan of these tensors on their device.
 * @param decay where given, and made of numbers, the scan may go by runs
 */
export function planFor(k: Tensor, v: Tensor, chunk: number | undefined, turns?: ScanTurns, decay?: Tensor): ScanPlan {
  const [batch, tokens, heads] = k.shape as [number, number, number];
  const decays = decay && decaysOf(decay);
  const shape = { batch, tokens, heads, keyDim: keyDimOf({ k, turns }), valueDim: valueDimOf({ v, turns }), dtype: k.dtype, decays };
  const plan = (own?: number): ScanPlan => planScan({ ...shape, chunk: own ?? chunk }, k.device.capabilities, tuningFor(k.device));
  const made = plan();
  // turns are stepped through a segment or run, and would lose digits in longer ones
  return turns && (made.ranges?.longest ?? made.segmentTokens) > mostTurned ? plan(mostTurned) : made;
}

/** The plan for other keys and values in the segments of `plan`, so that both can share states. */
export function planLike(plan: ScanPlan, k: Tensor, v: Tensor, turns?: ScanTurns): ScanPlan {
  return planFor(k, v, plan.segmentTokens, turns);
}

/** States that a scan begins with and leaves, contiguous f32 [batch, heads, keyDim, valueDim]. */
export interface ScanStates {
  /** Before the first token. Default zeros. */
  initial?: Tensor | undefined;
  /** Written with the state behind the last token. */
  final?: Tensor | undefined;
}

/**
 * The first two dispatches of a segmented plan: what each segment adds, then the state before each.
 * @returns f32 [batch, heads, segments, keyDim, valueDim]
 */
export function segmentStates(scan: Omit<Scan, 'q'>, { initial, final }: ScanStates): Tensor {
  const { k, v, plan } = scan;
  const sweep = sweepOf(scan);
  const [keyDim, valueDim] = [keyDimOf(scan), valueDimOf(scan)];
  const shape = [sweep.batch, sweep.heads, plan.segments, keyDim, valueDim];
  const states = empty(k.device, shape);
  const matrix = matrixFor(plan, k, v);
  const added = matrix && plan.parts > 1 ? empty(k.device, [plan.parts, ...shape]) : undefined;
  if (matrix) runMatrix({ sweep, tiles: matrix, k, v, state: added ?? states, parts: plan.parts });
  else runRecurrent({ sweep, tile: plan.recurrent, k, v, state: states, fallback: k.dtype === 'f16' });
  runSegmentScan(sweep, keyDim * valueDim, { states, added, partStep: matrix?.states.chunk, initial, final });
  added?.dispose();
  return states;
}

/** A whole scan: writes `out`, [batch, tokens, heads, valueDim], and the final state where it is given. */
export function runScan(scan: Scan, { initial, final, out }: ScanStates & { out: Tensor }): void {
  if (scan.plan.form === 'serial' || scan.plan.form === 'ranges') sweepOutputs(scan, { initial, final, out });
  else sweepOutputs(scan, { initial: segmentStates(scan, { initial, final }), out });
}

/**
 * A few tokens from a state that is updated in place: reads and writes it once, and allocates nothing but the outputs.
 * @param state contiguous f32 [batch, heads, keyDim, valueDim]
 */
export function stepScan(
  { turning, ...rest }: Omit<Scan, 'plan' | 'reverse' | 'turns'> & { turning?: Turning | undefined },
  state: Tensor,
  outDType?: FloatDType,
): Tensor {
  const { device } = rest.k;
  const [batch, tokens, heads, valueDim] = rest.v.shape as [number, number, number, number];
  const out = empty(device, [batch, tokens, heads, valueDim], outDType ?? (rest.v.dtype as FloatDType));
  if (out.size === 0) return out;
  // one token is turned as it is loaded
  const onLoad = turning && tokens === 1 && rest.k.dim(3) % 4 === 0;
  const turned = (x: Tensor): Tensor => (turning && !onLoad ? turning.kernels.copy(x, turning) : x);
  const scan = { ...rest, q: turned(rest.q), k: turned(rest.k) };
  if (tokens === 1) {
    runTokenStep({ ...scan, gate: scan.decay, turns: onLoad ? turnsOf(turning, 'keys') : undefined }, state, out);
    return out;
  }
  const { q, k, v } = scan;
  const { limits } = device.capabilities;
  const tile = stepTile(batch * heads, k.dim(3), valueDim, limits.maxComputeWorkgroupStorageSize, tuningFor(k.device));
  runRecurrent({ sweep: sweepOf({ ...scan, plan: { segments: 1, segmentTokens: tokens } }), tile, q, k, v, out, state, inPlace: true });
  return out;
}

/** The last dispatch: outputs of every segment from the states before them. */
export function sweepOutputs(scan: Scan, tensors: ScanStates & { transposed?: boolean | undefined; out: Tensor }): void {
  const { q, k, v, plan } = scan;
  const { initial, transposed, final, out } = tensors;
  const { ranges } = plan;
  const table = ranges && tensor(k.device, ranges.table, [ranges.count, 3], { dtype: 'u32' });
  const sweep = { ...sweepOf(scan), ...(ranges && { segments: ranges.count, ranges: table }) };
  const run = { sweep, q, k, v, out, initial, transposed, state: final };
  const matrix = matrixFor(plan, q, k, v);
  if (matrix) runMatrix({ ...run, tiles: matrix });
  else runRecurrent({ ...run, tile: plan.recurrent, fallback: k.dtype === 'f16' });
}

/** The tiles on fragments, if all operands are f16 (a cotangent may be f32). */
function matrixFor(plan: ScanPlan, ...operands: Tensor[]): MatrixTiles | undefined {
  return operands.every((x) => x.dtype === 'f16') ? plan.matrix : undefined;
}

function sweepOf(scan: Omit<Scan, 'q' | 'plan'> & { plan: Pick<ScanPlan, 'segments' | 'segmentTokens'> }): Sweep {
  const { k, decay, lengths, plan } = scan;
  return {
    batch: k.dim(0),
    tokens: k.dim(1),
    heads: k.dim(2),
    segments: plan.segments,
    segmentTokens: plan.segmentTokens,
    decay,
    lengths,
    tokensBefore: scan.tokensBefore ?? 0,
    reverse: scan.reverse ?? false,
    queryScale: scan.queryScale ?? 1,
    keyScale: scan.keyScale ?? 1,
    gain: scan.gain,
    turns: scan.turns,
  };
}
