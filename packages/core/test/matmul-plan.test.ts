import { expect, test } from 'vitest';
import fc from 'fast-check';
import { type Capabilities, type FloatDType, openDevice, planMatmul } from '../src/index.js';
import { checkWorkgroupVariables, workgroupBytes } from '../src/internal.js';
import { empty } from '../src/tensor/create.js';
import { baselineCapabilities as baseline } from '../src/testing/index.js';
import { activations } from '../src/ops/matmul/activation.js';
import { fragmentBytes, fragmentTiles, type Load, type MatmulPlan, type MatmulShape, registerTiles } from '../src/ops/matmul/plan.js';
import { runProduct } from '../src/ops/matmul/run.js';

const tensorCores: Capabilities = {
  ...baseline,
  tier: 'matrix',
  f16: true,
  subgroups: true,
  subgroupMinSize: 32,
  subgroupMaxSize: 32,
  matrix: 'hardware',
  matrixConfigs: [{ component: 'f16', result: 'f32', M: 16, N: 8, K: 16 }],
  limits: { ...baseline.limits, maxComputeWorkgroupStorageSize: 49_152 },
};

function shape(M: number, N: number, K: number, dtype: FloatDType = 'f32', more: Partial<MatmulShape> = {}): MatmulShape {
  const side = (length: number): MatmulShape['a'] => ({ dtype, transposed: false, width: length % 8 === 0 ? 8 : length % 4 === 0 ? 4 : 1 });
  return { M, N, K, matrices: 1, a: side(K), b: side(N), ...more };
}

test('the tile and the parts of K that should take least time on a large GPU are chosen', () => {
  const { small, medium, large } = registerTiles;
  expect(planMatmul(shape(4096, 4096, 4096), 'f32', baseline)).toMatchObject({ kernel: 'tile', tile: large, splits: 1 });
  expect(planMatmul(shape(2048, 2048, 2048), 'f32', tensorCores)).toMatchObject({ tile: large, splits: 1, workgroups: 256 });
  // 144 large tiles would leave most multiprocessors idle in their second round
  expect(planMatmul(shape(1536, 1536, 1536), 'f32', tensorCores)).toMatchObject({ tile: medium, splits: 2, splitDepth: 768 });
  expect(planMatmul(shape(1024, 1024, 1024), 'f32', baseline)).toMatchObject({ tile: medium, splits: 1 });
  expect(planMatmul(shape(512, 512, 512), 'f32', baseline)).toMatchObject({ tile: medium, splits: 4, splitDepth: 128 });
  // four parts would be a little faster still, and take 144 MB of partial sums
  expect(planMatmul(shape(3000, 3000, 3000), 'f32', tensorCores)).toMatchObject({ tile: medium, splits: 1 });
  expect(planMatmul(shape(64, 64, 64), 'f32', baseline)).toMatchObject({ tile: small, splits: 1 });
  expect(planMatmul(shape(32_768, 32, 512), 'f32', baseline)).toMatchObject({ kernel: 'tile', tile: registerTiles.tall });
  expect(planMatmul(shape(32, 32_768, 512), 'f32', baseline)).toMatchObject({ kernel: 'tile', tile: registerTiles.wide });
});

test('f16 takes fragments where the device has them, and f32 only when rounding is allowed', () => {
  expect(planMatmul(shape(4096, 4096, 4096, 'f16'), 'f32', tensorCores)).toMatchObject({
    kernel: 'matrix',
    tile: fragmentTiles.large,
    splits: 1,
    a: 'half8',
    b: 'half8',
  });
  expect(planMatmul(shape(1024, 1024, 1024, 'f16'), 'f32', tensorCores)).toMatchObject({ tile: fragmentTiles.deep, splits: 1 });
  expect(planMatmul(shape(4096, 4096, 4096, 'f16'), 'f16', baseline)).toMatchObject({ kernel: 'tile', a: 'vec4' });
  expect(planMatmul(shape(4096, 4096, 4096), 'f32', tensorCores).kernel).toBe('tile');
  expect(planMatmul(shape(4096, 4096, 4096), 'f16', tensorCores)).toMatchObject({ kernel: 'matrix', a: 'vec4', b: 'vec4' });
  expect(planMatmul(shape(4096, 4095, 4096, 'f16'), 'f32', tensorCores)).toMatchObject({ kernel: 'matrix', a: 'half8', b: 'half8Shifted' });
  expect(planMatmul(shape(32_768, 64, 512, 'f16'), 'f32', tensorCores)).toMatchObject({ kernel: 'matrix', tile: fragmentTiles.tall });
  expect(planMatmul(shape(512, 512, 512, 'f16'), 'f32', tensorCores)).toMatchObject({ tile: fragmentTiles.flat, splits: 1 });
  expect(planMatmul(shape(64, 4096, 4096, 'f16'), 'f32', tensorCores)).toMatchObject({ tile: fragmentTiles.deep, splits: 4 });
  expect(planMatmul(shape(4096, 4096, 4096, 'f16'), 'f32', { ...tensorCores, matrix: 'emulated' })).toMatchObject({
    tile: fragmentTiles.medium,
  });
  expect(planMatmul(shape(4096, 4096, 4096, 'f16'), 'f32', { ...tensorCores, limits: baseline.limits })).toMatchObject({
    kernel: 'matrix',
    tile: fragmentTiles.tall,
  });
});

