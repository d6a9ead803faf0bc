import { expect } from 'vitest';
import { type Device, type DType, tensor, type Tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { type F64Array, expectErrorRatio } from '@heed/core/testing';
import { draw } from '../drawn.js';
import { decayFromSlopes, lightning2, type Lightning2Options, lightning2WithState } from '../../src/lightning2/index.js';
import { referenceLightning2, referenceLightning2Gradients } from '../../src/lightning2/reference.js';

export { draw };

/** One problem of the tests: shape, slopes and what is given besides q, k, v. */
export interface Problem {
  batch?: number;
  tokens: number;
  slopes: readonly number[];
  keyDim: number;
  valueDim?: number;
  dtype?: DType;
  scale?: number;
  initial?: boolean;
  lengths?: readonly number[];
  chunk?: number;
  seed?: number;
}

/** Root mean square errors against float64 that f32 sums, and f16 storage with f16 operands, stay under. */
const errorRatio: Partial<Record<DType, number>> = { f32: 3e-6, f16: 1.5e-3 };

/** Runs a problem forward and backward and holds every result against the float64 recurrence. */
export async function checkProblem(device: Device, problem: Problem): Promise<void> {
  const { batch = 1, tokens, slopes, keyDim, valueDim = keyDim, dtype = 'f32', scale = 1, seed = 1 } = problem;
  const heads = slopes.length;
  const made = (name: string, shape: readonly number[], type = dtype) => draw(device, name, shape, type, seed);
  const q = await made('q', [batch, tokens, heads, keyDim]);
  const k = await made('k', [batch, tokens, heads, keyDim]);
  const v = await made('v', [batch, tokens, heads, valueDim]);
  const dOut = await made('dOut', [batch, tokens, heads, valueDim]);
  const stateShape = [batch, heads, keyDim, valueDim];
  const initial = problem.initial ? await made('initial', stateShape, 'f32') : undefined;
  const dState = problem.initial ? await made('dState', stateShape, 'f32') : undefined;
  const lengths = problem.lengths && tensor(device, Int32Array.from(problem.lengths));
  const options: Lightning2Options = {
    decay: decayFromSlopes(slopes),
    scale,
    ...(initial && { initialState: initial.x }),
    ...(lengths && { lengths }),
    ...(problem.chunk !== undefined && { chunk: problem.chunk }),
  };
  const inputs = [q.x, k.x, v.x, ...(initial ? [initial.x] : [])];
  const { outputs, grads } = vjp(
    () => {
      if (!initial) return lightning2(q.x, k.x, v.x, options);
      const { out, state } = lightning2WithState(q.x, k.x, v.x, options);
      return [out, state];
    },
    inputs,
    [dOut.x, ...(dState ? [dState.x] : [])],
  );
  const expected = { scale, initialState: initial?.values, lengths: problem.lengths?.map((length) => Math.min(length, tokens)) };
  const forward = referenceLightning2(q.values, k.values, v.values, slopes, expected);
  const backward = referenceLightning2Gradients(
    q.values,
    k.values,
    v.values,
    slopes,
    { out: dOut.values, finalState: dState?.values },
    expected,
  );
  const bound = errorRatio[dtype] ?? 0;
  const results: [string, Tensor | undefined, F64Array][] = [
    ['out', outputs[0], forward.out],
    ['dq', grads[0], backward.q],
    ['dk', grads[1], backward.k],
    ['dv', grads[2], backward.v],
  ];
  if (initial) results.push(['state', outputs[1], forward.finalState], ['dInitial', grads[3], backward.initialState]);
  for (const [name, got, wanted] of results) {
    if (!got) return expect.fail(`${name} is missing`);
    if (wanted.values.length > 0)
      expectErrorRatio(`${name} of ${JSON.stringify(problem)}`, { shape: got.shape, values: await got.read() }, wanted, bound);
    else expect(got.shape).toEqual(wanted.shape);
  }
  for (const x of [q, k, v, dOut, initial, dState]) x?.x.dispose();
  lengths?.dispose();
  for (const x of [...outputs, ...grads]) x.dispose();
}
