import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  Carry,
  type Device,
  mean,
  type MixContext,
  mul,
  openDevice,
  RandomStream,
  scope,
  slice,
  tensor,
  type Tensor,
  valueAndGrad,
} from '@heed/core';
import { namedTensors } from '@heed/core/optim';
import { tensorsIn } from '@heed/core/~internal';
import { expectClose, f64 } from '@heed/core/testing';
import { basedKind, basedLayerMixer, type BasedLayerConfig } from '../src/based/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const context: MixContext = { layer: 0, layers: 4, training: false, carry: new Carry() };
const dim = 16;
const config = (kind: BasedLayerConfig['kind']): BasedLayerConfig => ({
  dim,
  heads: 2,
  featureDim: 4,
  left: 3,
  layer: 0,
  layers: 4,
  ...(kind && { kind }),
});

test('the reference stack of 27 layers has its Taylor and window layers where the paper has them', () => {
  const places = (kind: string): number[] =>
    Array.from({ length: 27 }, (_, layer) => layer).filter((layer) => basedKind(layer, 27) === kind);
  expect(places('taylor')).toEqual([1, 6, 11, 16, 21]);
  expect(places('window')).toEqual([2, 7, 12, 17, 22]);
  expect([0, 1, 2, 3].map((layer) => basedKind(layer, 4))).toEqual(['conv', 'taylor', 'window', 'conv']);
});

test('each kind of layer decodes what its parallel form gives, and goes on after a snapshot', async () => {
  const tokens = 9;
  const x = tensor(device, new RandomStream(5, 'x').normal(2 * tokens * dim), [2, tokens, dim]);
  for (const kind of ['taylor', 'window', 'conv'] as const) {
    const mixer = basedLayerMixer({ ...config(kind), ...(kind === 'taylor' && { headNorm: true }) });
    const params = mixer.init(device, new RandomStream(7));
    const { out } = mixer.apply(params, x, context);
    const whole = await out.read();
    const wanted = (at: number, n: number): ReturnType<typeof f64> =>
      f64(
        [2, n, dim],
        Array.from({ length: 2 * n * dim }, (_, i) => whole[(Math.floor(i / (n * dim)) * tokens + at) * dim + (i % (n * dim))] as number),
      );
    for (const pieces of [[9], [1, 5, 1, 1, 1]]) {
      let state = mixer.start(device, { batch: 2, capacity: tokens, dtype: 'f32' });
      let at = 0;
      for (const n of pieces) {
        const piece = slice(x, 1, at, at + n);
        const got = mixer.step(params, piece, state, context);
        expectClose(`${kind} ${at} to ${at + n}`, { shape: got.shape, values: await got.read() }, wanted(at, n), {
          atol: 1e-5,
          rtol: 1e-4,
        });
        got.dispose();
        piece.dispose();
        at += n;
        if (at === 6) {
          const snapshot = await state.snapshot();
          state.dispose();
          state = mixer.start(device, { batch: 2, capacity: tokens, dtype: 'f32' });
          state.restore(snapshot);
        }
      }
      expect(state.tokens).toBe(tokens);
      // window: 3 keys and values; convolution: 2 inputs of 2 dim channels; Taylor: 15 features x (8 values and z) x 2 heads
      const numbers = { taylor: 15 * 9 * 2, window: 2 * 3 * dim, conv: 2 * 2 * dim }[kind];
      expect(state.bytes().payload).toBe(4 * 2 * numbers);
      const order = tensor(device, Uint32Array.of(1), [1], { dtype: 'u32' });
      state.select(order);
      expect(state.bytes().payload).toBe(4 * numbers);
      order.dispose();
      state.dispose();
    }
    for (const t of tensorsIn([params, out])) t.dispose();
  }
  x.dispose();
});

test('gradients reach every parameter of each kind', async () => {
  const x = tensor(device, new RandomStream(5, 'x').normal(6 * dim), [1, 6, dim]);
  for (const kind of ['taylor', 'window', 'conv'] as const) {
    const mixer = basedLayerMixer(config(kind));
    const params = mixer.init(device, new RandomStream(7)) as { [name: string]: never };
    const { value, grads } = valueAndGrad((p: typeof params): Tensor =>
      scope(() => {
        const { out } = mixer.apply(p, x, context);
        return mean(mul(out, out));
      }),
    )(params);
    for (const [name, gradient] of namedTensors(grads))
      expect([kind, name, Math.max(...(await gradient.read()).map(Math.abs)) > 0]).toEqual([kind, name, true]);
    for (const t of tensorsIn([params, value, grads])) t.dispose();
  }
  x.dispose();
});
