import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  attention,
  Carry,
  type Device,
  mean,
  mul,
  openDevice,
  RandomStream,
  slice,
  tensor,
  type Tensor,
  valueAndGrad,
  zeros,
} from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { lightning } from '../src/lightning/index.js';
import {
  srms,
  transnormerAngles,
  transnormerBlock,
  transnormerDiagAttention,
  transnormerMixer,
  transnormerNormAttention,
  transnormerNormAttentionWithState,
  transnormerStack,
} from '../src/transnormer/index.js';
import { reflected } from '../src/transnormer/reflection.js';
import { referenceLightning } from '../src/lightning/reference.js';
import { referenceDiagAttention, referencePlaced, referenceSrms } from '../src/transnormer/reference.js';
import { dispose, draw, type Drawn, read } from './drawn.js';

const context = { layer: 0, layers: 2, training: false, carry: new Carry() };
const householder = [0.6, 0, 0.8, 0, 0, 0, 0];

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
    const drawn = async (tokens: number): Promise<[Drawn, Drawn, Drawn]> =>
      (await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [2, tokens, 2, 7])))) as [Drawn, Drawn, Drawn];

    test('NormAttention is the sum over earlier tokens of placed queries and keys, at any length and offset', async () => {
      const theta = tensor(device, transnormerAngles(7));
      const positions = { theta, householder };
      for (const [tokens, offset, causal] of [
        [1, 0, true],
        [19, 5, true],
        [13, 2, false],
      ] as const) {
        const [q, k, v] = await drawn(tokens);
        const out = transnormerNormAttention(q.x, k.x, v.x, { positions, offset, causal, scale: 0.5, chunk: 8 });
        const [a, b] = [q, k].map((x) => referencePlaced(x.values, { theta: transnormerAngles(7), householder }, (t) => t + offset));
        const expected = referenceLightning(a as F64Array, b as F64Array, v.values, { causal, scale: 0.5 });
        expectErrorRatio(`${tokens} tokens`, await read(out), expected, 3e-6);
        dispose(out, q.x, k.x, v.x);
      }
      dispose(theta);
    });

    test('DiagAttention is that of the loops: both variants, causal or not, with a short last block', async () => {
      const theta = tensor(device, transnormerAngles(7));
      for (const tokens of [3, 8, 21])
        for (const softmax of [true, false])
          for (const causal of [true, false]) {
            const [q, k, v] = await drawn(tokens);
            const out = transnormerDiagAttention(q.x, k.x, v.x, { block: 8, softmax, causal, positions: { theta, householder } });
            const [a, b] = [q, k].map((x) => referencePlaced(x.values, { theta: transnormerAngles(7), householder }, (t) => t % 8));
            const expected = referenceDiagAttention(a as F64Array, b as F64Array, v.values, {
              block: 8,
              softmax,
              causal,
              scale: 7 ** -0.5,
            });
            expectErrorRatio(`${tokens} tokens, softmax ${softmax}, causal ${causal}`, await read(out), expected, 3e-6);
            dispose(out, q.x, k.x, v.x);
          }
      dispose(theta);
    });
  });
}

