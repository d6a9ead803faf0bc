import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { type Device, type FloatDType, matmul, openDevice, scope, type Tensor, tensor } from '../src/index.js';
import { empty } from '../src/tensor/create.js';
import { fragmentTiles, type MatmulPlan, registerTiles } from '../src/ops/matmul/plan.js';
import { runProduct } from '../src/ops/matmul/run.js';
import { errorRatio, type HostArray, matmul64, poisonPool, random } from './matmul-reference.js';

// Shapes come in families that share kernels: compiling one takes a software driver a second or more.
interface Family {
  what: string;
  transposeA?: boolean;
  transposeB?: boolean;
  dtypes?: readonly [FloatDType, FloatDType];
  /** Lengths run over unit n + rest, n from 0 up to `most`. */
  unit: number;
  rest: number;
  most: number;
  /** In place of a random length. */
  M?: number;
  N?: number;
}

const families: readonly Family[] = [
  { what: 'odd lengths', unit: 2, rest: 9, most: 40 },
  { what: 'odd lengths, both transposed', transposeA: true, transposeB: true, unit: 2, rest: 9, most: 20 },
  { what: 'aligned lengths', unit: 4, rest: 12, most: 24 },
  { what: 'aligned lengths, both transposed', transposeA: true, transposeB: true, unit: 4, rest: 12, most: 20 },
  { what: 'f32 times f16', unit: 2, rest: 9, most: 20, dtypes: ['f32', 'f16'] },
  { what: 'one row', unit: 4, rest: 12, most: 80, M: 1 },
  { what: 'few rows times rows', transposeB: true, unit: 2, rest: 5, most: 80, M: 3 },
  { what: 'few columns', unit: 2, rest: 5, most: 80, N: 4 },
];
const halves: readonly Family[] = [
  { what: 'f16, odd lengths', unit: 2, rest: 9, most: 40, dtypes: ['f16', 'f16'] },
  { what: 'f16, aligned lengths, transposed', transposeA: true, transposeB: true, unit: 8, rest: 16, most: 10, dtypes: ['f16', 'f16'] },
];

