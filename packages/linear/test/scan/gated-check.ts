import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { type Device, type DType, tensor, type Tensor } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { referenceGatedScan } from '../../src/scan/gated-reference.js';
import { linearScanWithState } from '../../src/scan/linear-scan.js';
import { draw } from '../lightning2/check.js';

export interface Given {
  batch?: number;
  tokens: number;
  heads?: number;
  keyDim?: number;
  valueDim?: number;
  gate: 'none' | 'head' | 'channel';
  /** Size of the log-decays. */
  forget?: number;
  chunk?: number;
  scale?: number;
  lengths?: number[];
  dtype?: DType;
  seed?: number;
}

/** Tensors of a problem and their values in float64; gates are at most 0. */
export async function made(device: Device, given: Given) {
  const { batch = 2, tokens, heads = 2, keyDim = 12, valueDim = 20, forget = 1, dtype = 'f32', seed = 1 } = given;
  const make = (name: string, shape: number[], type: DType = dtype) => draw(device, name, shape, type, seed);
  const gateShape = given.gate === 'head' ? [batch, tokens, heads] : [batch, tokens, heads, keyDim];
  const noise = await make('gate', gateShape, 'f32');
  const gate = tensor(
    device,
    Float32Array.from(noise.values.values, (x) => -forget * x * x),
    gateShape,
  );
  noise.x.dispose();
  const lengths = given.lengths && tensor(device, Int32Array.from(given.lengths));
  return {
    q: await make('q', [batch, tokens, heads, keyDim]),
    k: await make('k', [batch, tokens, heads, keyDim]),
    v: await make('v', [batch, tokens, heads, valueDim]),
    gate: { x: gate, values: f64(gateShape, await gate.read()) },
    initial: await make('initial', [batch, heads, keyDim, valueDim], 'f32'),
    dOut: await make('dOut', [batch, tokens, heads, valueDim]),
    dState: await make('dState', [batch, heads, keyDim, valueDim], 'f32'),
    lengths,
    options: {
      ...(given.gate !== 'none' && { gate }),
      ...(given.scale !== undefined && { scale: given.scale }),
      ...(given.chunk !== undefined && { chunk: given.chunk }),
      ...(lengths && { lengths }),
    },
  };
}

const dot = (a: F64Array, b: F64Array): number => a.values.reduce((sum, x, i) => sum + x * (b.values[i] as number), 0);

/** Runs a problem forward and backward: outputs against the loops, gradients against central differences of the loops. */
export async function check(device: Device, given: Given, bound = 4e-6, ofGradients: number = Math.max(2e-5, 2 * bound)): Promise<void> {
  const p = await made(device, given);
  const inputs = [p.q, p.k, p.v, p.initial, ...(given.gate === 'none' ? [] : [p.gate])];
  const { outputs, grads } = vjp(
    () => {
      const { out, state } = linearScanWithState(p.q.x, p.k.x, p.v.x, { ...p.options, initialState: p.initial.x });
      return [out, state];
    },
    inputs.map(({ x }) => x),
    [p.dOut.x, p.dState.x],
  );
  const lengths = given.lengths?.map((n) => Math.min(n, given.tokens));
  const loops = (): ReturnType<typeof referenceGatedScan> =>
    referenceGatedScan(p.q.values, p.k.values, p.v.values, {
      initialState: p.initial.values,
      scale: given.scale,
      lengths,
      ...(given.gate !== 'none' && { gate: p.gate.values }),
    });
  const loss = (): number => {
    const { out, state } = loops();
    return dot(out, p.dOut.values) + dot(state, p.dState.values);
  };
  const expected = loops();
  const read = async (x: Tensor): Promise<F64Array> => f64(x.shape, await x.read());
  const [out, state] = outputs as [Tensor, Tensor];
  expectErrorRatio(`out of ${JSON.stringify(given)}`, await read(out), expected.out, bound);
  expectErrorRatio(`state of ${JSON.stringify(given)}`, await read(state), expected.state, bound);
  const names = ['q', 'k', 'v', 'initial', 'gate'];
  for (const [i, { values }] of inputs.entries()) {
    const got = await read(grads[i] as Tensor);
    // every n-th element: central differences of a function of two variables at a time are exact up to the third order
    const places = Array.from(
      { length: Math.min(24, values.values.length) },
      (_, n) => Math.floor((n * values.values.length) / 24 + 0.5 * n) % values.values.length,
    );
    const wanted = places.map((place) => {
      const [before, step] = [values.values[place] as number, 1e-4];
      values.values[place] = before + step;
      const above = loss();
      values.values[place] = before - step;
      const below = loss();
      values.values[place] = before;
      return (above - below) / (2 * step);
    });
    // a 1 on both sides: what strong gates leave of a gradient is right to a rounding of 1, not of itself
    const taken = [1, ...places.map((place) => got.values[place] as number)];
    expectErrorRatio(
      `d${names[i]} of ${JSON.stringify(given)}`,
      f64([taken.length], taken),
      f64([taken.length], [1, ...wanted]),
      ofGradients,
    );
  }
  for (const x of tensorsIn([inputs.map(({ x }) => x), p.gate.x, p.dOut.x, p.dState.x, p.lengths ?? [], outputs, grads])) x.dispose();
}
