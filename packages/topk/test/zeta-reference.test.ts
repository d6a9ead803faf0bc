import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { RandomStream } from '@heed/core';
import { fileSource } from '@heed/core/io';
import { compare, expectClose, f64, randomArray, readGoldenCase } from '@heed/core/testing';
import type { F64Array, GoldenCase } from '@heed/core/testing';
import {
  referenceMorton,
  referenceOrder,
  referenceQuantise,
  referenceSelection,
  referenceZeta,
  referenceZetaAttention,
  referenceZetaGradients,
} from '../src/zeta/reference.js';
import type { ZetaReferenceOptions } from '../src/zeta/reference.js';

const golden = async (name: string): Promise<GoldenCase> =>
  readGoldenCase(name, await fileSource(fileURLToPath(new URL(`cases/zeta--${name}.safetensors`, import.meta.url))));
const required = (array: F64Array | undefined): F64Array => array ?? expect.fail('the case lacks a tensor');
const none = { atol: 0, rtol: 0 };
// The files hold f32 values of a float64 reference.
const f32Rounding = { atol: 1e-6, rtol: 1e-6 };

for (const name of ['causal-d3', 'causal-d2-window-eq-k', 'bidirectional-d4']) {
  test(`the golden case ${name} comes out: codes, indices in order, output and gradients`, async () => {
    const { params, inputs, outputs, cotangents, gradients } = await golden(name);
    const options = { ...params, topK: params['k'] } as unknown as ZetaReferenceOptions;
    const [q, k, v, theta] = ['q', 'k', 'v', 'theta'].map((input) => required(inputs[input])) as [F64Array, F64Array, F64Array, F64Array];
    const { out, indices, codesQ, codesK } = referenceZeta(q, k, v, theta, options);
    expect(compare('code_q', codesQ, required(outputs['code_q']), 'u32', none).failure).toBeUndefined();
    expect(compare('code_k', codesK, required(outputs['code_k']), 'u32', none).failure).toBeUndefined();
    expect(compare('indices', indices, required(outputs['indices']), 'exact', none).failure).toBeUndefined();
    expectClose('out', out, required(outputs['out']), f32Rounding);
    const grads = referenceZetaGradients(q, k, v, theta, indices, required(cotangents['out']), options);
    expect(Object.keys(gradients)).toEqual(['q', 'k', 'v', 'theta']);
    for (const [input, expected] of Object.entries(gradients)) expectClose(`grad_${input}`, grads[input as 'q'], expected, f32Rounding);
  });
}

test('the golden cells, codes and stable order come out', async () => {
  const { params, inputs, outputs } = await golden('morton-d3');
  const { bits, rangeLow, rangeHigh } = params as { bits: number; rangeLow: number; rangeHigh: number };
  const x = required(inputs['x']);
  const cells = f64(
    x.shape,
    x.values.map((value) => referenceQuantise(value, rangeLow, rangeHigh, bits)),
  );
  const codes = Array.from({ length: 500 }, (_, i) => referenceMorton([...cells.values.subarray(3 * i, 3 * i + 3)], bits));
  expect(compare('cells', cells, required(outputs['cells']), 'exact', none).failure).toBeUndefined();
  expect(compare('codes', f64([500], codes), required(outputs['codes']), 'u32', none).failure).toBeUndefined();
  expect(compare('order', f64([500], referenceOrder(codes)), required(outputs['order']), 'exact', none).failure).toBeUndefined();
});

test('codes fill 32 bits without a sign', () => {
  expect(referenceMorton([65535, 65535], 16)).toBe(2 ** 32 - 1);
  expect(referenceMorton([65535, 0], 16)).toBe(0xaaaaaaaa);
  expect(referenceMorton([5, 3], 3)).toBe(0b10_01_11);
});

const arrays = (tokens: number): Record<'q' | 'k' | 'v' | 'theta' | 'dOut', F64Array> => {
  const random = new RandomStream(9);
  return {
    q: randomArray(random, [1, tokens, 2, 2], 0.5),
    k: randomArray(random, [1, tokens, 2, 2], 0.5),
    v: randomArray(random, [1, tokens, 2, 3]),
    theta: randomArray(random, [2]),
    dOut: randomArray(random, [1, tokens, 2, 3]),
  };
};
const options: ZetaReferenceOptions = {
  bits: 8,
  rangeLow: -2,
  rangeHigh: 2,
  topK: 3,
  window: 6,
  chunk: 4,
  causal: true,
  historyMean: true,
};

