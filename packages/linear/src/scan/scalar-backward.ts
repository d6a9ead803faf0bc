import { add, type Tensor, zeros } from '@heed/core';
import { asContiguous, empty } from '@heed/core/~internal';
import { halveCotangent, timesGain } from './cotangent.js';
import { entriesOf, type Piece, pieceOf, planPieces, spanOf } from './pieces.js';
import type { ScanPlan } from './plan.js';
import { turnedDim, wideSpan } from './scalar.js';
import { planFor, planLike, type Scan, segmentStates, sweepOutputs } from './scan.js';
import type { ScanTurns } from './sweep.js';
import { type Turning, turningFrom, turnsOf, turnsOnLoad } from './turning.js';

/** What the gradients are computed from. */
export interface Lightning2Saved {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  initialState?: Tensor | undefined;
  decay: Tensor;
  lengths?: Tensor | undefined;
  scale: number;
  chunk?: number | undefined;
  /** Turns of q and k, which are saved as they were before. */
  turning?: Turning | undefined;
}

export interface Lightning2Gradients {
  q: Tensor | null;
  k: Tensor | null;
  v: Tensor | null;
  initialState: Tensor | null;
  /** Of the angles of turns. */
  theta: Tensor | null;
}

/**
 * Gradients of `lightning2` (Qin et al. 2024, section 3.3), each a scan with the roles swapped. With S_t the forward state and
 * G_t = lambda G_(t+1) + scale q_t dOut_t^T, G_T = dState + scale q_T dOut_T^T, the state of the reverse sweep:
 * dq_t = scale S_t dOut_t, dk_t = G_t v_t, dv_t = G_t^T k_t, dInitial = lambda G_1. So dq is the scan of (dOut, v, k) and meets
 * S transposed; dv is the reverse scan of (k, q, dOut); dk that of (v, dOut, q) and meets G transposed. Nothing but q, k, v is
 * saved; states are recomputed. Deterministic: every sum has one order.
 */
export function lightning2Backward(
  saved: Lightning2Saved,
  dOut: Tensor | null,
  dState: Tensor | null,
  needs: { q: boolean; k: boolean; v: boolean; initialState: boolean; theta?: boolean },
): Lightning2Gradients {
  const { q, k, v, initialState, turning } = saved;
  const keyDim = turnedDim(k, turning);
  const like = (x: Tensor): Tensor => empty(x.device, x.shape, x.dtype);
  const stateShape = [q.dim(0), q.dim(2), keyDim, v.dim(3)];
  let last = dState ? asContiguous(dState) : undefined;
  if (v.size === 0) {
    // no tokens: the final state is the initial one
    const nothing = {
      initialState: needs.initialState ? (last ?? zeros(q.device, stateShape)) : null,
      theta: turning ? zeros(q.device, turning.theta.shape) : null,
    };
    return { q: like(q), k: like(k), v: like(v), ...nothing };
  }
  // on fragments an f32 cotangent becomes f16 times a gain, which outputs and states are multiplied by again
  const [own, swapped] = turning ? [turnsOf(turning, 'keys'), turnsOf(turning, 'values')] : [];
  const plans = [planFor(k, v, saved.chunk, own), planFor(v, k, saved.chunk, swapped)] as const;
  const onFragments = v.dtype === 'f16' && plans.every(({ matrix }) => matrix);
  const halved = dOut?.dtype === 'f32' && onFragments ? halveCotangent(dOut, saved.decay, saved.lengths) : undefined;
  if (halved && last) last = timesGain(last, halved.table, true);
  const headDim = k.dim(3);
  const { capabilities } = q.device;
  const onLoad =
    turning !== undefined &&
    onFragments &&
    turnsOnLoad(plans[0], { of: 'keys', headDim, keyDim }, capabilities) &&
    turnsOnLoad(plans[1], { of: 'values', headDim, keyDim: v.dim(3) }, capabilities);
  const whole: Problem = {
    ...saved,
    onLoad,
    onFragments,
    gains: halved?.table,
    dOut: halved?.halves ?? dOut ?? zeros(v.device, v.shape, { dtype: v.dtype }),
  };
  const grads: Lightning2Gradients = {
    q: needs.q ? like(q) : null,
    k: needs.k ? like(k) : null,
    v: needs.v ? like(v) : null,
    initialState: needs.initialState ? empty(q.device, stateShape) : null,
    theta: null,
  };
  const spans = [q, k, v, whole.dOut, grads.q, grads.k, grads.v].flatMap((x) => (x ? [spanOf(x)] : []));
  if (turning) spans.push(wideSpan(k, keyDim));
  const wanted = { q: needs.q || needs.theta, k: needs.k || needs.theta };
  const first = initialState && asContiguous(initialState);
  for (const pieces of planPieces(q.dim(0), q.dim(1), spans, q.device.limits.maxStorageBufferBindingSize)) {
    const problems = pieces.map((piece) => problemOf(whole, piece));
    const starts = problems.map((_, i) => (i > 0 ? empty(q.device, [pieces[0]?.batch ?? 0, ...stateShape.slice(1)]) : undefined));
    const entries = pieces[0] as Piece;
    starts[0] = first && entriesOf(first, entries);
    if (wanted.q)
      problems.slice(0, -1).forEach((problem, i) => segmentStates(problem.forward, { initial: starts[i], final: starts[i + 1] }));
    let behind = last && entriesOf(last, entries);
    for (let i = pieces.length - 1; i >= 0; i--) {
      const piece = pieces[i] as Piece;
      const before =
        i > 0 ? empty(q.device, [piece.batch, ...stateShape.slice(1)]) : grads.initialState && entriesOf(grads.initialState, piece);
      const part = (x: Tensor | null): Tensor | undefined => (x ? pieceOf(x, piece) : undefined);
      const states = { initial: starts[i], behind, before: before ?? undefined };
      const problem = problems[i] as PieceProblem;
      if (!turning) backwardPiece(problem, states, { q: part(grads.q), k: part(grads.k), v: part(grads.v) });
      else {
        const wide = (want: boolean | undefined): Tensor | undefined =>
          want ? empty(q.device, [piece.batch, piece.tokens, q.dim(2), keyDim], q.dtype) : undefined;
        const turned = { q: wide(wanted.q), k: wide(wanted.k) };
        backwardPiece(problem, states, { ...turned, v: part(grads.v) });
        const from = turningFrom(turning, piece.tokenFirst);
        for (const name of ['q', 'k'] as const) {
          const [dy, dx] = [turned[name], part(grads[name])];
          if (!dy) continue;
          const angles = from.kernels.back(pieceOf(saved[name], piece), dy, from, { dx, angles: needs.theta ?? false });
          if (angles) grads.theta = grads.theta ? add(grads.theta, angles) : angles;
          dy.dispose();
        }
      }
      behind = before ?? undefined;
    }
  }
  if (halved && grads.initialState) grads.initialState = timesGain(grads.initialState, halved.table, false);
  return grads;
}