describe.each(['baseline', 'subgroups', 'matrix'] as const)('matmul on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
    poisonPool(device);
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  async function agree(out: Tensor, expected: HostArray, limit: number, what = ''): Promise<void> {
    expect(out.shape, what).toEqual(expected.shape);
    expect(errorRatio(await out.read(), expected.values), what).toBeLessThan(limit);
    out.dispose();
  }

  // f32 runs the same kernels on tiers subgroups and matrix
  test.each(tier === 'matrix' ? halves : [...families, ...halves])('random shapes agree with float64: $what', async (family) => {
    const { transposeA = false, transposeB = false, dtypes = ['f32', 'f32'], unit, rest, most } = family;
    const length = fc.integer({ min: 0, max: most }).map((n) => n * unit + rest);
    const before = device.pipelines.size;
    await fc.assert(
      fc.asyncProperty(length, length, length, async (rows, columns, K) => {
        const [M, N] = [family.M ?? rows, family.N ?? columns];
        const a = random(device, transposeA ? [K, M] : [M, K], M, dtypes[0]);
        const b = random(device, transposeB ? [N, K] : [K, N], N, dtypes[1]);
        const out = scope(() => matmul(a.device, b.device, { transposeA, transposeB, outDType: 'f32' }));
        await agree(out, matmul64(a.host, b.host, transposeA, transposeB), 1e-6, `${M} x ${N} x ${K}`);
        a.device.dispose();
        b.device.dispose();
      }),
      { seed: 7, numRuns: 12 },
    );
    // one for each tile that the lengths reach, none for the lengths
    expect(device.pipelines.size - before).toBeLessThanOrEqual(3);
  });

  test('K of 0 and 1, one element, and empty rows', async () => {
    for (const [M, K, N] of [
      [12, 0, 12],
      [12, 1, 12],
      [1, 1, 1],
      [1, 0, 4],
      [0, 4, 12],
    ] as const) {
      const a = random(device, [M, K], 1);
      const b = random(device, [K, N], 2);
      await agree(matmul(a.device, b.device), matmul64(a.host, b.host), 1e-6, `${M} ${K} ${N}`);
      a.device.dispose();
      b.device.dispose();
    }
  });

  test('batch axes broadcast, and a shared b becomes rows of one product', async () => {
    const cases: readonly (readonly [readonly number[], readonly number[]])[] = [
      [
        [2, 3, 12, 8],
        [8, 12],
      ],
      [
        [2, 3, 12, 8],
        [3, 8, 12],
      ],
      [
        [2, 1, 12, 8],
        [1, 3, 8, 12],
      ],
      [
        [12, 8],
        [5, 8, 12],
      ],
      [
        [3, 1, 8],
        [8, 12],
      ],
      [
        [2, 3, 2, 1, 12, 8],
        [3, 1, 2, 8, 12],
      ],
    ];
    for (const [left, right] of cases) {
      const a = random(device, left, 1);
      const b = random(device, right, 2);
      await agree(matmul(a.device, b.device), matmul64(a.host, b.host), 1e-6, `${left.join()} ${right.join()}`);
      a.device.dispose();
      b.device.dispose();
    }
  });

  test('heads of a fused projection and a slice of a longer buffer are read in place', async () => {
    const [B, T, H, D] = [2, 20, 3, 8];
    const fused = random(device, [B, T, 3 * H * D], 1);
    const head = (part: number): { view: Tensor; host: HostArray } => {
      const view = fused.device.view({ shape: [B, H, T, D], strides: [T * 3 * H * D, D, 3 * H * D, 1], offset: part * H * D });
      const values = Float64Array.from({ length: B * H * T * D }, (_, i) => {
        const [b, h, t, d] = [Math.floor(i / (H * T * D)), Math.floor(i / (T * D)) % H, Math.floor(i / D) % T, i % D];
        return fused.host.values[(b * T + t) * 3 * H * D + part * H * D + h * D + d] ?? 0;
      });
      return { view, host: { shape: [B, H, T, D], values } };
    };
    const [q, k] = [head(0), head(1)];
    const done = device.trace();
    const out = matmul(q.view, k.view, { transposeB: true });
    expect(done().map(({ kernel }) => kernel)).toEqual(['matmul-tile']);
    await agree(out, matmul64(q.host, k.host, false, true), 1e-6);
    using odd = fused.device.view({ shape: [B, 15, 7], strides: [T * 3 * H * D, 3 * H * D, 1], offset: 3 });
    const values = Float64Array.from(
      { length: B * 15 * 7 },
      (_, i) => fused.host.values[(Math.floor(i / 105) * T + (Math.floor(i / 7) % 15)) * 3 * H * D + 3 + (i % 7)] ?? 0,
    );
    const w = random(device, [7, 12], 2);
    await agree(matmul(odd, w.device), matmul64({ shape: [B, 15, 7], values }, w.host), 1e-6);
    for (const t of [q.view, k.view, w.device, fused.device]) t.dispose();
  });

  test('views that begin anywhere, with rows of any length, are read in place', async () => {
    const [M, K, N, row] = [21, 43, 19, 51];
    const [forA, forB] = [random(device, [row * row], 1, 'f16'), random(device, [row * row], 2, 'f16')];
    for (const [transposeA, transposeB, from] of [
      [false, false, 1],
      [true, true, 14],
    ] as const) {
      const part = (source: typeof forA, shape: readonly [number, number]): { view: Tensor; host: HostArray } => ({
        view: source.device.view({ shape, strides: [row, 1], offset: from }),
        host: {
          shape,
          values: Float64Array.from(
            { length: shape[0] * shape[1] },
            (_, i) => source.host.values[from + Math.floor(i / shape[1]) * row + (i % shape[1])] ?? 0,
          ),
        },
      });
      const a = part(forA, transposeA ? [K, M] : [M, K]);
      const b = part(forB, transposeB ? [N, K] : [K, N]);
      const done = device.trace();
      const out = matmul(a.view, b.view, { transposeA, transposeB, outDType: 'f32' });
      expect(done().map(({ kernel }) => kernel)).toEqual([tier === 'matrix' ? 'matmul-matrix' : 'matmul-tile']);
      await agree(out, matmul64(a.host, b.host, transposeA, transposeB), 1e-6, `from ${from}`);
      a.view.dispose();
      b.view.dispose();
    }
    forA.device.dispose();
    forB.device.dispose();
  });

  test('bias, activation and addend are fused, also behind a split K and with swapped operands', async () => {
    const silu = (x: number): number => x / (1 + Math.exp(-x));
    for (const [M, K, N] of [
      [13, 20, 11],
      [16, 4096, 12],
      [40, 8, 3],
    ] as const) {
      const a = random(device, [M, K], 1);
      const b = random(device, [K, N], 2);
      const bias = random(device, [N], 3);
      const addTo = random(device, [M, N], 4);
      const expected = matmul64(a.host, b.host);
      expected.values.forEach((v, i) => (expected.values[i] = silu(v + (bias.host.values[i % N] ?? 0)) + (addTo.host.values[i] ?? 0)));
      await agree(
        matmul(a.device, b.device, { bias: bias.device, activation: 'silu', addTo: addTo.device }),
        expected,
        2e-6,
        `${M} ${K} ${N}`,
      );
      for (const t of [a, b, bias, addTo]) t.device.dispose();
    }
  });

  test('f32 operands may be rounded to f16 where the device has fragments, and only when asked', async () => {
    const a = random(device, [24, 40], 1);
    const b = random(device, [40, 16], 2);
    const expected = matmul64(a.host, b.host);
    await agree(matmul(a.device, b.device), expected, 1e-6);
    const done = device.trace();
    using out = matmul(a.device, b.device, { precision: 'f16' });
    expect(done()[0]?.kernel).toBe(tier === 'matrix' ? 'matmul-matrix' : 'matmul-tile');
    const ratio = errorRatio(await out.read(), expected.values);
    expect(ratio).toBeLessThan(tier === 'matrix' ? 6e-4 : 1e-6);
    if (tier === 'matrix') expect(ratio).toBeGreaterThan(1e-5);
    a.device.dispose();
    b.device.dispose();
  });

  test('the dtype of the output is that of a, of the addend, or the one asked for', async () => {
    const a = random(device, [12, 16], 1, 'f16');
    const b = random(device, [16, 12], 2, 'f16');
    const expected = matmul64(a.host, b.host);
    using half = matmul(a.device, b.device);
    expect(half.dtype).toBe('f16');
    expect(errorRatio(await half.read(), expected.values)).toBeLessThan(5e-4);
    if (tier !== 'matrix') {
      const addTo = random(device, [12, 12], 3);
      addTo.host.values.forEach((v, i) => (expected.values[i] = (expected.values[i] ?? 0) + v));
      using residual = matmul(a.device, b.device, { addTo: addTo.device });
      expect(residual.dtype).toBe('f32');
      expect(errorRatio(await residual.read(), expected.values)).toBeLessThan(1e-6);
      addTo.device.dispose();
    }
    a.device.dispose();
    b.device.dispose();
  });

  test('what does not fit is refused with what was expected', () => {
    using a = tensor(device, new Float32Array(12), [3, 4]);
    using b = tensor(device, new Float32Array(20), [5, 4]);
    using c = tensor(device, new Float32Array(40), [2, 4, 5]);
    using d = tensor(device, new Float32Array(36), [3, 3, 4]);
    using v = tensor(device, new Float32Array(4));
    using whole = tensor(device, new Int32Array(12), [3, 4]);
    expect(() => matmul(a, b)).toThrow('matmul: a [3, 4] f32 and b [5, 4] f32 are 4 and 5 deep');
    expect(() => matmul(d, c)).toThrow('matmul: shapes [3] and [2] do not broadcast');
    expect(() => matmul(a, v)).toThrow('it must have at least two axes');
    expect(() => matmul(whole, b)).toThrow('it must be f32 or f16');
    expect(() => matmul(a, b, { transposeB: true, bias: v })).toThrow('it must be [5], one element a column of the product');
    expect(() => matmul(a, b, { transposeB: true, addTo: a })).toThrow('it must be [3, 5], the shape of the product');
    expect(() => matmul(a, b, { transposeB: true, activation: 'swish' as 'silu' })).toThrow('activation is "swish"; use one of relu,');
  });
});

