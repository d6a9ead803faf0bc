import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { fileSource } from '@heed/core/io';
import { expectClose, f64, readGoldenCase } from '@heed/core/testing';
import type { F64Array, GoldenCase } from '@heed/core/testing';
import {
  referenceAlibiSlopes,
  referenceLayerFactor,
  referenceLightning2,
  referenceLightning2Gradients,
  referencePaperSlopes,
} from '../src/lightning2/reference.js';

const golden = async (name: string): Promise<GoldenCase> =>
  readGoldenCase(name, await fileSource(fileURLToPath(new URL(`cases/lightning2--${name}.safetensors`, import.meta.url))));
const required = (array: F64Array | undefined): F64Array => array ?? expect.fail('the case lacks a tensor');
// The files hold f32 values of a float64 reference.
const f32Rounding = { atol: 1e-6, rtol: 1e-6 };

for (const name of ['decay', 'state']) {
  test(`the golden case ${name} comes out, forward and backward`, async () => {
    const { inputs, outputs, cotangents, gradients } = await golden(name);
    const [q, k, v, slopes] = ['q', 'k', 'v', 'slopes'].map((input) => required(inputs[input])) as [F64Array, F64Array, F64Array, F64Array];
    const options = { initialState: inputs['initialState'] };
    const { out, finalState } = referenceLightning2(q, k, v, slopes.values, options);
    expectClose('o', out, required(outputs['o']), f32Rounding);
    if (name === 'state') expectClose('finalState', finalState, required(outputs['finalState']), f32Rounding);
    const grads = referenceLightning2Gradients(
      q,
      k,
      v,
      slopes.values,
      { out: cotangents['o'], finalState: cotangents['finalState'] },
      options,
    );
    for (const [input, expected] of Object.entries(gradients)) expectClose(`grad_${input}`, grads[input as 'q'], expected, f32Rounding);
    expect(Object.keys(gradients)).toHaveLength(name === 'state' ? 4 : 3);
  });
}

test('the golden decode steps come out from a state in the middle', async () => {
  const { inputs, outputs } = await golden('decode');
  const [state, q, k, v, slopes] = ['state', 'q', 'k', 'v', 'slopes'].map((input) => required(inputs[input])) as [
    F64Array,
    F64Array,
    F64Array,
    F64Array,
    F64Array,
  ];
  const { out, finalState } = referenceLightning2(q, k, v, slopes.values, { initialState: state });
  expectClose('o', out, required(outputs['o']), f32Rounding);
  expectClose('newState', finalState, required(outputs['newState']), f32Rounding);
});

test('the golden slopes of 12 heads in layer 3 of 12 come out', async () => {
  const { outputs } = await golden('slopes-12');
  const slopes = referenceAlibiSlopes(12).map((s) => s * referenceLayerFactor(3, 12));
  expectClose('slopes', f64([12], slopes), required(outputs['slopes']), { atol: 1e-9, rtol: 1e-6 });
});

test('slopes of the sheets: 8 heads, the paper scheme, a model of one layer', () => {
  expect([...referenceAlibiSlopes(8)]).toEqual([0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
  expect([...referencePaperSlopes(4, 1, 2)]).toEqual([0, 1, 2, 3]);
  expect(referenceLayerFactor(0, 1)).toBe(1 + 1e-5);
});

test('the recurrence is the masked product: o_i = sum over j <= i of lambda^(i-j) (q_i k_j) v_j + lambda^(i+1) q_i S0', async () => {
  const { inputs } = await golden('state');
  const [q, k, v, slopes, initialState] = ['q', 'k', 'v', 'slopes', 'initialState'].map((input) => required(inputs[input])) as [
    F64Array,
    F64Array,
    F64Array,
    F64Array,
    F64Array,
  ];
  const [, tokens, heads, dim] = q.shape as [number, number, number, number];
  const expected = f64(q.shape);
  for (let h = 0; h < heads; h++) {
    const lambda = Math.exp(-(slopes.values[h] as number));
    for (let i = 0; i < tokens; i++) {
      for (let j = 0; j <= i; j++) {
        let dot = 0;
        for (let d = 0; d < dim; d++)
          dot += (q.values[(i * heads + h) * dim + d] as number) * (k.values[(j * heads + h) * dim + d] as number);
        for (let e = 0; e < dim; e++) {
          const place = (i * heads + h) * dim + e;
          expected.values[place] =
            (expected.values[place] as number) + lambda ** (i - j) * dot * (v.values[(j * heads + h) * dim + e] as number);
        }
      }
      for (let d = 0; d < dim; d++) {
        for (let e = 0; e < dim; e++) {
          const place = (i * heads + h) * dim + e;
          const fromState = (q.values[(i * heads + h) * dim + d] as number) * (initialState.values[(h * dim + d) * dim + e] as number);
          expected.values[place] = (expected.values[place] as number) + lambda ** (i + 1) * fromState;
        }
      }
    }
  }
  expectClose('o', referenceLightning2(q, k, v, slopes.values, { initialState }).out, expected, { atol: 1e-11, rtol: 1e-11 });
});

test('tokens beyond a length leave the state alone and get no gradient', async () => {
  const { inputs, cotangents } = await golden('state');
  const [q, k, v, slopes] = ['q', 'k', 'v', 'slopes'].map((input) => required(inputs[input])) as [F64Array, F64Array, F64Array, F64Array];
  const cut = (x: F64Array, tokens: number): F64Array =>
    f64([1, tokens, ...x.shape.slice(2)], x.values.slice(0, (x.values.length / 83) * tokens));
  const whole = referenceLightning2(q, k, v, slopes.values, { lengths: [50] });
  const short = referenceLightning2(cut(q, 50), cut(k, 50), cut(v, 50), slopes.values);
  expect(whole.finalState).toEqual(short.finalState);
  expect(cut(whole.out, 50)).toEqual(short.out);
  const grads = referenceLightning2Gradients(q, k, v, slopes.values, { out: cotangents['o'] }, { lengths: [50] });
  expect(grads.k.values.slice(50 * 3 * 16).every((x) => x === 0)).toBe(true);
});

test('a scale multiplies the output and its gradients, not the state', async () => {
  const { inputs, cotangents } = await golden('decay');
  const [q, k, v, slopes] = ['q', 'k', 'v', 'slopes'].map((input) => required(inputs[input])) as [F64Array, F64Array, F64Array, F64Array];
  const one = referenceLightning2(q, k, v, slopes.values);
  const three = referenceLightning2(q, k, v, slopes.values, { scale: 3 });
  expectClose(
    'out',
    three.out,
    f64(
      one.out.shape,
      one.out.values.map((x) => 3 * x),
    ),
    { atol: 1e-12, rtol: 1e-12 },
  );
  expect(three.finalState).toEqual(one.finalState);
  const gradsOf = (scale: number): F64Array => referenceLightning2Gradients(q, k, v, slopes.values, { out: cotangents['o'] }, { scale }).k;
  expectClose(
    'dk',
    gradsOf(3),
    f64(
      k.shape,
      gradsOf(1).values.map((x) => 3 * x),
    ),
    { atol: 1e-12, rtol: 1e-12 },
  );
});
