import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, type DType, openDevice, slice, tensor, type Tensor } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { gatedMatrixTiles } from '../src/scan/gated-matrix-tile.js';
import { referenceGatedScan } from '../src/scan/gated-reference.js';
import { linearScan } from '../src/scan/linear-scan.js';
import { normalizedScan, normalizedScanWithState } from '../src/scan/normalized.js';
import { draw } from './lightning2/check.js';
import { check, type Given } from './scan/gated-check.js';

// f16 in fragments: operands and outputs are rounded to 11 bits, states and sums are not
const bound = 2e-3;

describe('gated scans on fragments', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'matrix' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  // one set of kernels for all: segments with lengths, forward and backward
  const segmented: Given = { gate: 'channel', dtype: 'f16', chunk: 64, lengths: [150, 71], tokens: 150, heads: 1 };

  test('outputs, states and gradients are those of the float64 loops, in segments and with lengths', () =>
    check(device, { ...segmented, forget: 0.05 }, bound));

  // their gates have a gradient near zero, left by sums of rounded terms that cancel
  test('gates that close within a few tokens make shorter steps with the same result', async () => {
    await check(device, { ...segmented, forget: 3 }, bound, 2e-2);
    await check(device, { ...segmented, forget: 30 }, bound, 2e-2);
  });

  test('the normaliser inside the scan is the scan of a column of ones, and its states go on', async () => {
    const [tokens, keyDim, valueDim, eps] = [100, 12, 20, 1e-3];
    const held: Tensor[] = [];
    const keep = (x: Tensor): Tensor => {
      held.push(x);
      return x;
    };
    const values = async (x: Tensor): Promise<F64Array> => f64(x.shape, await x.read());
    const made = async (name: string, size: number, of: (x: number) => number, dtype: DType): Promise<Tensor> => {
      const { x, values: noise } = await draw(device, name, [1, tokens, 2, size]);
      x.dispose();
      return keep(tensor(device, Float32Array.from(noise.values, of), noise.shape, { dtype }));
    };
    const [q, k] = [await made('q', keyDim, Math.abs, 'f16'), await made('k', keyDim, Math.abs, 'f16')];
    const v = await made('v', valueDim, (x) => x, 'f16');
    const gate = await made('gate', keyDim, (x) => -0.1 * x * x, 'f32');
    const scan = (from: number, to: number, before?: { state: Tensor; keySum: Tensor }): ReturnType<typeof normalizedScanWithState> => {
      const [q1, k1, v1, gate1] = [q, k, v, gate].map((x) => keep(slice(x, 1, from, to))) as [Tensor, Tensor, Tensor, Tensor];
      const start = before && { initialState: before.state, initialKeySum: before.keySum };
      const made = normalizedScanWithState(q1, k1, v1, { gate: gate1, chunk: 64, eps, ...start });
      [made.out, made.state, made.keySum].forEach(keep);
      return made;
    };
    const whole = scan(0, tokens);
    const [ofQ, ofK, ofV, ofGate] = [await values(q), await values(k), await values(v), await values(gate)];
    const n = referenceGatedScan(ofQ, ofK, ofV, { gate: ofGate });
    const z = referenceGatedScan(ofQ, ofK, f64([1, tokens, 2, 1], new Float64Array(2 * tokens).fill(1)), { gate: ofGate });
    const quotient = n.out.values.map((x, i) => x / ((z.out.values[Math.floor(i / valueDim)] as number) + eps));
    expectErrorRatio('out', await values(whole.out), f64(n.out.shape, quotient), bound);
    expectErrorRatio('state', await values(whole.state), n.state, bound);
    expectErrorRatio('keySum', await values(whole.keySum), z.state, bound);

    const second = scan(41, tokens, scan(0, 41));
    expectErrorRatio('keySum of parts', await values(second.keySum), z.state, bound);
    expectErrorRatio('out of parts', await values(second.out), await values(keep(slice(whole.out, 1, 41, tokens))), bound);
    for (const x of held) x.dispose();
  });

  test('a state of 64 x 64, whole fragments', async () => {
    const shape = [1, 100, 1, 64];
    const [q, k, v, noise] = await Promise.all(
      ['q', 'k', 'v', 'gate'].map((name) => draw(device, name, shape, name === 'gate' ? 'f32' : 'f16')),
    );
    if (!q || !k || !v || !noise) throw new Error('four operands');
    const gate = f64(
      shape,
      noise.values.values.map((x) => Math.fround(-0.05 * x * x)),
    );
    const gates = tensor(device, Float32Array.from(gate.values), shape);
    const out = linearScan(q.x, k.x, v.x, { gate: gates, chunk: 64 });
    expectErrorRatio('out', f64(shape, await out.read()), referenceGatedScan(q.values, k.values, v.values, { gate }).out, bound);
    for (const x of [q.x, k.x, v.x, noise.x, gates, out]) x.dispose();
  });

  test('gradients of the normalised scan of f16 operands are those of the same numbers in f32', async () => {
    const shape = [1, 40, 1, 12];
    const inputs = await Promise.all(['q', 'k', 'v', 'gate', 'dOut'].map((name) => draw(device, name, shape, 'f16')));
    const of = (dtype: DType): Tensor[] =>
      inputs.map(({ values }, i) => {
        const numbers = Float32Array.from(values.values, (x) => (i < 2 ? Math.abs(x) : i === 3 ? -0.1 * x * x : x));
        return tensor(device, numbers, shape, { dtype: i === 3 ? 'f32' : dtype });
      });
    const read = async (dtype: DType): Promise<F64Array[]> => {
      const [q, k, v, gate, dOut] = of(dtype) as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const { outputs, grads } = vjp(() => [normalizedScan(q, k, v, { gate, eps: 1e-2 })], [q, k, v, gate], [dOut]);
      const found = await Promise.all(grads.map(async (x) => f64(x.shape, await x.read())));
      for (const x of tensorsIn([q, k, v, gate, dOut, outputs, grads])) x.dispose();
      return found;
    };
    const [half, single] = [await read('f16'), await read('f32')];
    for (const [i, name] of ['dq', 'dk', 'dv', 'dgate'].entries())
      expectErrorRatio(name, half[i] as F64Array, single[i] as F64Array, 2 * bound);
    for (const { x } of inputs) x.dispose();
  });

  test('tiles are a function of shape and capabilities', () => {
    const { capabilities } = device;
    expect(gatedMatrixTiles(64, 64, capabilities)?.rows).toMatchObject({ chunk: 32, columns: 64, slices: 2 });
    expect(gatedMatrixTiles(5000, 64, capabilities)).toBeUndefined();
    expect(gatedMatrixTiles(64, 64, { ...capabilities, f16: false })).toBeUndefined();
  });
});