for (const [what, over] of Object.entries<Partial<ZetaReferenceOptions>>({
  'a causal search with history mean': {},
  'two curves and a local window': { curves: 2, localWindow: 2 },
  'all keys, all means': { causal: false },
  'no history mean': { historyMean: false, localWindow: 1 },
})) {
  test(`gradients are those of finite differences: ${what}`, () => {
    const { dOut, ...inputs } = arrays(11);
    const { q, k, v, theta } = inputs;
    const chosen = { ...options, ...over };
    const indices = referenceSelection(q, k, chosen);
    const grads = referenceZetaGradients(q, k, v, theta, indices, dOut, chosen);
    const loss = (): number =>
      referenceZetaAttention(q, k, v, theta, indices, chosen).values.reduce((sum, x, i) => sum + x * (dOut.values[i] as number), 0);
    for (const [name, input] of Object.entries(inputs)) {
      const numeric = f64(input.shape);
      for (let i = 0; i < input.values.length; i++) {
        const kept = input.values[i] as number;
        input.values[i] = kept + 1e-5;
        const above = loss();
        input.values[i] = kept - 1e-5;
        numeric.values[i] = (above - loss()) / 2e-5;
        input.values[i] = kept;
      }
      expectClose(name, grads[name as 'q'], numeric, { atol: 1e-7, rtol: 1e-6 });
    }
  });
}

test('a window and topK as large as the sequence keep every token: dense Cauchy attention', () => {
  const { q, k, v, theta } = arrays(9);
  const dense = { ...options, causal: false, historyMean: false, topK: 9, window: 9 };
  const all = f64(
    [1, 9, 2, 9],
    Float64Array.from({ length: 162 }, (_, i) => i % 9),
  );
  const { out, indices } = referenceZeta(q, k, v, theta, dense);
  expect(compare('indices', indices, all, 'set', none).pass).toBe(true);
  expectClose('out', out, referenceZetaAttention(q, k, v, theta, all, dense), { atol: 1e-12, rtol: 0 });
});

test('a causal query keeps tokens of earlier chunks only, and the last ones through the local window', () => {
  const { q, k } = arrays(11);
  const { values } = referenceSelection(q, k, { ...options, localWindow: 3 });
  const kept = (t: number): number[] => Array.from(values.subarray(t * 12, t * 12 + 6));
  expect(kept(0)).toEqual([-1, -1, -1, 0, -1, -1]);
  expect(kept(2).slice(3)).toEqual([2, 1, 0]);
  expect(kept(4).slice(3)).toEqual([4, 3, 2]);
  expect(kept(4).slice(0, 3).sort()).toEqual([-1, 0, 1]);
  expect(kept(7).slice(3)).toEqual([7, 6, 5]);
  for (let t = 4; t < 11; t++) for (const j of kept(t).slice(0, 3)) expect(j < Math.floor(t / 4) * 4 && j <= t - 3).toBe(true);
});

test('without the mean a row that has nothing to see is zero', () => {
  const { q, k, v, theta } = arrays(6);
  const { out } = referenceZeta(q, k, v, theta, { ...options, historyMean: false });
  expect(out.values.slice(0, 24).every((x) => x === 0)).toBe(true);
  expect(out.values.slice(24).some((x) => x === 0)).toBe(false);
});

test('two curves of one total window find more of the true neighbours than one', () => {
  const random = new RandomStream(4);
  const tokens = 300;
  const uniform = (): F64Array => f64([1, tokens, 1, 3], random.uniform(tokens * 3));
  const [q, k] = [uniform(), uniform()];
  const base = { ...options, bits: 10, rangeLow: 0, rangeHigh: 1, topK: 16, window: 48, causal: false };
  const exact = referenceSelection(q, k, { ...base, window: tokens });
  const recall = (curves: 1 | 2): number => {
    const found = referenceSelection(q, k, { ...base, curves });
    let shared = 0;
    for (let t = 0; t < tokens; t++) {
      const truth = new Set(exact.values.slice(16 * t, 16 * t + 16));
      shared += found.values.slice(16 * t, 16 * t + 16).filter((j) => truth.has(j)).length;
    }
    return shared / (16 * tokens);
  };
  expect(recall(1)).toBeGreaterThan(0.5);
  expect(recall(2)).toBeGreaterThan(recall(1));
});
