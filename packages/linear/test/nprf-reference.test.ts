import { expect, test } from 'vitest';
import { RandomStream } from '@heed/core';
import { f64, randomArray, type F64Array } from '@heed/core/testing';
import { referenceNprf, type NprfReferenceOptions } from '../src/nprf/reference.js';

const base: NprfReferenceOptions = { causal: false, featureMap: 'prf', normalize: true, normEps: 1e-6, denominatorEps: 0 };

for (const [name, given, tokens, keys] of [
  ['positive features, both directions, cross lengths', {}, 4, 5],
  ['a causal mask', { causal: true }, 4, 5],
  ['sines and cosines with an epsilon', { featureMap: 'trf', denominatorEps: 4 }, 4, 4],
  ['inputs that are not normalised', { normalize: false }, 4, 4],
  ['an image', { imageWidth: 3 }, 6, 6],
  ['one valid key less', { lengths: [3] }, 4, 4],
] as const)
  test(`gradients of the reference are those of finite differences: ${name}`, () => {
    const random = new RandomStream(4, 'nprf');
    const made = (shape: number[]): F64Array => randomArray(random, shape, 0.8);
    const [q, k, v, g] = [made([1, tokens, 1, 3]), made([1, keys, 1, 3]), made([1, keys, 1, 2]), made([1, tokens, 1, 2])];
    const options: NprfReferenceOptions = { ...base, ...given };
    const table = options.imageWidth === undefined ? tokens + keys - 1 : (2 * (tokens / 3) - 1) * 5;
    const operands = { q, k, v, features: made([1, 4, 3]), rpeBias: made([1, table]) };
    const loss = (): number => referenceNprf(operands, options).out.values.reduce((sum, x, i) => sum + x * (g.values[i] as number), 0);
    const { grads } = referenceNprf(operands, options, g);
    for (const name of ['q', 'k', 'v', 'rpeBias'] as const) {
      const x = operands[name];
      for (let i = 0; i < x.values.length; i++) {
        const own = x.values[i] as number;
        x.values[i] = own + 1e-5;
        const up = loss();
        x.values[i] = own - 1e-5;
        const down = loss();
        x.values[i] = own;
        expect(grads[name].values[i]).toBeCloseTo((up - down) / 2e-5, 6);
      }
    }
  });

test('a transposed table is another result', () => {
  const random = new RandomStream(4, 'nprf');
  const x = randomArray(random, [1, 5, 1, 3]);
  const operands = { q: x, k: x, v: x, features: randomArray(random, [1, 4, 3]), rpeBias: randomArray(random, [1, 9]) };
  const turned = f64([1, 9], [...operands.rpeBias.values].reverse());
  const worst = Math.max(
    ...referenceNprf(operands, base).out.values.map((y, i) =>
      Math.abs(y - (referenceNprf({ ...operands, rpeBias: turned }, base).out.values[i] as number)),
    ),
  );
  expect(worst).toBeGreaterThan(0.05);
});
