import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, slice, tensor, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { referenceGatedScan } from '../src/scan/gated-reference.js';
import { linearScan, linearScanStep, linearScanWithState } from '../src/scan/linear-scan.js';
import { normalizedScan, normalizedScanStep, normalizedScanWithState } from '../src/scan/normalized.js';
import { check, made } from './scan/gated-check.js';

for (const tier of ['baseline', 'subgroups'] as const) {
  describe(`on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    for (const gate of ['head', 'channel'] as const) {
      test(`a gate a ${gate}: outputs, states and gradients are those of the float64 loops for any length and chunk`, async () => {
        const problem = fc.record({
          tokens: fc.integer({ min: 1, max: 50 }),
          forget: fc.constantFrom(0, 0.01, 1, 30),
          scale: fc.constantFrom(1, 0.25),
          chunk: fc.constantFrom(1000, 17, 5),
          lengths: fc.tuple(fc.constantFrom(0, 9, 50), fc.constant(50)),
          seed: fc.integer({ min: 1, max: 1000 }),
        });
        await fc.assert(
          fc.asyncProperty(problem, (given) => check(device, { ...given, gate })),
          { seed: 11, numRuns: 8 },
        );
      });
    }

    test('steps of any size give what the whole sequence gives', async () => {
      const p = await made(device, { tokens: 23, gate: 'channel' });
      const whole = linearScanWithState(p.q.x, p.k.x, p.v.x, p.options);
      const state = zeros(device, whole.state.shape);
      const outs: number[] = [];
      const wanted = f64(whole.out.shape, await whole.out.read());
      const rows = 2 * 20;
      for (const [start, end] of [
        [0, 1],
        [1, 12],
        [12, 13],
        [13, 23],
      ] as const) {
        const [q, k, v, gate] = [p.q.x, p.k.x, p.v.x, p.gate.x].map((x) => slice(x, 1, start, end)) as [Tensor, Tensor, Tensor, Tensor];
        const out = linearScanStep(q, k, v, state, { gate });
        const values = await out.read();
        for (let b = 0; b < 2; b++)
          for (let i = start * rows; i < end * rows; i++)
            outs[b * 23 * rows + i] = values[b * (end - start) * rows + i - start * rows] as number;
        for (const x of [q, k, v, gate, out]) x.dispose();
      }
      expectErrorRatio('stream', f64(wanted.shape, outs), wanted, 1e-6);
      expectErrorRatio('state', f64(state.shape, await state.read()), f64(state.shape, await whole.state.read()), 1e-6);
      for (const x of tensorsIn([p.q.x, p.k.x, p.v.x, p.gate.x, p.initial.x, p.dOut.x, p.dState.x, whole, state])) x.dispose();
    });
  });
}

describe('blocks of four tokens, the form of hardware devices', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
    Object.defineProperty(device, 'isSoftware', { value: false });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  // two lanes a column forward, one in the sweeps with swapped roles
  test('a gate a channel: outputs, states and gradients are those of the float64 loops', () =>
    check(device, { tokens: 22, keyDim: 20, valueDim: 4, gate: 'channel', batch: 1, heads: 2, lengths: [19] }));

  test('a gate a head, four lanes a column', async () => {
    const p = await made(device, { tokens: 15, keyDim: 44, valueDim: 4, gate: 'head', batch: 1 });
    const out = linearScan(p.q.x, p.k.x, p.v.x, p.options);
    const expected = referenceGatedScan(p.q.values, p.k.values, p.v.values, { gate: p.gate.values });
    expectErrorRatio('out', f64(out.shape, await out.read()), expected.out, 3e-6);
    for (const x of tensorsIn([p.q.x, p.k.x, p.v.x, p.gate.x, p.initial.x, p.dOut.x, p.dState.x, out])) x.dispose();
  });
});

describe('limits', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('without gate and decay it is plain causal linear attention', () => check(device, { tokens: 30, gate: 'none', chunk: 7 }));

  test('odd head dimensions, more columns than a tile, one token', async () => {
    await check(device, { tokens: 19, gate: 'channel', keyDim: 5, valueDim: 7, batch: 1, chunk: 6 });
    await check(device, { tokens: 11, gate: 'channel', keyDim: 8, valueDim: 72, batch: 1, heads: 1 });
    await check(device, { tokens: 1, gate: 'channel', keyDim: 5, valueDim: 7, batch: 1 });
  });

  test('f16 operands keep their gates and sums in f32', () =>
    check(device, { tokens: 30, gate: 'channel', dtype: 'f16', chunk: 9, batch: 1, forget: 0.1 }, 1.5e-3));

  test('gates of minus infinity leave the token alone, and no gradient is NaN', async () => {
    const p = await made(device, { tokens: 9, gate: 'channel' });
    const gate = zeros(device, p.gate.x.shape);
    const closed = tensor(device, new Float32Array(gate.size).fill(-Infinity), gate.shape);
    const { outputs, grads } = vjp(() => linearScan(p.q.x, p.k.x, p.v.x, { gate: closed, chunk: 4 }), [p.q.x, closed], [p.dOut.x]);
    const expected = referenceGatedScan(p.q.values, p.k.values, p.v.values, {
      gate: f64(gate.shape, new Float64Array(gate.size).fill(-1e9)),
    });
    expectErrorRatio('out', f64(p.v.x.shape, await (outputs[0] as Tensor).read()), expected.out, 1e-6);
    for (const x of grads) expect((await x.read()).every(Number.isFinite)).toBe(true);
    for (const x of tensorsIn([p.q.x, p.k.x, p.v.x, p.gate.x, p.initial.x, p.dOut.x, p.dState.x, gate, closed, outputs, grads]))
      x.dispose();
  });

  test('operands larger than a binding go in pieces with the same result and gradients', async () => {
    const limit = device.limits.maxStorageBufferBindingSize;
    try {
      device.limits.maxStorageBufferBindingSize = 12288;
      await check(device, { tokens: 90, gate: 'channel', lengths: [90, 71], forget: 0.1 });
    } finally {
      device.limits.maxStorageBufferBindingSize = limit;
    }
  });

  test('the normaliser is the scan of a column of ones; steps give the same', async () => {
    const p = await made(device, { tokens: 21, gate: 'channel', forget: 0.3 });
    // positive features
    const positive = (x: F64Array): F64Array =>
      f64(
        x.shape,
        x.values.map((y) => Math.fround(Math.abs(y))),
      );
    const [q, k] = [positive(p.q.values), positive(p.k.values)];
    const [qx, kx] = [q, k].map((x) => tensor(device, Float32Array.from(x.values), x.shape)) as [Tensor, Tensor];
    const gate = p.gate.x;
    const { out, state, keySum } = normalizedScanWithState(qx, kx, p.v.x, { gate, eps: 1e-6 });
    const n = referenceGatedScan(q, k, p.v.values, { gate: p.gate.values });
    const z = referenceGatedScan(q, k, f64([2, 21, 2, 1], new Float64Array(84).fill(1)), { gate: p.gate.values });
    const expected = f64(
      n.out.shape,
      n.out.values.map((x, i) => x / ((z.out.values[Math.floor(i / 20)] as number) + 1e-6)),
    );
    expectErrorRatio('out', f64(out.shape, await out.read()), expected, 3e-6);
    expectErrorRatio('state', f64(state.shape, await state.read()), n.state, 3e-6);
    expectErrorRatio('keySum', f64(keySum.shape, await keySum.read()), z.state, 3e-6);
    const states = { state: zeros(device, state.shape), keySum: zeros(device, keySum.shape) };
    const first = [qx, kx, p.v.x, gate].map((x) => slice(x, 1, 0, 20)) as [Tensor, Tensor, Tensor, Tensor];
    const last = [qx, kx, p.v.x, gate].map((x) => slice(x, 1, 20, 21)) as [Tensor, Tensor, Tensor, Tensor];
    normalizedScanStep(first[0], first[1], first[2], states, { gate: first[3], eps: 1e-6 }).dispose();
    const stepped = normalizedScanStep(last[0], last[1], last[2], states, { gate: last[3], eps: 1e-6 });
    const wanted = slice(out, 1, 20, 21);
    expectErrorRatio('step', f64(wanted.shape, await stepped.read()), f64(wanted.shape, await wanted.read()), 1e-6);
    const { outputs, grads } = vjp(() => normalizedScan(qx, kx, p.v.x, { gate }), [qx, gate], [p.dOut.x]);
    for (const x of grads) expect((await x.read()).every(Number.isFinite)).toBe(true);
    for (const x of tensorsIn([
      p.q.x,
      p.k.x,
      p.v.x,
      gate,
      p.initial.x,
      p.dOut.x,
      p.dState.x,
      qx,
      kx,
      out,
      state,
      keySum,
      states,
      first,
      last,
      stepped,
      wanted,
      outputs,
      grads,
    ]))
      x.dispose();
  });

  test('shapes and dtypes that do not fit are named', () => {
    const q = zeros(device, [1, 4, 2, 8]);
    const bad = zeros(device, [1, 4, 2, 7]);
    const half = zeros(device, [1, 4, 2], { dtype: 'f16' });
    expect(() => linearScan(q, q, q, { gate: bad })).toThrow(
      /linearScan: gate is .*; it must be \[1, 4, 2\], one a token and head, or \[1, 4, 2, 8\]/,
    );
    expect(() => linearScan(q, q, q, { gate: half })).toThrow(/log-decays are f32/);
    expect(() => linearScan(q, q, q, { gate: bad, decay: [0, 0] })).toThrow(/both gate and decay were given/);
    for (const x of [q, bad, half]) x.dispose();
  });
});
