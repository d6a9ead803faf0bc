import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { activations, type Device, matmul, openDevice, scope, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { compile } from '../src/kernel/expr/index.js';
import { activate } from '../src/ops/matmul/activate.js';
import { activationDerivative, activationExpr } from '../src/ops/matmul/activation.js';
import { errorRatio, type HostArray, matmul64, poisonPool, product, random, sumTo } from './matmul-reference.js';

describe.each(['baseline', 'subgroups'] as const)('gradients of matmul on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
    poisonPool(device);
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  /** Gradients of both factors in float64, in their stored layouts. */
  function factors64(a: HostArray, b: HostArray, d: HostArray, transposeA: boolean, transposeB: boolean): [HostArray, HostArray] {
    const da = transposeA ? matmul64(b, d, transposeB, true) : matmul64(d, b, false, !transposeB);
    const db = transposeB ? matmul64(d, a, true, transposeA) : matmul64(a, d, !transposeA, false);
    return [sumTo(da, a.shape), sumTo(db, b.shape)];
  }

  test.each([
    { what: 'plain', a: [13, 20], b: [20, 11] },
    { what: 'both transposed', a: [20, 13], b: [11, 20], transposeA: true, transposeB: true },
    { what: 'shared weight', a: [2, 3, 12, 16], b: [16, 20] },
    { what: 'shared weight stored by outputs', a: [2, 12, 16], b: [20, 16], transposeB: true },
    { what: 'shared weight, activations stored by features', a: [2, 16, 12], b: [16, 20], transposeA: true },
    { what: 'batches stretched on both sides', a: [2, 1, 12, 16], b: [3, 16, 20] },
    { what: 'one matrix for many', a: [12, 16], b: [3, 16, 20] },
    { what: 'many rows for few columns', a: [1, 600, 12], b: [12, 3] },
  ])('both factors agree with float64: $what', async ({ a: aShape, b: bShape, transposeA = false, transposeB = false }) => {
    const a = random(device, aShape, 1);
    const b = random(device, bShape, 2);
    const shape = matmul64(a.host, b.host, transposeA, transposeB).shape;
    const d = random(device, shape, 3);
    const { outputs, grads } = vjp(() => matmul(a.device, b.device, { transposeA, transposeB }), [a.device, b.device], [d.device]);
    const expected = factors64(a.host, b.host, d.host, transposeA, transposeB);
    for (const [i, want] of expected.entries()) {
      expect(grads[i]?.shape).toEqual(want.shape);
      expect(errorRatio((await grads[i]?.read()) ?? [], want.values)).toBeLessThan(2e-6);
    }
    for (const t of [...outputs, ...grads, a.device, b.device, d.device]) t.dispose();
  });

  test('bias, addend and activation pass gradients; tracked and untracked values agree', async () => {
    const [M, K, N] = [700, 12, 20];
    const a = random(device, [M, K], 1);
    const b = random(device, [K, N], 2);
    const bias = random(device, [N], 3);
    const addTo = random(device, [M, N], 4);
    const d = random(device, [M, N], 5);
    const run = () => matmul(a.device, b.device, { bias: bias.device, addTo: addTo.device, activation: 'gelu' });
    const { outputs, grads } = vjp(run, [a.device, b.device, bias.device, addTo.device], [d.device]);
    using plain = scope(run);
    expect(errorRatio((await outputs[0]?.read()) ?? [], await plain.read())).toBeLessThan(1e-6);
    const slope = compile(activationDerivative('gelu'), ['x']);
    const dZ: HostArray = {
      shape: [M, N],
      values: matmul64(a.host, b.host).values.map((v, i) => slope(v + (bias.host.values[i % N] ?? 0)) * (d.host.values[i] ?? 0)),
    };
    const expected = [matmul64(dZ, b.host, false, true), matmul64(a.host, dZ, true), sumTo(dZ, [N]), d.host];
    for (const [i, want] of expected.entries())
      expect(errorRatio((await grads[i]?.read()) ?? [], want.values), `gradient ${i}`).toBeLessThan(3e-6);
    for (const t of [...outputs, ...grads, a.device, b.device, bias.device, addTo.device, d.device]) t.dispose();
  });

  test('the gradient of a weight is summed the same way each time', async () => {
    const a = random(device, [2, 700, 12], 1);
    const b = random(device, [12, 16], 2);
    const d = random(device, [2, 700, 16], 3);
    const read = async (): Promise<ArrayLike<number>> => {
      const { outputs, grads } = vjp(() => matmul(a.device, b.device), [b.device], [d.device]);
      const values = (await grads[0]?.read()) ?? [];
      for (const t of [...outputs, ...grads]) t.dispose();
      return values;
    };
    const first = await read();
    expect(await read()).toEqual(first);
    const flat = (x: HostArray): HostArray => ({ shape: [1400, x.shape.at(-1) ?? 1], values: x.values });
    expect(errorRatio(first, matmul64(flat(a.host), flat(d.host), true).values)).toBeLessThan(2e-6);
    for (const t of [a, b, d]) t.device.dispose();
  });

  test('only what is asked for is computed', async () => {
    const a = random(device, [12, 12], 1);
    const b = random(device, [12, 12], 2);
    const done = device.trace();
    const { outputs, grads } = vjp(() => matmul(a.device, b.device), [a.device], [b.device]);
    expect(done()).toHaveLength(2);
    for (const t of [...outputs, ...grads, a.device, b.device]) t.dispose();
    await device.idle();
  });
});

test('f16 gradients on fragments agree with float64 and keep the dtype of their factor', async () => {
  const device = await openDevice({ tier: 'matrix' });
  const a = random(device, [2, 16, 24], 1, 'f16');
  const b = random(device, [24, 32], 2, 'f16');
  const d = random(device, [2, 16, 32], 3, 'f16');
  const done = device.trace();
  const { outputs, grads } = vjp(() => matmul(a.device, b.device), [a.device, b.device], [d.device]);
  expect(done().map(({ kernel }) => kernel)).toEqual(['matmul-matrix', 'matmul-matrix', 'matmul-matrix']);
  const flat = (x: HostArray): HostArray => ({ shape: [product(x.shape.slice(0, -1)), x.shape.at(-1) ?? 1], values: x.values });
  const expected = [matmul64(d.host, b.host, false, true), matmul64(flat(a.host), flat(d.host), true)];
  for (const [i, want] of expected.entries()) {
    expect(grads[i]?.dtype).toBe('f16');
    expect(errorRatio((await grads[i]?.read()) ?? [], want.values)).toBeLessThan(5e-4);
  }
  for (const t of [...outputs, ...grads, a.device, b.device, d.device]) t.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('derivatives of activations are their slopes, and kernels compute their values', async () => {
  const device = await openDevice({ tier: 'baseline' });
  const points = [-30, -4.3, -1.7, -0.6, -0.01, 0.02, 0.5, 1.4, 3.9, 30];
  const a = tensor(device, points);
  for (const name of activations) {
    const value = compile(activationExpr(name), ['x']);
    const slope = compile(activationDerivative(name), ['x']);
    for (const x of points) expect(slope(x), `${name} at ${x}`).toBeCloseTo((value(x + 1e-5) - value(x - 1e-5)) / 2e-5, 5);
    const out = activate(a, name, undefined, 'f32');
    const worst = Math.max(
      ...(await out.read()).map((v, i) => Math.abs(v - value(points[i] ?? 0)) / Math.max(1, Math.abs(value(points[i] ?? 0)))),
    );
    expect(worst, name).toBeLessThan(1e-6);
    out.dispose();
  }
  a.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});