describe('transnormer', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const drawn = async (tokens: number): Promise<[Drawn, Drawn, Drawn]> =>
    (await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, 2, 8])))) as [Drawn, Drawn, Drawn];

  test('one block as long as the sequence is dense softmax attention', async () => {
    for (const tokens of [12, 30]) {
      const [q, k, v] = await drawn(tokens);
      const out = transnormerDiagAttention(q.x, k.x, v.x, { block: 64 });
      const dense = attention(q.x, k.x, v.x, { causal: true });
      expectErrorRatio('dense', await read(out), await read(dense), 1e-6);
      dispose(out, dense, q.x, k.x, v.x);
    }
  });

  test('long blocks, which attention computes, are those of the loops, a short last one included', async () => {
    for (const causal of [true, false]) {
      const [q, k, v] = await drawn(45);
      const out = transnormerDiagAttention(q.x, k.x, v.x, { block: 20, causal });
      const expected = referenceDiagAttention(q.values, k.values, v.values, { block: 20, causal, scale: 8 ** -0.5 });
      expectErrorRatio(`causal ${causal}`, await read(out), expected, 3e-6);
      dispose(out, q.x, k.x, v.x);
    }
  });

  test('without positions NormAttention is plain linear attention, and a shift of all positions changes nothing', async () => {
    const [q, k, v] = await drawn(12);
    const theta = tensor(device, transnormerAngles(8));
    const { out, state } = transnormerNormAttentionWithState(q.x, k.x, v.x);
    const plain = lightning(q.x, k.x, v.x);
    expect([...(await out.read())]).toEqual([...(await plain.read())]);
    const [here, there] = [0, 1000].map((offset) => transnormerNormAttention(q.x, k.x, v.x, { positions: { theta }, offset }));
    expectErrorRatio('shift', await read(there as Tensor), await read(here as Tensor), 2e-5);
    dispose(out, state, plain, theta, here, there, q.x, k.x, v.x);
  });

  test('the norm has eps beside the root; its gradient is that of central differences, and finite at zero', async () => {
    const { x, values } = await draw(device, 'x', [2, 6]);
    const dy = await draw(device, 'dy', [2, 6]);
    const { outputs, grads } = vjp(() => srms(x, 0.1), [x], [dy.x]);
    expectErrorRatio('y', await read(outputs[0] as Tensor), referenceSrms(values, 0.1), 1e-6);
    const loss = (): number => referenceSrms(values, 0.1).values.reduce((sum, y, i) => sum + y * (dy.values.values[i] as number), 0);
    const wanted = values.values.map((before, i) => {
      const [above, below] = [1e-5, -1e-5].map((step) => {
        values.values[i] = before + step;
        return loss();
      }) as [number, number];
      values.values[i] = before;
      return (above - below) / 2e-5;
    });
    expectErrorRatio('dx', await read(grads[0] as Tensor), f64([2, 6], wanted), 2e-6);
    const zero = zeros(device, [1, 6]);
    const at0 = vjp(() => srms(zero), [zero], [zero]);
    for (const y of tensorsIn([at0.outputs, at0.grads])) expect((await y.read()).every((e) => e === 0)).toBe(true);
    dispose(x, dy.x, outputs, grads, zero, at0.outputs, at0.grads);
  });

  test('streams of every kind give the parallel form, in pieces that end inside, at and behind blocks', async () => {
    const x = tensor(device, new RandomStream(4, 'x').normal(2 * 23 * 12), [2, 23, 12]);
    const common = { dim: 12, heads: 2, block: 4 };
    const layers = [
      transnormerMixer({ ...common, kind: 'norm' }),
      transnormerMixer({ ...common, kind: 'diag' }),
      transnormerMixer({ ...common, kind: 'diag', variant: 'T1' }),
      transnormerStack({ ...common, layers: 2, variant: 'T1', gluActivation: 'silu' }),
    ];
    for (const [i, layer] of layers.entries()) {
      const params = layer.init(device, new RandomStream(i, 'layer')) as never;
      const { out } = layer.apply(params, x, context);
      const expected = await read(out);
      const state = layer.start(device, { batch: 2, capacity: 23, dtype: 'f32' });
      let start = 0;
      for (const count of [1, 2, 1, 9, 7, 3]) {
        const piece = slice(x, 1, start, start + count);
        const [got, wanted] = [layer.step(params, piece, state as never, context), slice(out, 1, start, start + count)];
        expectErrorRatio(`${layer.name} ${i}, tokens from ${start}`, await read(got), await read(wanted), 5e-6);
        dispose(piece, got, wanted);
        start += count;
      }
      expect(state.tokens).toBe(23);
      expect(expected.values.every(Number.isFinite)).toBe(true);
      dispose(params, out, state);
    }
    dispose(x);
  });

  test('a snapshot of a stack continues to the bit; a chosen batch entry goes on alone', async () => {
    const stack = transnormerStack({ dim: 12, heads: 2, block: 4, layers: 2 });
    const params = stack.init(device, new RandomStream(1, 'stack'));
    const x = tensor(device, new RandomStream(4, 'x').normal(2 * 9 * 12), [2, 9, 12]);
    const [head, tail] = [slice(x, 1, 0, 6), slice(x, 1, 6, 9)];
    const state = stack.start(device, { batch: 2, capacity: 9, dtype: 'f32' });
    stack.step(params, head, state, context).dispose();
    const saved = await state.snapshot();
    const first = stack.step(params, tail, state, context);
    state.restore(saved);
    const again = stack.step(params, tail, state, context);
    expect([...(await again.read())]).toEqual([...(await first.read())]);
    state.restore(saved);
    const one = tensor(device, Uint32Array.of(1));
    state.select(one);
    const alone = slice(tail, 0, 1, 2);
    const chosen = stack.step(params, alone, state, context);
    expectErrorRatio('entry 1', f64([36], await chosen.read()), f64([36], (await first.read()).slice(36)), 2e-6);
    dispose(params, x, head, tail, state, first, again, one, alone, chosen);
  });

  test('every parameter of both kinds of block has a gradient, both activations of the gated unit differ', async () => {
    const x = tensor(device, new RandomStream(4, 'x').normal(10 * 12), [1, 10, 12]);
    for (const kind of ['norm', 'diag'] as const) {
      const block = transnormerBlock({ dim: 12, heads: 2, block: 4, kind });
      const repaired = transnormerBlock({ dim: 12, heads: 2, block: 4, kind, gluActivation: 'silu' });
      const params = block.init(device, new RandomStream(1, kind));
      const [a, b] = [block.apply(params, x, context).out, repaired.apply(params, x, context).out];
      expect(await a.read()).not.toEqual(await b.read());
      const { value, grads } = valueAndGrad((p: typeof params) => mean(mul(block.apply(p, x, context).out, x)))(params);
      for (const gradient of tensorsIn(grads)) expect((await gradient.read()).some((g) => g !== 0)).toBe(true);
      dispose(params, a, b, value, grads);
    }
    dispose(x);
  });

  test('what does not fit is named', () => {
    const q = zeros(device, [1, 4, 2, 8]);
    const v = zeros(device, [1, 5, 2, 8]);
    expect(() => transnormerDiagAttention(q, q, v)).toThrow(/v is .*; q, k, v are \[batch, tokens, heads, headDim\]/);
    expect(() => transnormerDiagAttention(q, q, q, { block: 0 })).toThrow(/block is 0/);
    expect(() => transnormerDiagAttention(q, q, q, { scale: NaN })).toThrow(/scale is NaN; it must be finite/);
    const [narrow, whole] = [zeros(device, [1, 4, 2, 4]), zeros(device, [1, 4, 2, 8], { dtype: 'i32' })];
    expect(() => transnormerDiagAttention(q, narrow, q)).toThrow(/headDim must agree/);
    expect(() => transnormerDiagAttention(q, q, whole)).toThrow(/they must be f32, or f16 all three/);
    dispose(narrow, whole);
    expect(() => transnormerMixer({ dim: 12, heads: 2 })).toThrow(/neither kind nor layer and layers/);
    expect(() =>
      transnormerMixer({ dim: 12, heads: 2, kind: 'norm', causal: false }).start(device, { batch: 1, capacity: 1, dtype: 'f32' }),
    ).toThrow(/what sees later tokens has none/);
    dispose(q, v);
  });

  test('a reflection turns a row to the other side of the plane, and back', async () => {
    for (const headDim of [8, 6, 301]) {
      const { x, values } = await draw(device, 'x', [2, 3, 2, headDim]);
      const numbers = Float32Array.from({ length: headDim }, (_, i) => ((i % 3) - 1 || 0.5) / Math.sqrt(headDim));
      const length = Math.hypot(...numbers);
      const h = tensor(device, numbers.map((n) => n / length), [headDim]); // prettier-ignore
      const once = reflected(x, h);
      const twice = reflected(once, h);
      const expected = f64(x.shape, values.values);
      for (let row = 0; row < 12; row++) {
        let dot = 0;
        for (let c = 0; c < headDim; c++) dot += ((values.values[row * headDim + c] as number) * (numbers[c] as number)) / length;
        for (let c = 0; c < headDim; c++)
          expected.values[row * headDim + c] = (values.values[row * headDim + c] as number) - (2 * dot * (numbers[c] as number)) / length;
      }
      expectErrorRatio('once', await read(once), expected, 1e-6);
      expectErrorRatio('twice', await read(twice), values, 1e-6);
      dispose(x, h, once, twice);
    }
  });
});
