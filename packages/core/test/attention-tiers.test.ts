import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, scope, type Tensor, tensor } from '../src/index.js';
import { planAttention } from '../src/attention/index.js';
import { prepareCall } from '../src/attention/call.js';
import { runBackward } from '../src/attention/backward.js';
import { runForward } from '../src/attention/forward.js';
import { referenceAttention, referenceAttentionGradients } from '../src/attention/reference.js';
import { RandomStream } from '../src/random/stream.js';
import { expectClose, type F64Array, randomArray, toFloat32 } from '../src/testing/index.js';
import { checkAttention } from './attention-cases.js';

const causalPair = (_b: number, _h: number, q: number, kv: number): boolean => kv <= q;
const half = { dtype: 'f16', tolerance: { atol: 3e-3, rtol: 3e-3 }, gradientTolerance: { atol: 5e-3, rtol: 5e-3 } } as const;

describe.each(['baseline', 'subgroups'] as const)('tier %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('random shapes agree with the reference', async () => {
    const shapes = fc.record({
      B: fc.integer({ min: 1, max: 2 }),
      Tq: fc.integer({ min: 17, max: 50 }),
      Tk: fc.integer({ min: 1, max: 60 }),
      group: fc.constantFrom(1, 2),
    });
    await fc.assert(
      fc.asyncProperty(shapes, fc.integer({ min: 1, max: 1000 }), ({ B, Tq, Tk, group }, seed) =>
        checkAttention(device, {
          seed,
          shape: { B, Tq, Tk, H: 2, Hkv: 2 / group, D: 8 },
          options: () => ({ causal: true }),
          reference: () => ({ mask: causalPair }),
        }),
      ),
      { numRuns: 12, seed: 3 },
    );
  });

  test('f16 tensors, odd head dimensions included, with f32 statistics', () =>
    checkAttention(device, {
      ...half,
      shape: { Tq: 21, Tk: 30, H: 2, Hkv: 1, D: 10, Dv: 6 },
      options: () => ({ causal: true }),
      reference: () => ({ mask: causalPair }),
    }));

  test('one query of f16', () => checkAttention(device, { ...half, shape: { Tq: 1, Tk: 70, H: 4, Hkv: 2, D: 8 }, cotangents: 'none' }));
});

test('tiles of vec4, as hardware runs them, give the same', async () => {
  const device = await openDevice({ tier: 'baseline' });
  const random = new RandomStream(4);
  const [q, k, v, dOut] = [
    [1, 7, 2, 12],
    [1, 8, 1, 12],
    [1, 8, 1, 8],
    [1, 7, 2, 8],
  ].map((shape) => randomArray(random, shape)) as [F64Array, F64Array, F64Array, F64Array];
  const reference = { queryOffset: 1, mask: causalPair };
  const expected = referenceAttention(q, k, v, reference);
  const gradients = referenceAttentionGradients(q, k, v, { out: dOut }, reference);
  const got: [string, Tensor, F64Array][] = [];
  const inputs = [q, k, v, dOut].map((a) => tensor(device, toFloat32(a), a.shape)) as [Tensor, Tensor, Tensor, Tensor];
  const [tq, tk, tv, tOut] = inputs;
  const made = scope(() => {
    const call = prepareCall('test', tq, tk, tv, { causal: true });
    // without `software`: the tiles that a GPU of the guaranteed limits gets; too many rows to be packed
    const plan = planAttention({ ...call.sizes, sharedList: false }, device.capabilities);
    expect(plan.forward.tile.width).toBe(4);
    const tensors = { q: tq, k: tk, v: tv, arrays: [], selection: [] };
    const { out, lse } = runForward(call, tensors, { plan: plan.forward });
    const grads = runBackward(call, { ...tensors, out, lse, dOut: tOut, dLse: null }, { q: true, k: true, v: true, arrays: [] }, plan);
    return { out, lse, dq: grads.q as Tensor, dk: grads.k as Tensor, dv: grads.v as Tensor };
  });
  got.push(
    ['out', made.out, expected.out],
    ['lse', made.lse, expected.lse],
    ['dq', made.dq, gradients.q],
    ['dk', made.dk, gradients.k],
    ['dv', made.dv, gradients.v],
  );
  for (const [name, t, want] of got) expectClose(name, { shape: t.shape, values: await t.read() }, want, { atol: 1e-4, rtol: 3e-4 });
  for (const t of [...inputs, ...Object.values(made)]) t.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});