interface Problem extends Lightning2Saved {
  dOut: Tensor;
  /** The decays with the gain of dOut behind them. */
  gains: Tensor | undefined;
  /** Both roles have tiles on fragments. */
  onFragments: boolean;
  /** Kernels turn q and k as they load them; else q and k of a piece are turned copies. */
  onLoad: boolean;
}

interface PieceProblem extends Problem {
  /** The forward scan without its queries. */
  forward: Omit<Scan, 'q'>;
}

function problemOf(whole: Problem, piece: Piece): PieceProblem {
  const { decay, chunk, onLoad } = whole;
  const turning = whole.turning && turningFrom(whole.turning, piece.tokenFirst);
  const [v, dOut] = [whole.v, whole.dOut].map((x) => pieceOf(x, piece)) as [Tensor, Tensor];
  const [q, k] = [whole.q, whole.k]
    .map((x) => pieceOf(x, piece))
    .map((x) => (turning && !onLoad ? turning.kernels.copy(x, turning) : x)) as [Tensor, Tensor];
  const turns = turning && onLoad ? turnsOf(turning, 'keys') : undefined;
  const lengths = whole.lengths && entriesOf(whole.lengths, piece);
  const forward = {
    k,
    v,
    decay,
    lengths,
    tokensBefore: piece.tokenFirst,
    turns,
    plan: planFor(k, v, chunk, turns, whole.onFragments ? decay : undefined),
  };
  return { ...whole, q, k, v, dOut, lengths, forward };
}

/**
 * Plans of the roles as they are and of those with keys of valueDim and values of keyDim: both by runs, or both in the same segments, so
 * that they share states.
 */
function plansOf(
  { k, v, decay, turns, plan }: Omit<Scan, 'q'>,
  swappedTurns: ScanTurns | undefined,
  chunk: number | undefined,
): readonly [own: ScanPlan, swapped: ScanPlan] {
  const swapped = plan.ranges && planFor(v, k, chunk, swappedTurns, decay);
  if (swapped?.ranges) return [plan, swapped];
  const segments = plan.ranges ? planLike(plan, k, v, turns) : plan;
  return [segments, planLike(segments, v, k, swappedTurns)];
}

/** The sweeps of one piece. `behind` is the gradient of the state behind it, `before` is written with that of the state before it. */
function backwardPiece(
  { q, k, v, dOut, gains, scale, chunk, forward }: PieceProblem,
  states: { initial: Tensor | undefined; behind: Tensor | undefined; before: Tensor | undefined },
  grads: { q: Tensor | undefined; k: Tensor | undefined; v: Tensor | undefined },
): void {
  const { decay, lengths, tokensBefore, turns } = forward;
  const common = { decay: gains ?? decay, lengths, tokensBefore, gain: gains !== undefined };
  const swappedTurns = turns && ({ ...turns, of: 'values' } as const);
  const [plan, swappedPlan] = plansOf(forward, swappedTurns, chunk);
  const swapped = { turns: swappedTurns, plan: swappedPlan };
  // a sweep that needs no states of segments
  const direct = plan.form === 'serial' || plan.form === 'ranges';
  if (grads.q) {
    const initial = direct ? states.initial : segmentStates(forward, { initial: states.initial });
    sweepOutputs({ ...common, q: dOut, k: v, v: k, queryScale: scale, ...swapped }, { initial, transposed: true, out: grads.q });
  }
  if (!grads.k && !grads.v && !states.before) return;
  const reverse = { ...common, k: q, v: dOut, keyScale: scale, reverse: true, turns, plan };
  const made = direct && grads.v ? undefined : states.before;
  const segments = !direct || made ? segmentStates(reverse, { initial: states.behind, final: made }) : undefined;
  const behind = direct ? states.behind : segments;
  if (grads.v) sweepOutputs({ ...reverse, q: k }, { initial: behind, final: direct ? states.before : undefined, out: grads.v });
  if (grads.k) sweepOutputs({ ...reverse, q: v, k: dOut, v: q, ...swapped }, { initial: behind, transposed: true, out: grads.k });
}
