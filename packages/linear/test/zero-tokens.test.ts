import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  Carry,
  type Device,
  openDevice,
  type Params,
  RandomStream,
  scope,
  type State,
  type Tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { baseConvMixer, based, basedMixer, slidingWindow, slidingWindowMixer } from '../src/based/index.js';
import { lawcat, lawcatMixer, lawcatWindow } from '../src/lawcat/index.js';
import { lightning, lightningMixer } from '../src/lightning/index.js';
import { lightning2, lightning2Mixer } from '../src/lightning2/index.js';
import { lla, llaMixer } from '../src/lla/index.js';
import { nalaformer, nalaformerMixer } from '../src/nalaformer/index.js';
import { nprf, nprfMixer } from '../src/nprf/index.js';
import { titans, titansMacMixer, titansMagMixer, titansMalMixer, titansMixer, titansSegmentAttention } from '../src/titans/index.js';
import { transnormerDiagAttention, transnormerMixer, transnormerNormAttention } from '../src/transnormer/index.js';
import { transnormerllm, transnormerllmMixer } from '../src/transnormerllm/index.js';

type Attend = (q: Tensor, k: Tensor, v: Tensor, zero: (shape: number[]) => Tensor) => Tensor;
const functions: Record<string, Attend> = {
  lightning: (q, k, v) => lightning(q, k, v),
  'lightning of every token': (q, k, v) => lightning(q, k, v, { causal: false }),
  lightning2: (q, k, v) => lightning2(q, k, v, { decay: [-1, -1] }),
  transnormerNormAttention: (q, k, v) => transnormerNormAttention(q, k, v),
  transnormerDiagAttention: (q, k, v) => transnormerDiagAttention(q, k, v),
  transnormerllm: (q, k, v, zero) => transnormerllm(q, k, v, { decay: [-1, -1], theta: zero([2, 8]) }),
  based: (q, k, v) => based(q, k, v),
  slidingWindow: (q, k, v) => slidingWindow(q, k, v, { left: 2 }),
  nalaformer: (q, k, v) => nalaformer(q, k, v),
  'nalaformer, causal': (q, k, v) => nalaformer(q, k, v, { causal: true }),
  nprf: (q, k, v, zero) => nprf(q, k, v, zero([2, 3, 8]), zero([2, Math.max(0, 2 * q.dim(1) - 1)])),
  'nprf, clipped': (q, k, v, zero) => nprf(q, k, v, zero([2, 3, 8]), zero([2, 5]), { clip: 2 }),
  lla: (q, k, v) => lla(q, k, v, { ridgeLambda: 1 }),
  titans: (q, k, v, zero) => {
    const [batch, tokens] = [q.dim(0), q.dim(1)];
    const memory = { weights: [zero([2, 8, 8])] };
    return titans(q, k, v, { memory, learningRate: zero([batch, tokens, 2]), forget: zero([batch, tokens, 2]), chunkSize: 1 });
  },
  titansSegmentAttention: (q, k, v) => titansSegmentAttention(q, k, v, { segment: 4 }),
  lawcat: (q, k, v, zero) => lawcat(q, k, v, { gate: zero([...q.shape]) }),
  lawcatWindow: (q, k, v, zero) =>
    lawcatWindow(q, k, v, { gate: zero([...q.shape]), features: { q, k }, window: 2, windowFactor: zero([2]) }),
};

const sizes = { dim: 16, heads: 2 };
const mixers = [
  lightningMixer(sizes),
  lightning2Mixer(sizes),
  transnormerMixer({ ...sizes, kind: 'norm' }),
  transnormerMixer({ ...sizes, kind: 'diag' }),
  transnormerllmMixer({ ...sizes, layer: 0, layers: 2 }),
  basedMixer(sizes),
  slidingWindowMixer(sizes),
  baseConvMixer(sizes),
  nalaformerMixer(sizes),
  nprfMixer({ ...sizes, distances: 4 }),
  llaMixer(sizes),
  titansMixer({ ...sizes, chunkSize: 4 }),
  titansMagMixer({ ...sizes, chunkSize: 4, segment: 4 }),
  titansMalMixer({ ...sizes, chunkSize: 4, segment: 4 }),
  titansMacMixer({ ...sizes, chunkSize: 4, segment: 4 }),
  lawcatMixer(sizes),
  lawcatMixer({ ...sizes, window: 3 }),
] as unknown as TokenMixer<Params, State>[];

describe('no tokens', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const zero = (shape: number[]): Tensor => zeros(device, shape);

  test.each(Object.keys(functions))('give no outputs and no gradients: %s', async (name) => {
    for (const [batch, tokens] of [
      [2, 0],
      [0, 3],
    ] as const)
      scope(() => {
        const shape = [batch, tokens, 2, 8];
        const [q, k, v] = [zero(shape), zero(shape), zero(shape)];
        const { outputs, grads } = vjp(() => (functions[name] as Attend)(q, k, v, zero), [q, k, v], [zero(shape)]);
        for (const x of [...outputs, ...grads]) expect(x.shape).toEqual(shape);
      });
    await device.idle();
  });

  test('pass through every mixer, whole and in a stream', async () => {
    const context = { layer: 0, layers: 1, training: false, carry: new Carry() };
    for (const mixer of mixers) {
      const params = mixer.init(device, new RandomStream(1));
      const state = mixer.start(device, { batch: 2, capacity: 8, dtype: 'f32' });
      scope(() => {
        const x = zero([2, 0, 16]);
        expect(mixer.apply(params, x, context).out.shape, mixer.name).toEqual([2, 0, 16]);
        expect(mixer.step(params, x, state, context).shape, mixer.name).toEqual([2, 0, 16]);
      });
      for (const t of tensorsIn([params])) t.dispose();
      state.dispose();
    }
    await device.idle();
  });
});
