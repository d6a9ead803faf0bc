import { expect, test } from 'vitest';
import { RandomStream } from '@heed/core';
import { f64, f64Like, randomArray, type F64Array } from '@heed/core/testing';
import { referenceLla, referenceLlaGradients, type LlaReferenceOptions } from '../src/lla/reference.js';

const base: LlaReferenceOptions = { causal: true, scale: 0.7, ridgeLambda: 1, blockSize: 4, deltaEps: 1e-12, ridgeGradient: 'exact' };

function problem(queries = 6, keys = queries): { q: F64Array; k: F64Array; v: F64Array; g: F64Array } {
  const random = new RandomStream(3, 'lla');
  const made = (tokens: number, dim: number): F64Array => randomArray(random, [1, tokens, 1, dim]);
  return { q: made(queries, 4), k: made(keys, 4), v: made(keys, 3), g: made(queries, 3) };
}

for (const [name, given] of [
  ['the whole Sigma', {}],
  ['blocks of two channels', { blockSize: 2 }],
  ['all keys visible', { causal: false }],
] as const)
  test(`gradients of the reference are those of finite differences, with ${name}`, () => {
    const { q, k, v, g } = problem(5, 6);
    const lambda = f64([1, 5, 1], [0.5, 1, 2, 0.3, 0.8]);
    const options = { ...base, ...given, ridgeLambda: lambda };
    const loss = (): number => referenceLla(q, k, v, options).out.values.reduce((sum, x, i) => sum + x * (g.values[i] as number), 0);
    const grads = referenceLlaGradients(q, k, v, g, options);
    for (const [x, gradient] of [
      [q, grads.q],
      [k, grads.k],
      [v, grads.v],
      [lambda, grads.ridgeLambda],
    ] as const)
      for (let i = 0; i < x.values.length; i++) {
        const own = x.values[i] as number;
        const step = 1e-5;
        x.values[i] = own + step;
        const up = loss();
        x.values[i] = own - step;
        const down = loss();
        x.values[i] = own;
        expect(gradient.values[i]).toBeCloseTo((up - down) / (2 * step), 6);
      }
  });

test('the published gradient leaves out what the ridge owes to the weights', () => {
  const { q, k, v, g } = problem();
  const exact = referenceLlaGradients(q, k, v, g, base);
  const detached = referenceLlaGradients(q, k, v, g, { ...base, ridgeGradient: 'detached' });
  expect(detached.v.values).toEqual(exact.v.values);
  const worst = Math.max(...exact.q.values.map((x, i) => Math.abs(x - (detached.q.values[i] as number))));
  expect(worst / Math.max(...exact.q.values.map(Math.abs))).toBeGreaterThan(0.02);
});

test('affine values are fitted exactly as lambda goes to zero', () => {
  const random = new RandomStream(5, 'affine');
  const [tokens, dim] = [40, 4];
  const k = randomArray(random, [1, tokens, 1, dim]);
  const q = randomArray(random, [1, tokens, 1, dim], 0.7);
  const weights = randomArray(random, [dim, 2]);
  const affine = (x: F64Array): F64Array => {
    const y = f64([1, tokens, 1, 2]);
    for (let t = 0; t < tokens; t++)
      for (let c = 0; c < 2; c++) {
        y.values[t * 2 + c] = 0.5 + c;
        for (let d = 0; d < dim; d++) y.values[t * 2 + c]! += (x.values[t * dim + d] as number) * (weights.values[d * 2 + c] as number);
      }
    return y;
  };
  const errors = [1e-4, 1e-6].map((ridgeLambda) => {
    const { out } = referenceLla(q, k, affine(k), { ...base, ridgeLambda });
    const wanted = affine(q);
    return Math.max(...Array.from(out.values.subarray(20), (x, i) => Math.abs(x - (wanted.values[i + 20] as number))));
  });
  expect(errors[0]).toBeLessThan(0.05);
  expect(errors[1]).toBeLessThan((errors[0] as number) / 50);
});

test('a query that sees nothing gives zeros, and weights sum to one elsewhere', () => {
  const { q, k } = problem(5, 3);
  const ones = f64Like(f64([1, 3, 1, 2]));
  ones.values.fill(1);
  const { out } = referenceLla(q, k, ones, base);
  expect([...out.values.subarray(0, 4)]).toEqual([0, 0, 0, 0]);
  for (const x of out.values.subarray(4)) expect(x).toBeCloseTo(1, 9);
});
