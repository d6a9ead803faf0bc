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
const names = ['into', 'taps', 'curve', 'curveBias', 'theta', 'out'];
const flat = (p: ZetaMixerParams): Tensor[] => [p.into.weight, p.taps, p.curve, p.curveBias, p.theta, p.out.weight];
const nested = ([into, taps, curve, curveBias, theta, out]: readonly Tensor[]): ZetaMixerParams =>
  ({ into: { weight: into }, taps, curve, curveBias, theta, out: { weight: out } }) as ZetaMixerParams;
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
    for (const leaf of flat(params)) leaf.dispose();
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
    const loss = (leaves: readonly Tensor[]): Tensor => sum(mul(mixer.apply(nested(leaves), x, context()).out, weights));
    const leaves = flat(params);
    const { value, grads } = valueAndGrad(loss)(leaves);
    value.dispose();
    for (const [i, leaf] of leaves.entries()) {
      const gradient = grads[i] as Tensor;
      const name = names[i] as string;
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
        using l = scope(() => loss(leaves.map((own, n) => (n === i ? moved : own))));
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
    let leaves = flat(mixer.init(device, new RandomStream(3)));
    using x = input(24, 1);
    using target = tensor(
      device,
      new RandomStream(9).normal(24 * 16).map((v) => 0.3 * v),
      [1, 24, 16],
    );
    const losses: number[] = [];
    for (let step = 0; step < 12; step++) {
      const { value, grads } = valueAndGrad((now: readonly Tensor[]) =>
        mean(mul(mul(mixer.apply(nested(now), x, context()).out, -1), target)),
      )(leaves);
      losses.push((await value.read())[0] as number);
      value.dispose();
      leaves = await Promise.all(
        leaves.map(async (leaf, i) => {
          const gradient = grads[i] as Tensor;
          const [from, slope] = [await leaf.read(), await gradient.read()];
          leaf.dispose();
          gradient.dispose();
          return tensor(
            device,
            Float32Array.from(from, (v, at) => v - 2 * (slope[at] as number)),
            leaf.shape,
          );
        }),
      );
    }
    expect(losses.at(-1)).toBeLessThan(losses[0] as number);
    for (const leaf of leaves) leaf.dispose();
  });
});

test('what a mixer cannot be is said', () => {
  expect(() => zetaMixer({ dim: 15, heads: 2 })).toThrow(/no multiple of heads/);
  expect(() => zetaMixer({ dim: 16, heads: 2, kvHeads: 1 })).toThrow(/leave kvHeads out/);
  expect(() => zetaMixer({ dim: 16, heads: 2, shortConv: 0 })).toThrow(/shortConv/);
  expect(() => zetaMixer({ dim: 16, heads: 2, keyDim: 5 })).toThrow(/1 to 4/);
});
