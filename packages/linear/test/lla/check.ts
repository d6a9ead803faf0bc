import { type Device, type DType, RandomStream, tensor, type Tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { draw } from '../drawn.js';
import { llaWithSolution, type LlaOptions } from '../../src/lla/index.js';
import { referenceLla, referenceLlaGradients, type LlaReferenceOptions } from '../../src/lla/reference.js';

export { draw };

/** One problem of the tests. */
export interface Problem {
  batch?: number;
  queries: number;
  keys?: number;
  heads?: number;
  dim: number;
  valueDim?: number;
  dtype?: DType;
  /** `token`: one a query, between 0.5 and 4.5. */
  lambda?: number | 'token';
  seed?: number;
  options?: Omit<LlaOptions, 'ridgeLambda'>;
  /** Bound of the root mean square errors. */
  bound?: number;
}

/** Runs a problem forward and backward and holds every result against float64. */
export async function checkProblem(device: Device, problem: Problem): Promise<void> {
  const { batch = 1, queries, keys = queries, heads = 1, dim, valueDim = dim, dtype = 'f32', lambda = 2, seed = 1, options = {} } = problem;
  const { bound = dtype === 'f16' ? 2e-3 : 5e-5 } = problem;
  const made = (name: string, shape: readonly number[], type: DType = dtype) => draw(device, name, shape, type, seed);
  const q = await made('q', [batch, queries, heads, dim]);
  const k = await made('k', [batch, keys, heads, dim]);
  const v = await made('v', [batch, keys, heads, valueDim]);
  const g = await made('g', [batch, queries, heads, valueDim]);
  const drawn = new RandomStream(seed, 'lambda').normal(batch * queries * heads).map((x) => 0.5 + Math.min(4, x * x));
  const ridge = lambda === 'token' ? tensor(device, drawn, [batch, queries, heads]) : undefined;
  const inputs = [q.x, k.x, v.x, ...(ridge ? [ridge] : [])];
  const { outputs, grads } = vjp(
    () => {
      const { out, rho, delta, omega } = llaWithSolution(q.x, k.x, v.x, { ...options, ridgeLambda: ridge ?? (lambda as number) });
      return [out, rho, delta, omega];
    },
    inputs,
    [g.x, null, null, null],
  );
  const expected: LlaReferenceOptions = {
    causal: options.causal ?? true,
    scale: options.scale ?? 1 / Math.sqrt(dim),
    ridgeLambda: ridge ? f64([batch, queries, heads], drawn) : (lambda as number),
    blockSize: options.blockSize ?? dim,
    deltaEps: options.deltaEps ?? 1e-12,
    ridgeGradient: options.ridgeGradient ?? 'exact',
  };
  const forward = referenceLla(q.values, k.values, v.values, expected);
  const backward = referenceLlaGradients(q.values, k.values, v.values, g.values, expected);
  const results: [string, Tensor | undefined, F64Array][] = [
    ['out', outputs[0], forward.out],
    ['rho', outputs[1], forward.rho],
    ['delta', outputs[2], forward.delta],
    ['omega', outputs[3], forward.omega],
    ['dq', grads[0], backward.q],
    ['dk', grads[1], backward.k],
    ['dv', grads[2], backward.v],
    ...(ridge ? ([['dLambda', grads[3], backward.ridgeLambda]] as [string, Tensor | undefined, F64Array][]) : []),
  ];
  for (const [name, got, wanted] of results)
    expectErrorRatio(
      `${name} of ${JSON.stringify(problem)}`,
      { shape: got?.shape ?? [], values: (await got?.read()) ?? [] },
      wanted,
      bound,
    );
  for (const x of [q, k, v, g]) x.x.dispose();
  for (const x of [...outputs, ...grads, ...(ridge ? [ridge] : [])]) x.dispose();
}
