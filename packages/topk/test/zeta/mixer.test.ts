import { afterAll, beforeAll, describe, expect, test } from 'vitest';
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
  sum,
  type Tensor,
  tensor,
  valueAndGrad,
} from '@heed/core';
import { expectClose } from '@heed/core/testing';
import { zetaMixer, type ZetaMixerParams } from '../../src/zeta/index.js';

const context = (): MixContext => ({ layer: 0, layers: 1, training: true, carry: new Carry() });
const config = { dim: 16, heads: 2, topK: 4, window: 8, chunk: 8, localWindow: 5 };

describe.each(['baseline', 'subgroups'] as const)('the mixer on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const input = (tokens: number, batch = 2): Tensor => tensor(device, new RandomStream(5).normal(batch * tokens * 16), [batch, tokens, 16]);
  const free = (params: ZetaMixerParams): void => {
    for (const p of Object.values(params)) for (const t of 'storage' in p ? [p as Tensor] : (Object.values(p) as Tensor[])) t.dispose();
  };

  test('step by pieces gives what apply gives, with and without short convolution', async () => {
    for (const shortConv of [4, 1]) {
      const mixer = zetaMixer({ ...config, shortConv });
      const params = mixer.init(device, new RandomStream(1));
      using x = input(41);
      const { out } = mixer.apply(params, x, context());
      const whole = { shape: [2, 41, 16], values: await out.read() };
      for (const pieces of [[41], [1, 7, 8, 9, 16], [20, ...Array.from({ length: 21 }, () => 1)]]) {
        const state = mixer.start(device, { batch: 2, capacity: 48, dtype: 'f32' });
        let at = 0;
        for (const n of pieces) {
          using piece = slice(x, 1, at, at + n);
          using got = mixer.step(params, piece, state, context());
          using expected = slice(out, 1, at, at + n);
          expectClose(
            `tokens ${at} to ${at + n}`,
            { shape: got.shape, values: await got.read() },
            { shape: got.shape, values: await expected.read() },
            { atol: 2e-5, rtol: 1e-4 },
          );
          at += n;
        }
        expect(state.tokens).toBe(41);
        state.dispose();
      }
      expect(whole.values.some((value) => value !== 0)).toBe(true);
      out.dispose();
      free(params);
    }
  });

  test('gradients of all parameters follow finite differences', async () => {
    const mixer = zetaMixer(config);
    const params = mixer.init(device, new RandomStream(2));
    using x = input(19, 1);
    using weights = tensor(device, new RandomStream(8).normal(19 * 16), [1, 19, 16]);
    const loss = (p: ZetaMixerParams): Tensor => sum(mul(mixer.apply(p, x, context()).out, weights));
    const { value, grads } = valueAndGrad(loss)(params);
    value.dispose();
    const leaves: [string, Tensor, Tensor][] = [
      ['into', params.into.weight, grads.into.weight],
      ['taps', params.taps, grads.taps],
      ['curve', params.curve, grads.curve],
      ['curveBias', params.curveBias, grads.curveBias],
      ['theta', params.theta, grads.theta],
      ['out', params.out.weight, grads.out.weight],
    ];
    for (const [name, leaf, gradient] of leaves) {
      const kept = (await leaf.read()).slice();
      const given = await gradient.read();
      // along the gradient itself: the slope is its squared norm
      const norm = Math.hypot(...given);
      const at = async (step: number): Promise<number> => {
        using moved = tensor(
          device,
          Float32Array.from(kept, (v, i) => v + (step * (given[i] as number)) / norm),
          leaf.shape,
        );
        const changed = name === 'into' || name === 'out' ? { ...params, [name]: { weight: moved } } : { ...params, [name]: moved };
        using l = scope(() => loss(changed as ZetaMixerParams));
        return (await l.read())[0] as number;
      };
      const slope = ((await at(2e-3)) - (await at(-2e-3))) / 4e-3;
      expect(Math.abs(slope - norm) / norm, `${name}: slope ${slope}, norm of the gradient ${norm}`).toBeLessThan(0.03);
      gradient.dispose();
    }
    free(params);
  });

  test('the mean loss of a tiny copy task falls under gradient steps', async () => {
    const mixer = zetaMixer(config);
    let params = mixer.init(device, new RandomStream(3));
    using x = input(24, 1);
    using target = tensor(
      device,
      new RandomStream(9).normal(24 * 16).map((v) => 0.3 * v),
      [1, 24, 16],
    );
    const losses: number[] = [];
    for (let step = 0; step < 12; step++) {
      const { value, grads } = valueAndGrad((p: ZetaMixerParams) => {
        const { out } = mixer.apply(p, x, context());
        return mean(mul(mul(out, -1), target));
      })(params);
      losses.push((await value.read())[0] as number);
      value.dispose();
      const stepped = async (p: Tensor, g: Tensor): Promise<Tensor> => {
        const [a, b] = [await p.read(), await g.read()];
        p.dispose();
        g.dispose();
        return tensor(
          device,
          Float32Array.from(a, (v, i) => v - 2 * (b[i] as number)),
          p.shape,
        );
      };
      params = {
        into: { weight: await stepped(params.into.weight, grads.into.weight) },
        taps: await stepped(params.taps, grads.taps),
        curve: await stepped(params.curve, grads.curve),
        curveBias: await stepped(params.curveBias, grads.curveBias),
        theta: await stepped(params.theta, grads.theta),
        out: { weight: await stepped(params.out.weight, grads.out.weight) },
      };
    }
    expect(losses.at(-1)).toBeLessThan(losses[0] as number);
    free(params);
  });
});

test('what a mixer cannot be is said', () => {
  expect(() => zetaMixer({ dim: 15, heads: 2 })).toThrow(/no multiple of heads/);
  expect(() => zetaMixer({ dim: 16, heads: 2, kvHeads: 1 })).toThrow(/leave kvHeads out/);
  expect(() => zetaMixer({ dim: 16, heads: 2, shortConv: 0 })).toThrow(/shortConv/);
  expect(() => zetaMixer({ dim: 16, heads: 2, keyDim: 5 })).toThrow(/1 to 4/);
});
