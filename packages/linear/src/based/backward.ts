import { cast, HeedError, reshape, scope, sum, type Tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { type BasedProblem, planOf, segmentStates, sweepOf } from './passes.js';
import { runPullback } from './kernels/pullback.js';
import { runSweep, type TaylorState } from './kernels/sweep.js';
import { cotangentWeights } from './kernels/weights.js';

/**
 * Gradients of `based`. With S_t the forward state of [v, 1], g_t = [dOut_t / Z_t, -(dOut_t . out_t) / Z_t] and G_t = sum of phi(q) g^T from t on:
 * dq_t = J(q_t)^T S_t g_t, dk_t = J(k_t)^T G_t [v_t, 1], dv_t = phi(k_t)^T G_t. Nothing but q, k, v, out and the denominators is saved; states
 * are recomputed. Deterministic: every sum has one order.
 */
export function basedBackward(
  problem: BasedProblem,
  { out, norm, dOut }: { out: Tensor; norm: Tensor; dOut: Tensor },
  needs: readonly boolean[],
): { q: Tensor | null; k: Tensor | null; v: Tensor | null } {
  const { q, k, v, causal, normalize, lengths, initial } = problem;
  const like = (x: Tensor): Tensor => empty(x.device, x.shape, x.dtype);
  if (v.size === 0) return { q: like(q), k: like(k), v: like(v) };
  const plan = planOf(problem);
  if (plan.gradientTile === 0 && (needs[0] || needs[1]))
    throw new HeedError('LIMIT_EXCEEDED', `based: gradients for a feature dimension of ${q.dim(3)}; at most 40 fit`);
  const { columns, tile, slabs, gradientTile } = plan;
  const weights = cotangentWeights(dOut, out, normalize ? norm : undefined, lengths);
  const sweep = sweepOf(problem, plan);
  // causal: weights of zero take tokens behind the length out; otherwise every key is seen
  const keyLengths = causal ? undefined : lengths;
  const rowTiles = Math.ceil(v.dim(3) / (16 * slabs));
  const pulled = (of: 'q' | 'k', from: TaylorState | undefined): Tensor =>
    scope(() => {
      const x = of === 'q' ? q : k;
      const partials = empty(x.device, [rowTiles, ...x.shape]);
      runPullback({
        of,
        sweep: { ...sweep, reverse: causal && of === 'k', lengths: keyLengths, stateSegments: causal ? plan.segments : 1 },
        slabs,
        tile: gradientTile,
        q,
        k,
        v,
        d: dOut,
        weights,
        initial: from,
        normaliser: normalize,
        update: causal,
        out: partials,
      });
      const whole = rowTiles === 1 ? reshape(partials, x.shape) : sum(partials, 0);
      return cast(whole, x.dtype);
    });
  const segmented = plan.segments > 1 || !causal;
  let dq: Tensor | null = null;
  if (needs[0]) {
    const states = segmented ? segmentStates({ sweep, plan, k, v, normaliser: normalize }, initial, !causal) : undefined;
    dq = pulled('q', causal ? (states?.before ?? initial) : states?.final);
  }
  if (!needs[1] && !needs[2]) return { q: dq, k: null, v: null };
  const back = { ...sweep, reverse: causal, lengths: keyLengths };
  const states = segmented
    ? segmentStates({ sweep: back, plan, k: q, v: dOut, weights, normaliser: normalize }, undefined, !causal)
    : undefined;
  const behind = causal ? states?.before : states?.final;
  const dk = needs[1] ? pulled('k', behind) : null;
  const dv = needs[2] ? like(v) : null;
  if (dv)
    runSweep({
      sweep: causal ? back : { ...back, stateSegments: 1 },
      columns,
      tile,
      q: k,
      k: q,
      v: dOut,
      weights,
      initial: behind,
      update: causal,
      normalise: false,
      out: dv,
    });
  return { q: dq, k: dk, v: dv };
}
