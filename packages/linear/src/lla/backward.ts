import type { Tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { type Problem, solveSystems } from './problem.js';
import { runKeyGradients } from './kernels/keys.js';
import { runMoment } from './kernels/moment.js';
import { runQuerySums } from './kernels/queries.js';
import { runQueryEnd, runRowTerms } from './kernels/rows.js';
import type { LlaSettings } from './options.js';

/** What the forward left. */
export interface LlaSaved {
  rho: Tensor;
  stats: Tensor;
  out: Tensor;
  dOut: Tensor;
}

export interface LlaGradients {
  q: Tensor | null;
  k: Tensor | null;
  v: Tensor | null;
  ridge: Tensor | null;
}

/**
 * Gradients, all in f32: t and tau over pairs, a second solve u = Sigma^-1 t, terms of rows, then queries and keys over pairs.
 * Weights are divided by their sum throughout, which leaves the published formulas with omega = 1.
 */
export function llaBackward(problem: Problem, settings: LlaSettings, saved: LlaSaved, needs: readonly boolean[]): LlaGradients {
  const { place, q, k, v, lambda, mu } = problem;
  const { rho, stats, out, dOut: g } = saved;
  const { device } = q;
  const { batch, queries, heads, keys, dim, valueDim, block, scale } = place;
  const rowShape = [batch, queries, heads];
  const t = empty(device, q.shape);
  const tau = empty(device, rowShape);
  runMoment(place, { q, k, v, g, stats, out: t, tau });
  const u = solveSystems(problem, settings, t);
  const rows = empty(device, [...rowShape, 4]);
  const dRidge = typeof lambda === 'number' ? undefined : empty(device, rowShape);
  runRowTerms({ g, out, stats, rho, u, rows, dRidge }, lambda, settings.exact);
  let dq: Tensor | null = null;
  if (needs[0]) {
    const sums = empty(device, q.shape);
    runQuerySums(place, { q, k, v, g, rho, u, rows, out: sums });
    dq = empty(device, q.shape);
    runQueryEnd({ sums, mu, rho, u, rows, tau, out: dq }, block, scale);
  }
  let dk: Tensor | null = null;
  let dv: Tensor | null = null;
  if (needs[1] || needs[2]) {
    const keyCount = batch * keys * heads;
    const both = empty(device, [keyCount * (dim + valueDim)]);
    runKeyGradients(place, { q, k, v, g, rho, u, rows, out: both });
    const part = (width: number, offset: number): Tensor =>
      both.view({
        shape: [batch, keys, heads, width],
        strides: [keys * heads * width, heads * width, width, 1],
        offset: both.offset + offset,
      });
    dk = part(dim, 0);
    dv = part(valueDim, keyCount * dim);
  }
  return { q: dq, k: dk, v: dv, ridge: needs[3] ? (dRidge ?? null) : null };
}
