import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  Carry,
  type Device,
  type MixContext,
  openDevice,
  type Params,
  RandomStream,
  scope,
  slice,
  type State,
  tensor,
  type Tensor,
  type TokenMixer,
} from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { titansMacMixer, titansMagMixer, titansMalMixer, titansMixer } from '../src/titans/index.js';
import { disposeAll } from './titans/check.js';

const shape = { dim: 16, heads: 2, chunkSize: 3, expansion: 2, maxRate: 0.5 };
const hybrid = { ...shape, segment: 6, persistent: 3, rope: {} };
const mixers: [string, TokenMixer<Params, State>][] = [
  ['the memory alone', titansMixer({ ...shape, gradientPeriod: 6 }) as TokenMixer<Params, State>],
  [
    'a linear memory without momentum',
    titansMixer({ ...shape, depth: 1, residualNorm: false, orders: 0, outNorm: true, shortConv: 1 }) as TokenMixer<Params, State>,
  ],
  ['memory as gate', titansMagMixer(hybrid) as TokenMixer<Params, State>],
  [
    'memory as layer',
    titansMalMixer({ ...hybrid, orders: 2, persistent: 0, qkNorm: 'l2', projectionActivation: 'silu' }) as TokenMixer<Params, State>,
  ],
  ['memory as context', titansMacMixer(hybrid) as TokenMixer<Params, State>],
];
const context = (): MixContext => ({ layer: 0, layers: 1, training: false, carry: new Carry() });
const tokens = 17;

describe('titans as a token mixer', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const input = (seed = 1): Tensor => tensor(device, new RandomStream(seed, 'x').normal(2 * tokens * 16), [2, tokens, 16]);
  const start = (mixer: TokenMixer<Params, State>): State => mixer.start(device, { batch: 2, capacity: tokens, dtype: 'f32' });

  for (const [name, mixer] of mixers) {
    test(`${name}: a stream gives the parallel result for every split`, async () => {
      const params = mixer.init(device, new RandomStream(3));
      const x = input();
      const whole = mixer.apply(params, x, context()).out;
      const expected = [...(await whole.read())];
      for (const cuts of [[0, 17], [0, 1, 17], [0, 3, 17], [0, 5, 6, 7, 17], [0, 12, 17], Array.from({ length: 18 }, (_, i) => i)]) {
        const state = start(mixer);
        for (let i = 0; i + 1 < cuts.length; i++) {
          const [from, end] = [cuts[i] as number, cuts[i + 1] as number];
          const out = scope(() => mixer.step(params, slice(x, 1, from, end), state, context()));
          const rows = [0, 1].flatMap((b) => expected.slice((b * tokens + from) * 16, (b * tokens + end) * 16));
          expectErrorRatio(
            `tokens ${from} to ${end} of ${cuts.join()}`,
            { shape: out.shape, values: await out.read() },
            f64(out.shape, rows),
            2e-5,
          );
          out.dispose();
        }
        expect(state.tokens).toBe(tokens);
        state.dispose();
      }
      disposeAll([x, whole, ...tensorsIn(params)]);
    });

    test(`${name}: no output depends on later tokens, and every parameter has a gradient`, async () => {
      const params = mixer.init(device, new RandomStream(3));
      const leaves = [...tensorsIn(params)];
      const x = input();
      const dOut = tensor(device, new Float32Array(2 * tokens * 16).fill(1).fill(0, 10 * 16, tokens * 16), [2, tokens, 16]);
      const { outputs, grads } = vjp(() => mixer.apply(params, x, context()).out, [x, ...leaves], [dOut]);
      const dx = [...(await (grads[0] as Tensor).read())];
      // the first entry has cotangents up to token 9 only
      expect(dx.slice(10 * 16, tokens * 16).every((g) => g === 0)).toBe(true);
      expect(dx.slice(0, 16).some((g) => g !== 0)).toBe(true);
      for (const [i, grad] of grads.slice(1).entries()) {
        const values = [...(await grad.read())];
        expect(values.every(Number.isFinite), `gradient of parameter ${i} ${leaves[i]?.describe()}`).toBe(true);
        expect(
          values.some((g) => g !== 0),
          `gradient of parameter ${i} ${leaves[i]?.describe()} is nowhere but 0`,
        ).toBe(true);
      }
      disposeAll([x, dOut, ...outputs, ...grads, ...leaves]);
    });

    test(`${name}: decodes bit for bit on from a snapshot, in a fresh stream and with swapped batch entries`, async () => {
      const params = mixer.init(device, new RandomStream(3));
      const x = input();
      const next = scope(() => slice(x, 1, 8, 12));
      const state = start(mixer);
      scope(() => void mixer.step(params, slice(x, 1, 0, 8), state, context()));
      const snapshot = await state.snapshot();
      const first = mixer.step(params, next, state, context());
      const other = start(mixer);
      other.restore(snapshot);
      expect(other.tokens).toBe(8);
      const second = mixer.step(params, next, other, context());
      expect([...(await second.read())]).toEqual([...(await first.read())]);
      expect(() => state.truncate(3)).toThrow(/truncate to 3 of 12 tokens/);
      state.restore(snapshot);
      const swap = tensor(device, Uint32Array.of(1, 0));
      state.select(swap);
      const swappedNext = await tensorRows(device, next, [1, 0]);
      const third = mixer.step(params, swappedNext, state, context());
      const [a, b] = [[...(await first.read())], [...(await third.read())]];
      expect(b.slice(0, a.length / 2)).toEqual(a.slice(a.length / 2));
      disposeAll([x, next, first, second, third, swap, swappedNext, ...tensorsIn(params)]);
      state.dispose();
      other.dispose();
    });
  }

  test('says what does not fit', () => {
    expect(() => titansMixer({ dim: 10, heads: 3 })).toThrow(/dim 10 is no multiple of heads 3/);
    expect(() => titansMacMixer({ ...hybrid, segment: 7 })).toThrow(/chunkSize 3 does not divide segment 7/);
    expect(() => titansMixer({ ...shape, shortConv: 0 })).toThrow(/shortConv is 0; it must be an integer of 1/);
    expect(() => titansMixer({ ...shape, depth: 0 })).toThrow(/depth is 1 or more/);
  });
});

/** Batch entries in another order. */
async function tensorRows(device: Device, x: Tensor, order: readonly number[]): Promise<Tensor> {
  const shapeOf = [...x.shape];
  const values = [...(await x.read())];
  const size = values.length / (shapeOf[0] as number);
  return tensor(device, Float32Array.from(order.flatMap((b) => values.slice(b * size, (b + 1) * size))), shapeOf);
}
