import { cast, HeedError, pointwise, type Tensor, zeros } from '@heed/core';
import { apply, empty } from '@heed/core/~internal';
import { llaBackward } from './backward.js';
import { runOutput } from './kernels/output.js';
import { runRowScale } from './kernels/rows.js';
import { dtypeOf, type LlaOptions, type LlaSolveOptions, resolve } from './options.js';
import { contiguous, dense, placeOf, prepare, solveSystems } from './problem.js';

/** What `llaWithSolution` gives. */
export interface LlaSolution {
  /** [batch, queries, heads, valueDim] */
  out: Tensor;
  /** Solution of each query's system, f32 [batch, queries, heads, headDim]. */
  rho: Tensor;
  /** omega - mu.rho, f32 [batch, queries, heads]; weights are exp(score - row maximum). */
  delta: Tensor;
  /** Sum of the weights, f32 [batch, queries, heads]. */
  omega: Tensor;
}

/**
 * Local linear attention (the exact estimator of FlashLLA): for each query the intercept of a ridge-regularised linear model of the
 * values on the keys around it, with softmax weights. Quadratic in tokens: 6 headDim operations a pair and iteration, or
 * headDim^2 a pair with Cholesky; memory is linear.
 * @param q [batch, queries, heads, headDim], f32 or f16 (computed in f32)
 * @param k [batch, keys, heads, headDim]
 * @param v [batch, keys, heads, valueDim]
 * @param options `ridgeLambda` required; `scale` default 1/sqrt(headDim); `causal` default true
 * @returns [batch, queries, heads, valueDim], dtype of q; differentiable in q, k, v and a tensor ridgeLambda; queries that see nothing give 0
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; LIMIT_EXCEEDED where a head is too wide for workgroup memory
 */
export function lla(q: Tensor, k: Tensor, v: Tensor, options: LlaOptions): Tensor {
  return llaOp('lla', q, k, v, options, false).out;
}

/**
 * As `lla`, with the solution of each query's system. Only `out` is differentiable.
 * @returns out as `lla`; see `LlaSolution` for the rest
 * @throws HeedError what `lla` throws
 */
export function llaWithSolution(q: Tensor, k: Tensor, v: Tensor, options: LlaOptions): LlaSolution {
  return llaOp('llaWithSolution', q, k, v, options, true);
}

/**
 * The systems alone: rho of (sum_j w z z^T + lambda omega I) rho = sum_j w z, z = k_j - q. With conjugate gradients the iterate after
 * `maxIterations` steps from zero, truncated where it is. No gradient.
 * @returns rho f32 [batch, queries, heads, headDim]; steps u32 [batch, queries, heads], iterations that each query took (0 for Cholesky)
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function llaSolve(q: Tensor, k: Tensor, options: LlaSolveOptions): { rho: Tensor; steps: Tensor } {
  const settings = resolve('llaSolve', q, k, undefined, options);
  const [rho, steps] = apply<readonly Tensor[]>({
    name: 'llaSolve',
    inputs: typeof settings.ridgeLambda === 'number' ? [q, k] : [q, k, settings.ridgeLambda],
    forward: () => {
      const taken = zeros(q.device, [q.dim(0), q.dim(1), q.dim(2)], { dtype: 'u32' });
      if (q.size === 0 || k.size === 0) return [zeros(q.device, q.shape), taken];
      const problem = prepare(q, k, undefined, settings);
      return [solveSystems(problem, settings, problem.mu, taken), taken];
    },
  });
  return { rho: rho as Tensor, steps: steps as Tensor };
}

const product = pointwise((share, omega) => share.mul(omega), { name: 'lla-delta' });

function llaOp(who: string, q: Tensor, k: Tensor, v: Tensor, options: LlaOptions, withSolution: boolean): LlaSolution {
  const settings = resolve(who, q, k, v, options);
  const { ridgeLambda } = settings;
  const inputs = typeof ridgeLambda === 'number' ? [q, k, v] : [q, k, v, ridgeLambda];
  const place = placeOf(q, k, v, settings);
  const { batch, queries, heads, keys, dim, valueDim } = place;
  const rowShape = [batch, queries, heads];
  const nothing = batch * queries * heads * keys === 0;
  // out, then what the backward keeps: rho, stats, mu, logsumexp, out in f32; then delta and omega
  const made = apply<readonly Tensor[]>({
    name: who,
    inputs,
    forward: () => {
      const { device } = q;
      const blank = (...tail: number[]): Tensor => zeros(device, [...rowShape, ...tail]);
      if (nothing) {
        const out = zeros(device, [...rowShape, valueDim], { dtype: dtypeOf(q) });
        return [out, blank(dim), blank(2), blank(dim), blank(), blank(valueDim), ...(withSolution ? [blank(), blank()] : [])];
      }
      const problem = prepare(q, k, v, settings);
      const rho = solveSystems(problem, settings, problem.mu);
      const out = empty(device, [...rowShape, valueDim]);
      const stats = empty(device, [...rowShape, 2]);
      runOutput(place, { q: problem.q, k: problem.k, v: problem.v, lse: problem.lse, rho, out, stats }, settings.deltaEps);
      const kept = [q.dtype === 'f16' ? cast(out, 'f16') : out.alias(), rho, stats, problem.mu, problem.lse, out];
      if (!withSolution) return kept;
      const omega = empty(device, rowShape);
      runRowScale({ q: problem.q, k: problem.k, lse: problem.lse, out: omega }, place);
      const column = { shape: [...rowShape, 1], strides: [queries * heads * 2, heads * 2, 2, 1] };
      const delta = product(
        stats.view({ ...column, offset: stats.offset + 1 }),
        omega.view({ ...column, strides: [queries * heads, heads, 1, 1] }),
      );
      return [...kept, delta.view({ shape: rowShape, strides: omega.strides }), omega];
    },
    saves: (outputs) => [...inputs, ...outputs.slice(1, 6)],
    backward: ([dOut = null, ...others], { saved, needs }) => {
      if (others.some((cotangent) => cotangent !== null))
        throw new HeedError('UNSUPPORTED', `${who}: rho, delta or omega is being differentiated; only out has a gradient`);
      if (!dOut || nothing) return inputs.map(() => null);
      const [sq, sk, sv] = saved as [Tensor, Tensor, Tensor];
      const [rho, stats, mu, lse, out] = saved.slice(inputs.length) as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const lambda = typeof ridgeLambda === 'number' ? ridgeLambda : contiguous(saved[3] as Tensor);
      const problem = { place, q: contiguous(sq), k: dense(sk), v: dense(sv), lambda, mu, lse };
      const grads = llaBackward(problem, settings, { rho, stats, out, dOut: contiguous(dOut) }, needs);
      return [grads.q, grads.k, grads.v, grads.ridge]
        .slice(0, inputs.length)
        .map((gradient) => gradient && (q.dtype === 'f16' && gradient !== grads.ridge ? cast(gradient, 'f16') : gradient));
    },
  });
  const [out, rho, stats, mu, lse, out32, delta, omega] = made as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
  for (const hidden of [stats, mu, lse, out32, ...(withSolution ? [] : [rho])]) hidden.dispose();
  return { out, rho, delta, omega };
}