test('a weight gradient with a long K is split so that a large GPU is busy', () => {
  expect(planMatmul(shape(768, 768, 8192), 'f32', tensorCores)).toMatchObject({ tile: registerTiles.large, splits: 7, workgroups: 252 });
  expect(planMatmul(shape(512, 512, 32_768), 'f32', baseline)).toMatchObject({
    tile: registerTiles.large,
    splits: 16,
    splitDepth: 2048,
    workgroups: 256,
  });
  expect(planMatmul(shape(256, 256, 32_768, 'f16'), 'f32', tensorCores)).toMatchObject({ kernel: 'matrix', tile: fragmentTiles.large });
});

test('few rows or columns stream over the other operand', () => {
  expect(planMatmul(shape(1, 4096, 4096), 'f32', baseline)).toMatchObject({
    kernel: 'vector',
    form: 'columns',
    swap: false,
    few: 1,
    many4: true,
  });
  const rows = { transposed: true, dtype: 'f16', width: 8 } as const;
  expect(planMatmul(shape(5, 4096, 4096, 'f16', { b: rows }), 'f32', baseline)).toMatchObject({
    kernel: 'vector',
    form: 'rows',
    few: 8,
    splits: 1,
  });
  expect(planMatmul(shape(32_768, 3, 512), 'f32', baseline)).toMatchObject({
    kernel: 'vector',
    form: 'rows',
    swap: true,
    few: 4,
    splits: 1,
  });
});

test('few rows go to fragments where the device has them, from three on, or five where b is transposed', () => {
  const rows = { transposed: true, dtype: 'f16', width: 8 } as const;
  const { thin } = fragmentTiles;
  expect(planMatmul(shape(2, 4096, 4096, 'f16'), 'f32', tensorCores)).toMatchObject({ kernel: 'vector', few: 2, splits: 8 });
  expect(planMatmul(shape(3, 4096, 4096, 'f16'), 'f32', tensorCores)).toMatchObject({ kernel: 'matrix', tile: thin, splits: 8 });
  expect(planMatmul(shape(4, 4096, 4096, 'f16', { b: rows }), 'f32', tensorCores)).toMatchObject({ kernel: 'vector', few: 4, splits: 1 });
  expect(planMatmul(shape(5, 4096, 4096, 'f16', { b: rows }), 'f32', tensorCores)).toMatchObject({ kernel: 'matrix', tile: thin });
  expect(planMatmul(shape(17, 4096, 4096, 'f16'), 'f32', tensorCores)).toMatchObject({
    kernel: 'matrix',
    tile: fragmentTiles.flat,
    splits: 4,
  });
  expect(planMatmul(shape(5, 4096, 4096), 'f32', tensorCores).kernel).toBe('vector');
});

test('every plan covers K and the output, within the limits of baseline', () => {
  const length = fc.oneof(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 0, max: 70_000 }));
  const dtype = fc.constantFrom<FloatDType>('f32', 'f16');
  fc.assert(
    fc.property(
      length,
      length,
      length,
      fc.integer({ min: 1, max: 300 }),
      dtype,
      fc.constantFrom(baseline, tensorCores),
      (M, N, K, matrices, type, device) => {
        const plan = planMatmul(shape(M, N, K, type, { matrices }), 'f32', device);
        expect(plan.splits).toBeGreaterThanOrEqual(1);
        expect(plan.splits * plan.splitDepth).toBeGreaterThanOrEqual(K);
        expect((plan.splits - 1) * plan.splitDepth).toBeLessThan(Math.max(1, K));
        const tiles =
          plan.kernel === 'vector'
            ? plan.workgroups / plan.splits
            : Math.ceil(M / plan.tile.rows) * Math.ceil(N / plan.tile.columns) * matrices;
        expect(plan.workgroups).toBe(tiles * plan.splits);
        if (plan.kernel === 'tile')
          expect(64 * (plan.tile.rows + plan.tile.columns)).toBeLessThanOrEqual(device.limits.maxComputeWorkgroupStorageSize);
        if (plan.kernel === 'matrix') expect(fragmentBytes(plan.tile)).toBeLessThanOrEqual(32_768);
      },
    ),
    { seed: 1, numRuns: 500 },
  );
});

