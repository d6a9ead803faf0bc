import { attentionWithLse, cast, HeedError, pointwise, type Tensor } from '@heed/core';
import { copyContiguous, empty, expr } from '@heed/core/~internal';
import type { Place } from './kernels/common.js';
import { runSigmaSolve } from './kernels/sigma.js';
import { runSolve } from './kernels/solve.js';
import type { LlaSettings } from './options.js';

/** Operands of a call in f32, rows of a token without gaps, and what the softmax weights give. */
export interface Problem {
  place: Place;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  lambda: number | Tensor;
  /** sum_j p_j z_j, [batch, queries, heads, dim]. */
  mu: Tensor;
  /** Natural logsumexp of the scores, [batch, queries, heads]. */
  lse: Tensor;
}

/** f32 with dense tokens that begin at multiples of 4 elements; gaps between batch entries stay. */
export function dense(x: Tensor): Tensor {
  const whole = x.dtype === 'f32' ? x : cast(x, 'f32');
  const [batch, tokens, heads, dim] = whole.shape as [number, number, number, number];
  const fits =
    (tokens <= 1 || whole.strides[1] === heads * dim) &&
    (heads === 1 || whole.strides[2] === dim) &&
    whole.offset % 4 === 0 &&
    (batch === 1 || (whole.strides[0] ?? 0) % 4 === 0);
  return fits ? whole : copyContiguous(whole);
}

/** f32 without gaps. */
export function contiguous(x: Tensor): Tensor {
  const whole = x.dtype === 'f32' ? x : cast(x, 'f32');
  return whole.contiguous && whole.offset % 4 === 0 ? whole : copyContiguous(whole);
}

// a row that sees nothing has no system: its right side is zero
const centre = pointwise(
  expr((mean, q, lse) => lse.gt(-1e29).select(mean.sub(q), 0)),
  { name: 'lla-centre' },
);

export function placeOf(q: Tensor, k: Tensor, v: Tensor | undefined, settings: LlaSettings): Place {
  const { block, causal, scale } = settings;
  const [batch, queries, heads, dim] = q.shape as [number, number, number, number];
  return { batch, heads, queries, keys: k.dim(1), dim, valueDim: v?.dim(3) ?? dim, block, causal, scale };
}

export function prepare(q: Tensor, k: Tensor, v: Tensor | undefined, settings: LlaSettings): Problem {
  const { ridgeLambda: lambda, causal, scale } = settings;
  const place = placeOf(q, k, v, settings);
  const [ownQ, ownK] = [contiguous(q), dense(k)];
  // softmax attention with the keys as values
  const { out: mean, lse } = attentionWithLse(ownQ, ownK, ownK, { causal, scale });
  const rows = permuted(lse, [place.batch, place.queries, place.heads]);
  const mu = centre(mean, ownQ, rows.view({ shape: [...rows.shape, 1], strides: [...rows.strides, 1] }));
  return {
    place,
    q: ownQ,
    k: ownK,
    v: v ? dense(v) : ownK,
    lambda: typeof lambda === 'number' ? lambda : contiguous(lambda),
    mu,
    lse: rows,
  };
}

function permuted(lse: Tensor, shape: readonly number[]): Tensor {
  if (lse.shape.join() !== shape.join())
    throw new HeedError('SHAPE_MISMATCH', `lla: the logsumexp is ${lse.describe()}; [${shape.join(', ')}] was expected`);
  return lse;
}

/** Sigma^-1 rhs of each query, [batch, queries, heads, dim]. */
export function solveSystems(problem: Problem, settings: LlaSettings, rhs: Tensor, steps?: Tensor): Tensor {
  const { q, k, lse, mu, lambda, place } = problem;
  const out = empty(q.device, q.shape);
  if (settings.cholesky) {
    runSigmaSolve(place, { q, k, lse, mu, rhs, out }, lambda);
    return out;
  }
  const { maxIterations, atol, rtol, jacobi } = settings;
  const taken = steps ?? empty(q.device, [place.batch, place.queries, place.heads], 'u32');
  runSolve(place, { q, k, lse, rhs, out, steps: taken }, { lambda, maxIterations, atol, rtol, jacobi });
  return out;
}
