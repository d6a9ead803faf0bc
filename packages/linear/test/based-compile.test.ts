import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, type DType, openDevice, slice, tensor, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp, workgroupBytes } from '@heed/core/~internal';
import { based, basedStart, basedStep, basedWithState } from '../src/based/index.js';
import { nalaformer, nalaformerRope } from '../src/nalaformer/index.js';

// Dawn's null backend compiles and validates every text without a driver, those of GPUs, whose states are in named registers.
for (const tier of ['baseline', 'matrix'] as const) {
  describe(`on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ nullBackend: true, tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    /** Rows of a wider tensor: with elements beside each, a view starts at an odd one. */
    const view = (dim: number, tokens: number, dtype: DType, beside: number): Tensor => {
      const whole = zeros(device, [1, tokens, 2, dim + beside], { dtype });
      const cut = slice(whole, -1, beside, dim + beside);
      whole.dispose();
      return cut;
    };

    for (const [f, valueDim, beside] of [
      [16, 64, 0],
      [16, 128, 1],
      [5, 7, 0],
      [24, 64, 0],
      [40, 64, 0],
      [1, 4, 0],
    ] as const) {
      for (const dtype of ['f16', 'f32'] as const) {
        test(`every kernel of based compiles for ${dtype}, feature dimension ${f}, value dimension ${valueDim}`, async () => {
          const [q, v] = [view(f, 300, dtype, beside), view(valueDim, 300, dtype, beside)];
          const lengths = tensor(device, Int32Array.of(250));
          const initial = basedWithState(q, q, v);
          initial.out.dispose();
          for (const chunk of [300, 100])
            for (const causal of [true, false])
              for (const options of [{}, { lengths, initialState: initial }, { normalize: false }]) {
                const { outputs, grads } = vjp(() => based(q, q, v, { causal, chunk, ...options }), [q, v], [v]);
                for (const t of tensorsIn([outputs, grads])) t.dispose();
              }
          const state = basedStart(device, { batch: 1, heads: 2, featureDim: f, valueDim });
          const token = [view(f, 1, dtype, beside), view(valueDim, 1, dtype, beside)] as const;
          basedStep(token[0], token[0], token[1], state).dispose();
          state.dispose();
          for (const t of tensorsIn([q, v, lengths, initial, token])) t.dispose();
          await device.idle();
        });
      }
    }

    test('every kernel of nalaformer compiles', async () => {
      for (const dtype of ['f16', 'f32'] as const)
        for (const dim of [8, 64, 6, 200]) {
          const q = view(dim, 12, dtype, 1);
          const rope = dim % 4 === 0 ? nalaformerRope(device, { height: 3, width: 4, headDim: dim }) : undefined;
          for (const map of ['relu', 'cos'] as const)
            for (const causal of [true, false]) {
              const { outputs, grads } = vjp(() => nalaformer(q, q, q, { map, causal, ...(rope && { rope }) }), [q], [q]);
              for (const t of tensorsIn([outputs, grads])) t.dispose();
            }
          for (const t of tensorsIn([q, rope ?? []])) t.dispose();
        }
      await device.idle();
    });

    test('no kernel takes more workgroup memory or lanes than the device has', () => {
      const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = device.limits;
      const own = [...device.pipelines.values()].filter(({ name }) => /^(based|nalaformer)-/.test(name));
      expect(new Set(own.map(({ name }) => name))).toEqual(
        new Set([
          'based-sweep',
          'based-token-step',
          'based-pullback',
          'based-weights',
          'based-state-layout',
          'nalaformer-features',
          'nalaformer-features-backward',
          ...(tier === 'matrix' ? ['based-states', 'based-segments', 'based-outputs'] : []),
        ]),
      );
      for (const { wgsl } of own) {
        expect(workgroupBytes(wgsl)).toBeLessThanOrEqual(maxComputeWorkgroupStorageSize);
        expect(Number(/@workgroup_size\((\d+)\)/.exec(wgsl)?.[1])).toBeLessThanOrEqual(maxComputeInvocationsPerWorkgroup);
      }
    });
  });
}