const loads: readonly Load[] = ['half8', 'vec4', 'half8Shifted', 'vec4Shifted'];
const isEight = (load: Load): load is 'half8' | 'half8Shifted' => load === 'half8' || load === 'half8Shifted';

test('every variant compiles with real subgroup matrices on the null backend', async () => {
  const device = await openDevice({ nullBackend: true, tier: 'matrix' });
  expect(device.capabilities.matrix).toBe('hardware');
  const make = (dtype: FloatDType, plan: MatmulPlan, transposeA: boolean, transposeB: boolean, extra: { last: boolean }): void => {
    const odd = plan.kernel !== 'vector' && plan.b !== 'vec4' && plan.b !== 'half8' ? 1 : 0;
    const [M, N, K] = [128 + odd, 128 + odd, extra.last ? 68 : 64];
    const a = empty(device, transposeA ? [K, M] : [M, K], dtype);
    const b = empty(device, transposeB ? [N, K] : [K, N], dtype);
    const out = empty(device, [M, N], dtype);
    const bias = empty(device, [N], 'f32');
    const addTo = empty(device, [M, N], 'f32');
    runProduct({ a, b, out, transposeA, transposeB, plan, ...(extra.last ? { bias, addTo, activation: 'gelu' as const } : {}) });
    for (const t of [a, b, out, bias, addTo]) t.dispose();
  };
  let last = false;
  for (const transposeA of [false, true]) {
    for (const transposeB of [false, true]) {
      for (const dtype of ['f32', 'f16'] as const) {
        for (const load of loads) {
          last = !last;
          const split = { splits: last ? 2 : 1, splitDepth: 32, workgroups: 2 };
          if (!isEight(load) || dtype === 'f16')
            for (const tile of Object.values(fragmentTiles))
              make(dtype, { kernel: 'matrix', tile, a: load, b: load, ...split }, transposeA, transposeB, { last });
          if (!isEight(load)) {
            const own = load === 'vec4' ? 'vec4' : 'scalar';
            for (const tile of Object.values(registerTiles))
              make(dtype, { kernel: 'tile', tile, a: own, b: own, ...split }, transposeA, transposeB, { last });
          }
        }
        for (const few of [1, 2, 4, 8] as const)
          make(
            dtype,
            {
              kernel: 'vector',
              form: transposeB ? 'rows' : 'columns',
              swap: false,
              few,
              few4: !transposeA,
              many4: true,
              splits: 1,
              splitDepth: 64,
              workgroups: 1,
            },
            transposeA,
            transposeB,
            { last: few === 1 },
          );
      }
    }
  }
  for (const activation of activations) {
    const a = empty(device, [16, 16]);
    const out = empty(device, [16, 16]);
    runProduct({ a, b: a, out, activation });
    a.dispose();
    out.dispose();
  }
  // the null backend has 16 KiB of workgroup memory: of the largest tiles it refuses that, and nothing else
  await expect(device.idle()).rejects.toThrow('workgroup storage');
  let matrices = 0;
  for (const { name, wgsl } of device.pipelines.values()) {
    checkWorkgroupVariables(name, wgsl);
    const isMatrix = name === 'matmul-matrix';
    expect(workgroupBytes(wgsl)).toBeLessThanOrEqual(24_576);
    if (isMatrix) {
      matrices++;
      expect(wgsl).toContain('subgroupMatrixMultiplyAccumulate');
      expect(wgsl).not.toMatch(/var c\d+_\d+ *: *subgroup_matrix/);
    }
    device.gpu.pushErrorScope('validation');
    const module = device.gpu.createShaderModule({ label: name, code: wgsl });
    expect((await device.gpu.popErrorScope())?.message).toBeUndefined();
    device.gpu.pushErrorScope('validation');
    device.gpu.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
    const refused = (await device.gpu.popErrorScope())?.message;
    if (refused !== undefined)
      expect([workgroupBytes(wgsl) > 16_384, refused]).toEqual([true, expect.stringContaining('workgroup storage')]);
  }
  expect(matrices).toBeGreaterThanOrEqual(60);
  expect(device.memory().tensors).toBe(0);
  await device.close();
});
