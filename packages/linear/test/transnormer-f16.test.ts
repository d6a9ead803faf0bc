import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Carry, type Device, mean, mul, openDevice, RandomStream, tensor, type Tensor, valueAndGrad } from '@heed/core';
import { tensorsIn } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { lightningMixer } from '../src/lightning/index.js';
import { transnormerMixer } from '../src/transnormer/index.js';
import { transnormerllmMixer } from '../src/transnormerllm/index.js';

// Storage and operands in f16, states and sums in f32: on fragments (emulated here) and without them.
for (const tier of ['subgroups', 'matrix'] as const) {
  describe(`f16 on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    const place = { dim: 32, heads: 2, layers: 2 };
    for (const [own, name, made] of [
      ['matrix', 'lightning', (precision: 'f16' | 'f32') => lightningMixer({ ...place, layer: 0, precision, scale: 1 / 16 })],
      ['subgroups', 'transnormer in blocks', (precision: 'f16' | 'f32') => transnormerMixer({ ...place, layer: 0, block: 8, precision })],
      [
        'subgroups',
        'transnormer over all',
        (precision: 'f16' | 'f32') => transnormerMixer({ ...place, layer: 1, precision, scale: 1 / 16 }),
      ],
      [
        'matrix',
        'transnormerllm with LRPE',
        (precision: 'f16' | 'f32') => transnormerllmMixer({ ...place, layer: 0, precision, scale: 1 / 16 }),
      ],
    ] as const) {
      // one tier each: compilation takes the time
      if (own !== tier) continue;
      test(`${name}: outputs and gradients are those of f32 to the rounding of f16`, async () => {
        const [half, full] = [made('f16'), made('f32')];
        const context = { layer: 0, layers: 2, training: true, carry: new Carry() };
        const params = full.init(device, new RandomStream(1, name)) as never;
        const x = tensor(device, new RandomStream(2, 'x').normal(2 * 21 * 32), [2, 21, 32]);
        const run = (mixer: typeof half) =>
          valueAndGrad((p: object) => mean(mul(mixer.apply(p as never, x, context).out, x)))(params) as unknown as {
            value: Tensor;
            grads: object;
          };
        const [a, b] = [run(half), run(full)];
        const outs = [half.apply(params, x, context).out, full.apply(params, x, context).out] as const;
        expectErrorRatio('out', f64(x.shape, await outs[0].read()), f64(x.shape, await outs[1].read()), 6e-3);
        const [got, wanted] = [[...tensorsIn(a.grads)], [...tensorsIn(b.grads)]];
        for (const [i, gradient] of got.entries()) {
          const expected = wanted[i] as Tensor;
          expectErrorRatio(`gradient ${i}`, f64(gradient.shape, await gradient.read()), f64(expected.shape, await expected.read()), 3e-2);
        }
        for (const t of tensorsIn([params, x, a, b, outs])) t.dispose();
      });
    }
  });
}
