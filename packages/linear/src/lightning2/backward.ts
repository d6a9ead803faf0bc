import { type Tensor, zeros } from '@heed/core';
import { asContiguous, empty } from '@heed/core/~internal';
import { planFor, planLike, segmentStates, sweepOutputs } from '../scan/scan.js';

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
}

export interface Lightning2Gradients {
  q: Tensor | null;
  k: Tensor | null;
  v: Tensor | null;
  initialState: Tensor | null;
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
  needs: { q: boolean; k: boolean; v: boolean; initialState: boolean },
): Lightning2Gradients {
  const { q, k, v, decay, lengths, scale, initialState } = saved;
  const given = dOut ?? zeros(v.device, v.shape, { dtype: v.dtype });
  const like = (x: Tensor): Tensor => empty(x.device, x.shape, x.dtype);
  const grads: Lightning2Gradients = { q: null, k: null, v: null, initialState: null };
  const last = dState ? asContiguous(dState) : undefined;
  if (q.size === 0 || v.size === 0) {
    const state = (): Tensor => last ?? zeros(q.device, [q.dim(0), q.dim(2), q.dim(3), v.dim(3)]);
    return { q: like(q), k: like(k), v: like(v), initialState: needs.initialState ? state() : null };
  }
  const plan = planFor(k, v, saved.chunk);
  // roles (keys of valueDim, values of keyDim) in the same segments
  const swapped = planLike(plan, v, k);
  const serial = plan.form === 'serial';
  if (needs.q) {
    const first = initialState && asContiguous(initialState);
    const initial = serial ? first : segmentStates({ k, v, decay, lengths, plan }, first).states;
    grads.q = like(q);
    sweepOutputs({ q: given, k: v, v: k, decay, lengths, queryScale: scale, plan: swapped }, { initial, transposed: true, out: grads.q });
  }
  if (!needs.k && !needs.v && !needs.initialState) return grads;
  const reverse = { k: q, v: given, decay, lengths, keyScale: scale, reverse: true, plan };
  let behind = last;
  if (!serial) {
    const { states, final } = segmentStates(reverse, last, { final: needs.initialState });
    behind = states;
    grads.initialState = final ?? null;
  }
  if (needs.v || (serial && needs.initialState)) {
    const final = serial && needs.initialState ? empty(q.device, [q.dim(0), q.dim(2), q.dim(3), v.dim(3)]) : undefined;
    grads.v = like(v);
    sweepOutputs({ ...reverse, q: k }, { initial: behind, final, out: grads.v });
    if (final) grads.initialState = final;
  }
  if (needs.k) {
    grads.k = like(k);
    sweepOutputs({ ...reverse, q: v, k: given, v: q, plan: swapped }, { initial: behind, transposed: true, out: grads.k });
  }
  return grads;
}
