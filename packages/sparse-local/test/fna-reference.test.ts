import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { RandomStream } from '@heed/core';
import { fileSource } from '@heed/core/io';
import { expectClose, f64, randomArray, readGoldenCase } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';
import { referenceAxisNeighbors, referenceFna, referenceFnaGradients } from '../src/fna/reference.js';
import type { FnaReferenceOptions } from '../src/fna/reference.js';

interface FnaParams {
  kernelSize: number[];
  dilation: number[];
  isCausal: boolean[];
  scale: number | null;
}

const required = (array: F64Array | undefined): F64Array => array ?? expect.fail('the case lacks a tensor');
// The files hold f32 values of a float64 reference.
const f32Rounding = { atol: 1e-6, rtol: 1e-6 };

for (const name of ['1d-causal-extra-kv', '2d-dilated', '2d-rpb']) {
  test(`the golden case ${name} comes out, forward and backward`, async () => {
    const path = fileURLToPath(new URL(`cases/fna--${name}.safetensors`, import.meta.url));
    const { params, inputs, outputs, cotangents, gradients } = await readGoldenCase(name, await fileSource(path));
    const { kernelSize, dilation, isCausal, scale } = params as unknown as FnaParams;
    const options: FnaReferenceOptions = {
      window: kernelSize,
      dilation,
      causal: isCausal,
      scale: scale ?? undefined,
      bias: inputs['rpb'],
      additionalKeys: inputs['additionalKeys'],
      additionalValues: inputs['additionalValues'],
    };
    const [q, k, v] = ['query', 'key', 'value'].map((input) => required(inputs[input])) as [F64Array, F64Array, F64Array];
    const { out, lse } = referenceFna(q, k, v, options);
    expectClose('out', out, required(outputs['out']), f32Rounding);
    expectClose('lse', lse, required(outputs['lse']), f32Rounding);
    const grads = referenceFnaGradients(q, k, v, { out: cotangents['out'] }, options);
    const got: Record<string, F64Array | undefined> = { query: grads.q, key: grads.k, value: grads.v, rpb: grads.bias, ...grads };
    for (const [input, expected] of Object.entries(gradients)) expectClose(`grad_${input}`, required(got[input]), expected, f32Rounding);
    expect(Object.keys(gradients).length).toBeGreaterThanOrEqual(3);
  });
}

test('a window sees exactly its size, shifted inside at the borders; even windows reach further left', () => {
  const seen = (length: number, window: number, c: number, dilation = 1, causal = false): number[] =>
    referenceAxisNeighbors(length, window, dilation, causal, c).map(({ coordinate }) => coordinate);
  expect(seen(7, 4, 3)).toEqual([1, 2, 3, 4]);
  expect(seen(7, 3, 0)).toEqual([0, 1, 2]);
  expect(seen(7, 3, 6)).toEqual([4, 5, 6]);
  // Groups of a dilation that does not divide the axis differ in length: 0 2 4 6 and 1 3 5.
  expect(seen(7, 3, 6, 2)).toEqual([2, 4, 6]);
  expect(seen(7, 3, 5, 2)).toEqual([1, 3, 5]);
  expect(seen(7, 3, 1, 1, true)).toEqual([0, 1]);
  expect(seen(9, 3, 8, 3, true)).toEqual([2, 5, 8]);
});

test('a window as large as the grid equals dense attention, over three axes', () => {
  const random = new RandomStream(3);
  const grid = [2, 3, 2];
  const [q, k, v] = [
    randomArray(random, [1, ...grid, 2, 4]),
    randomArray(random, [1, ...grid, 2, 4]),
    randomArray(random, [1, ...grid, 2, 3]),
  ];
  const { out } = referenceFna(q, k, v, { window: grid });
  const flat = (x: F64Array): F64Array => f64([1, 12, 2, x.shape.at(-1) as number], x.values);
  const dense = referenceFna(flat(q), flat(k), flat(v), { window: [12] });
  expectClose('out', flat(out), dense.out, { atol: 1e-12, rtol: 0 });
});

test('gradients are those of finite differences: 3-D, even window, dilation, a causal axis, grouped heads, additional tokens, lse', () => {
  const random = new RandomStream(5);
  const grid = [2, 3, 4];
  const arrays = {
    q: randomArray(random, [1, ...grid, 2, 2]),
    k: randomArray(random, [1, ...grid, 1, 2]),
    v: randomArray(random, [1, ...grid, 1, 3]),
    additionalKeys: randomArray(random, [1, 2, 1, 2]),
    additionalValues: randomArray(random, [1, 2, 1, 3]),
  };
  const { q, k, v, ...additional } = arrays;
  const [dOut, dLse] = [randomArray(random, [1, ...grid, 2, 3]), randomArray(random, [1, ...grid, 2])];
  const options: FnaReferenceOptions = { window: [2, 2, 2], dilation: [1, 1, 2], causal: [false, true, false], ...additional };
  expectGradients(
    arrays,
    () => referenceFna(q, k, v, options),
    { out: dOut, lse: dLse },
    referenceFnaGradients(q, k, v, { out: dOut, lse: dLse }, options),
  );
});

test('gradients of a relative position bias are those of finite differences', () => {
  const random = new RandomStream(6);
  const arrays = {
    q: randomArray(random, [2, 3, 4, 2, 2]),
    k: randomArray(random, [2, 3, 4, 2, 2]),
    v: randomArray(random, [2, 3, 4, 2, 2]),
    bias: randomArray(random, [2, 3, 5]),
  };
  const { q, k, v, bias } = arrays;
  const [dOut, dLse] = [randomArray(random, [2, 3, 4, 2, 2]), randomArray(random, [2, 3, 4, 2])];
  const options: FnaReferenceOptions = { window: [2, 3], bias, scale: 0.7 };
  expectGradients(
    arrays,
    () => referenceFna(q, k, v, options),
    { out: dOut, lse: dLse },
    referenceFnaGradients(q, k, v, { out: dOut, lse: dLse }, options),
  );
});

function expectGradients(
  inputs: Record<string, F64Array>,
  forward: () => { out: F64Array; lse: F64Array },
  cotangents: { out: F64Array; lse: F64Array },
  grads: object,
): void {
  const dot = (a: F64Array, b: F64Array): number => a.values.reduce((sum, x, i) => sum + x * (b.values[i] as number), 0);
  const loss = (): number => {
    const { out, lse } = forward();
    return dot(out, cotangents.out) + dot(lse, cotangents.lse);
  };
  const byName = grads as Record<string, F64Array | undefined>;
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
    expectClose(name, required(byName[name]), numeric, { atol: 1e-8, rtol: 1e-7 });
  }
}
