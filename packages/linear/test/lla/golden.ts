import type { GoldenCase, GoldenMapping } from '@heed/core/testing';
import { forwardAndGradients } from '@heed/core/testing';
import type { Tensor } from '@heed/core';
import { llaSolve, llaWithSolution, type LlaOptions } from '../../src/lla/index.js';

/** The options that a case states; a ridge a query is an input. */
export function llaOptionsOf({ params }: GoldenCase, ridge: Tensor | undefined): LlaOptions {
  // null stands for the default
  const given = Object.fromEntries(Object.entries(params).filter(([, value]) => value !== null));
  const { qkScale, cgMaxIters, cgAtol, cgRtol, ridgeLambda, ...same } = given as Record<string, never>;
  return {
    ...same,
    ridgeLambda: ridge ?? Number(ridgeLambda),
    ...(qkScale !== undefined && { scale: Number(qkScale) }),
    ...(cgMaxIters !== undefined && { maxIterations: Number(cgMaxIters) }),
    ...(cgAtol !== undefined && { atol: Number(cgAtol) }),
    ...(cgRtol !== undefined && { rtol: Number(cgRtol) }),
  };
}

export const llaGolden: GoldenMapping = {
  'linear/lla': {
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const options = llaOptionsOf(golden, inputs.find('ridgeLambda'));
        const { out, rho, delta, omega } = llaWithSolution(inputs.get('q'), inputs.get('k'), inputs.get('v'), options);
        return { o: out, rho, delta, omega };
      }),
    compare: { o: 'error', rho: 'error', delta: 'error', omega: 'error' },
  },
  'linear/lla.cg': {
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const options = llaOptionsOf(golden, inputs.find('ridgeLambda'));
        const [q, k] = [inputs.get('q'), inputs.get('k')];
        const { rho } = llaSolve(q, k, { ...options, solver: 'cg' });
        // the exact solution: by Cholesky where the head is narrow enough, else by iterations without end
        const whole = (options.blockSize ?? q.dim(3)) === q.dim(3);
        const exact =
          whole && q.dim(3) <= 64 ? { solver: 'cholesky' as const } : { solver: 'cg' as const, maxIterations: 256, rtol: 1e-14 };
        return { rho, rhoExact: llaSolve(q, k, { ...options, ...exact }).rho };
      }),
    compare: { rho: 'error', rhoExact: 'error' },
  },
};
