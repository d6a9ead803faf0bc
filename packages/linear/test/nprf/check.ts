import { type Device, RandomStream, tensor, type Tensor } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { nprf, nprf2d, type NprfOptions } from '../../src/nprf/index.js';
import { referenceNprf } from '../../src/nprf/reference.js';

/** One problem of the tests. */
export interface Problem {
  batch?: number;
  /** Tokens, or height and width. */
  queries: number | readonly [number, number];
  keys?: number;
  heads?: number;
  dim?: number;
  valueDim?: number;
  features?: number;
  /** Standard deviation of the bias. Default 0.5. */
  spread?: number;
  seed?: number;
  options?: Omit<NprfOptions, 'lengths'>;
  lengths?: readonly number[];
  /** Root mean square error of outputs and gradients. */
  bound?: number;
  gradients?: boolean;
}

export async function draw(
  device: Device,
  name: string,
  shape: readonly number[],
  seed = 1,
  deviation = 1,
): Promise<{ x: Tensor; values: F64Array }> {
  const size = shape.reduce((product, n) => product * n, 1);
  const values = new RandomStream(seed, name).normal(size).map((x) => x * deviation);
  const x = tensor(device, values, shape);
  return { x, values: f64(shape, values) };
}

/** Runs a problem forward and backward and holds every result against float64; gives the largest error of an output. */
export async function checkProblem(device: Device, problem: Problem): Promise<number> {
  const { batch = 1, queries, heads = 2, dim = 8, valueDim = 8, features = 12, spread = 0.5, seed = 1, options = {}, lengths } = problem;
  const { bound = 1e-5, gradients = true } = problem;
  const image = typeof queries !== 'number';
  const tokens = image ? [...queries] : [queries];
  const keys = image ? tokens : [problem.keys ?? (queries as number)];
  const { clip } = options;
  const line = clip === undefined ? (tokens[0] as number) + (keys[0] as number) - 1 : 2 * clip + 1;
  const table = image ? tokens.map((n) => 2 * n - 1) : [line];
  const made = (name: string, shape: readonly number[], deviation = 1) => draw(device, name, shape, seed, deviation);
  const q = await made('q', [batch, ...tokens, heads, dim]);
  const k = await made('k', [batch, ...keys, heads, dim]);
  const v = await made('v', [batch, ...keys, heads, valueDim]);
  const g = await made('g', [batch, ...tokens, heads, valueDim]);
  const w = await made('w', [heads, features, dim]);
  const bias = await made('bias', [heads, ...table], spread);
  const valid = lengths && tensor(device, Int32Array.from(lengths));
  const inputs = [q.x, k.x, v.x, bias.x];
  const run = (): Tensor =>
    image
      ? nprf2d(q.x, k.x, v.x, w.x, bias.x, options)
      : nprf(q.x, k.x, v.x, w.x, bias.x, { ...options, ...(valid && { lengths: valid }) });
  const { outputs, grads } = gradients ? vjp(run, inputs, [g.x]) : { outputs: [run()], grads: [] };
  const flat = ({ values }: { values: F64Array }): F64Array =>
    image ? f64([batch, values.shape[1]! * values.shape[2]!, ...values.shape.slice(3)], values.values) : values;
  const expected = referenceNprf(
    { q: flat(q), k: flat(k), v: flat(v), features: w.values, rpeBias: bias.values },
    {
      causal: options.causal ?? false,
      featureMap: options.featureMap ?? 'prf',
      normalize: options.normalize ?? true,
      normEps: options.normEps ?? 1e-6,
      denominatorEps: options.denominatorEps ?? 0,
      ...(image && { imageWidth: tokens[1] as number }),
      ...(lengths && { lengths }),
      clip,
    },
    gradients ? flat(g) : undefined,
  );
  const results: [string, Tensor | undefined, F64Array][] = [['out', outputs[0], expected.out]];
  if (gradients)
    results.push(
      ['dq', grads[0], expected.grads.q],
      ['dk', grads[1], expected.grads.k],
      ['dv', grads[2], expected.grads.v],
      ['dBias', grads[3], expected.grads.rpeBias],
    );
  let worst = 0;
  for (const [name, got, wanted] of results) {
    const values = { shape: wanted.shape, values: (await got?.read()) ?? [] };
    expectErrorRatio(`${name} of ${JSON.stringify(problem)}`, values, wanted, bound);
    if (name === 'out') worst = Math.max(...wanted.values.map((x, i) => Math.abs(x - (values.values[i] as number))));
  }
  for (const t of tensorsIn([...[q, k, v, g, w, bias].map(({ x }) => x), outputs, grads, ...(valid ? [valid] : [])])) t.dispose();
  return worst;
}
