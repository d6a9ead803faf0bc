import { type Device, RandomStream, type Tensor, tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { compare, expectClose, f64, type F64Array } from '@heed/core/testing';
import { expect } from 'vitest';
import { referenceZeta, referenceZetaGradients, type ZetaReferenceOptions } from '../../src/zeta/reference.js';
import { type ZetaOptions, zetaWithIndices } from '../../src/zeta/index.js';

/** Sizes of a problem. */
export interface Shape {
  batch: number;
  tokens: number;
  heads: number;
  keyDim: number;
  valueDim: number;
}

/** Inputs and a cotangent in float64; q and k on a grid of 1/32 in [-1, 1], where f32 distances are exact and ties are many. */
export function inputsOf(
  { batch, tokens, heads, keyDim, valueDim }: Shape,
  seed: number,
): Record<'q' | 'k' | 'v' | 'theta' | 'dOut', F64Array> {
  const random = new RandomStream(seed);
  const normal = (shape: number[], f: (x: number) => number = (x) => x): F64Array =>
    f64(shape, Float64Array.from(random.normal(shape.reduce((a, b) => a * b, 1)), f));
  const grid = (x: number): number => Math.round(Math.tanh(x) * 32) / 32;
  return {
    q: normal([batch, tokens, heads, keyDim], grid),
    k: normal([batch, tokens, heads, keyDim], grid),
    v: normal([batch, tokens, heads, valueDim], Math.fround),
    theta: normal([heads], Math.fround),
    dOut: normal([batch, tokens, heads, valueDim], Math.fround),
  };
}

/** Every option, for the reference. */
export function referenceOptions(options: ZetaOptions, keyDim: number): ZetaReferenceOptions {
  const {
    range,
    bits = Math.min(16, Math.floor(32 / keyDim)),
    topK = 32,
    window = 2 * topK,
    chunk = 256,
    causal = true,
    historyMean = true,
  } = options;
  return {
    rangeLow: range[0],
    rangeHigh: range[1],
    bits,
    topK,
    window,
    chunk,
    causal,
    historyMean,
    curves: options.curves,
    localWindow: options.localWindow,
  };
}

export function onDevice(device: Device, { shape, values }: F64Array, dtype: 'f32' | 'f16' = 'f32'): Tensor {
  return tensor(device, values, shape, { dtype });
}

export async function readValues(t: Tensor): Promise<{ shape: readonly number[]; values: ArrayLike<number> }> {
  const values = await t.read();
  return { shape: t.shape, values };
}

/** The searched part of the reference's indices. */
export function searched({ shape, values }: F64Array, topK: number): F64Array {
  const slots = shape[3] as number;
  const rows = values.length / slots;
  return f64(
    [...shape.slice(0, 3), topK],
    Float64Array.from({ length: rows * topK }, (_, i) => values[Math.floor(i / topK) * slots + (i % topK)] as number),
  );
}

/** Runs forward and backward and holds all of it against the reference: indices and codes exactly. */
export async function checkProblem(
  device: Device,
  shape: Shape,
  options: ZetaOptions,
  {
    seed = 1,
    gradients = true,
    inputs = inputsOf(shape, seed),
  }: { seed?: number; gradients?: boolean; inputs?: ReturnType<typeof inputsOf> } = {},
): Promise<void> {
  const full = referenceOptions(options, shape.keyDim);
  const expected = referenceZeta(inputs.q, inputs.k, inputs.v, inputs.theta, full);
  const given = [inputs.q, inputs.k, inputs.v, inputs.theta].map((x) => onDevice(device, x)) as [Tensor, Tensor, Tensor, Tensor];
  const cotangent = onDevice(device, inputs.dOut);
  const made = gradients
    ? vjp(
        () => {
          const { out, indices, codesQ, codesK } = zetaWithIndices(...given, options);
          return [out, indices, codesQ, codesK];
        },
        given,
        [cotangent, null, null, null],
      )
    : { outputs: Object.values(zetaWithIndices(...given, options)) as Tensor[], grads: [] };
  const [out, indices, codesQ, codesK] = await Promise.all(made.outputs.map(readValues));
  const none = { atol: 0, rtol: 0 };
  if (!out || !indices || !codesQ || !codesK) throw new Error('an output is missing');
  expect(compare('codesQ', codesQ, expected.codesQ, 'u32', none).failure).toBeUndefined();
  expect(compare('codesK', codesK, expected.codesK, 'u32', none).failure).toBeUndefined();
  expect(compare('indices', indices, searched(expected.indices, full.topK), 'exact', none).failure).toBeUndefined();
  expectClose('out', out, expected.out, { atol: 1e-5, rtol: 1e-5 });
  if (gradients) {
    const grads = referenceZetaGradients(inputs.q, inputs.k, inputs.v, inputs.theta, expected.indices, inputs.dOut, full);
    for (const [i, name] of (['q', 'k', 'v', 'theta'] as const).entries())
      expectClose(`grad of ${name}`, await readValues(made.grads[i] as Tensor), grads[name], {
        atol: name === 'theta' ? 2e-4 : 5e-5,
        rtol: 1e-4,
      });
  }
  for (const t of [...given, cotangent, ...made.outputs, ...made.grads]) t.dispose();
}
