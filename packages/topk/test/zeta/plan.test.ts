import { describe, expect, test } from 'vitest';
import { openDevice, tensor } from '@heed/core';
import { vjp, workgroupBytes } from '@heed/core/~internal';
import { type ZetaOptions, zeta } from '../../src/zeta/index.js';
import { resolveOptions } from '../../src/zeta/options.js';
import { blockOf, levelsOf, planZeta, slabsOf } from '../../src/zeta/plan.js';
import { backwardSlab } from '../../src/zeta/backward.js';

const limits = (maxComputeWorkgroupStorageSize: number, maxStorageBufferBindingSize = 2 ** 27): never =>
  ({ limits: { maxComputeWorkgroupStorageSize, maxStorageBufferBindingSize } }) as never;
const settings = (options: Partial<ZetaOptions> = {}): ReturnType<typeof resolveOptions> =>
  resolveOptions('zeta', { range: [-1, 1], ...options }, 3);

describe('the plan', () => {
  test('levels of runs are those that some prefix of whole chunks needs', () => {
    expect([0, 255, 256, 511, 512, 1023, 1024, 65536].map((tokens) => levelsOf(tokens, 256, true))).toEqual([1, 1, 1, 1, 2, 2, 3, 9]);
    expect([1, 256, 257, 512, 513].map((tokens) => levelsOf(tokens, 256, false))).toEqual([1, 1, 2, 2, 3]);
    expect(() => levelsOf(2 ** 16, 1, true)).toThrow(/use a larger chunk/);
  });

  test('a chunk that no workgroup can sort is halved into blocks', () => {
    expect([1, 100, 1024, 2048, 3000, 12288].map((chunk) => blockOf({ chunk, causal: true }))).toEqual([1, 100, 1024, 1024, 750, 768]);
    expect(() => blockOf({ chunk: 1031, causal: true })).toThrow(/multiple of 1024/);
  });

  test('queries a workgroup follow from the workgroup memory', () => {
    const shape = { rows: 16, tokens: 4096, valueDim: 64, half: true };
    expect(planZeta(settings(), shape, limits(16384)).forward).toEqual({ tile: 8, lanes: 128 });
    expect(planZeta(settings({ localWindow: 256 }), shape, limits(16384)).forward).toEqual({ tile: 4, lanes: 64 });
    expect(planZeta(settings({ localWindow: 256 }), shape, limits(49152)).forward).toEqual({ tile: 8, lanes: 128 });
  });

  test('the search has room for the runs of the longest prefix', () => {
    const runs = (tokens: number): number => planZeta(settings(), { rows: 1, tokens, valueDim: 64, half: true }, limits(16384)).runs;
    expect([1, 4096, 4097, 65536, 65537, 2 ** 20].map(runs)).toEqual([4, 4, 8, 8, 12, 12]);
  });

  test('slabs keep temporaries bounded and cover every row once', () => {
    const { slab } = planZeta(settings(), { rows: 512, tokens: 65536, valueDim: 64, half: true }, limits(16384));
    expect(slab * 65536 * (9 * 8 + 64 * 4 + 32 + 17 + 17 * 8)).toBeLessThanOrEqual(288 * 2 ** 20);
    expect(backwardSlab(512, 65536, 32, 0, 2 ** 27)).toBeLessThan(8);
    expect(backwardSlab(512, 65536, 32, 0, 2 ** 26)).toBe(3);
    expect(slabsOf(5, 2)).toEqual([
      [0, 2],
      [2, 2],
      [4, 1],
    ]);
  });
});

test('every variant compiles on the null backend, and keeps to 16 KiB of workgroup memory on baseline', async () => {
  for (const tier of ['baseline', 'subgroups'] as const) {
    const device = await openDevice({ tier, nullBackend: true });
    for (const keyDim of [1, 2, 3, 4]) {
      for (const valueDim of [64, 6]) {
        for (const dtype of ['f32', 'f16'] as const) {
          for (const over of [{}, { localWindow: 64, chunk: 64 }, { curves: 2 as const, historyMean: false }]) {
            const make = (dim: number, kind: 'f32' | 'f16' = 'f32'): ReturnType<typeof tensor> =>
              tensor(device, new Float32Array(300 * 2 * dim), [1, 300, 2, dim], { dtype: kind });
            const [q, k, v, theta] = [make(keyDim), make(keyDim), make(valueDim, dtype), tensor(device, new Float32Array(2))] as const;
            const cotangent = make(valueDim, dtype);
            const { outputs, grads } = vjp(() => zeta(q, k, v, theta, { range: [-1, 1], ...over }), [q, k, v, theta], [cotangent]);
            await device.idle();
            for (const t of [q, k, v, theta, cotangent, ...outputs, ...grads]) t.dispose();
          }
        }
      }
    }
    const zetas = [...device.pipelines.values()].filter(({ name }) => name.startsWith('zeta-'));
    expect(zetas.length).toBeGreaterThan(50);
    if (tier === 'baseline') for (const { wgsl } of zetas) expect(workgroupBytes(wgsl)).toBeLessThanOrEqual(16384);
    expect(device.memory().tensors).toBe(0);
    await device.close();
  }
});