test('every register tile agrees with float64 across its edges, whole or split along K', async () => {
  const device = await openDevice({ tier: 'subgroups' }); // more than 16 KiB of workgroup memory
  poisonPool(device);
  const [M, K, N] = [139, 72, 140];
  const a = random(device, [M, K], 1);
  const b = random(device, [K, N], 2);
  const expected = matmul64(a.host, b.host);
  for (const [i, tile] of Object.values(registerTiles).entries()) {
    const splits = i % 2 === 0 ? 1 : 3;
    const workgroups = Math.ceil(M / tile.rows) * Math.ceil(N / tile.columns) * splits;
    const plan: MatmulPlan = { kernel: 'tile', tile, a: 'vec4', b: 'vec4', splits, splitDepth: splits === 1 ? 80 : 32, workgroups };
    const out = empty(device, [M, N], 'f32');
    runProduct({ a: a.device, b: b.device, out, plan });
    expect(errorRatio(await out.read(), expected.values), JSON.stringify(plan)).toBeLessThan(1e-6);
    out.dispose();
  }
  a.device.dispose();
  b.device.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('every fragment tile agrees with float64 across its edges, in either layout', async () => {
  const device = await openDevice({ tier: 'matrix' });
  poisonPool(device);
  const [M, N] = [72, 80];
  // of the others only the numbers differ; each takes a software driver seconds to compile
  for (const [i, tile] of [fragmentTiles.thin, fragmentTiles.flat, fragmentTiles.deep].entries()) {
    const transposed = i === 1;
    const K = i === 0 ? 192 : 168; // whole tiles, an odd number of them, and a last one that K ends within
    const a = random(device, transposed ? [K, M] : [M, K], 1, 'f16');
    const b = random(device, transposed ? [N, K] : [K, N], 2, 'f16');
    const out = empty(device, [M, N], 'f32');
    const workgroups = Math.ceil(M / tile.rows) * Math.ceil(N / tile.columns);
    const plan: MatmulPlan = {
      kernel: 'matrix',
      tile,
      a: 'half8',
      b: 'half8',
      splits: 1,
      splitDepth: 192,
      workgroups,
    };
    runProduct({ a: a.device, b: b.device, out, transposeA: transposed, transposeB: transposed, plan });
    const expected = matmul64(a.host, b.host, transposed, transposed);
    expect(errorRatio(await out.read(), expected.values), JSON.stringify(plan)).toBeLessThan(1e-6);
    for (const t of [a.device, b.device, out]) t.dispose();
  }
  expect(device.memory().tensors).toBe(0);
  await device.close();
});
