import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { type Device, openDevice, rope, ropeFrequencies, type RopeOptions, scope, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { errorRatio, type HostArray, poisonPool, random } from './matmul-reference.js';

/** Su et al. 2021, eq. 34 in float64; `direction` -1 turns back. */
function rope64(x: HostArray, positions: (batch: number, token: number) => number, options: RopeOptions = {}, direction = 1): Float64Array {
  const [batch = 1, tokens = 1, heads = 1, headDim = 1] = x.shape;
  const { rotaryDim = headDim, interleaved = false } = options;
  const { radians, magnitude } = ropeFrequencies(rotaryDim, options.base ?? 10_000, options.scaling);
  const out = Float64Array.from(x.values);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < tokens; t++) {
      for (let h = 0; h < heads; h++) {
        for (let i = 0; i < rotaryDim / 2; i++) {
          const angle = positions(b, t) * (radians[i] ?? 0) * direction;
          const row = ((b * tokens + t) * heads + h) * headDim;
          const [low, high] = interleaved ? [row + 2 * i, row + 2 * i + 1] : [row + i, row + i + rotaryDim / 2];
          const [p, q] = [x.values[low] ?? 0, x.values[high] ?? 0];
          out[low] = magnitude * (p * Math.cos(angle) - q * Math.sin(angle));
          out[high] = magnitude * (q * Math.cos(angle) + p * Math.sin(angle));
        }
      }
    }
  }
  return out;
}

describe.each(['baseline', 'subgroups'] as const)('rope on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
    poisonPool(device, 1 << 14);
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('random shapes, pairings and partial rotations agree with float64, forward and back', async () => {
    const small = fc.integer({ min: 1, max: 5 });
    await fc.assert(
      fc.asyncProperty(
        small,
        small,
        small,
        fc.integer({ min: 1, max: 18 }),
        fc.integer({ min: 0, max: 9 }),
        fc.boolean(),
        fc.boolean(),
        async (batch, tokens, heads, pairs, rest, interleaved, half) => {
          const x = random(device, [batch, tokens, heads, 2 * pairs + rest], 3, half ? 'f16' : 'f32');
          const d = random(device, x.host.shape, 4, half ? 'f16' : 'f32');
          const options = { interleaved, rotaryDim: 2 * pairs, offset: 7 };
          const { outputs, grads } = vjp(() => rope(x.device, options), [x.device], [d.device]);
          const at = (_: number, t: number): number => t + 7;
          const limit = half ? 5e-4 : 1e-6;
          expect(errorRatio((await outputs[0]?.read()) ?? [], rope64(x.host, at, options))).toBeLessThan(limit);
          expect(errorRatio((await grads[0]?.read()) ?? [], rope64(d.host, at, options, -1))).toBeLessThan(limit);
          for (const t of [...outputs, ...grads, x.device, d.device]) t.dispose();
        },
      ),
      { seed: 5, numRuns: 25 },
    );
  });

  test('angles are right to 1e-6 radians at positions up to a million and beyond, of either sign', async () => {
    const list = [0, 1, -1, 4097, 65_536, 999_999, 1_048_576, -1_000_003, 100_000_007, 2 ** 31 - 1];
    using positions = tensor(device, Int32Array.from(list));
    const x = random(device, [1, list.length, 1, 64], 8);
    using out = rope(x.device, { positions, base: 500_000 });
    const expected = rope64(x.host, (_, t) => list[t] ?? 0, { base: 500_000 });
    const got = await out.read();
    const worst = Math.max(...expected.map((e, i) => Math.abs(e - (got[i] ?? 0))));
    expect(worst).toBeLessThan(4e-6);
    x.device.dispose();
  });

  test('positions of a batch turn each sequence by its own, and queries and keys of shifted positions give the same products', async () => {
    const x = random(device, [2, 3, 2, 16], 9);
    using positions = tensor(device, Uint32Array.from([5, 0, 900, 31, 31, 2]), [2, 3]);
    using out = rope(x.device, { positions, offset: -1 });
    const at = [5, 0, 900, 31, 31, 2];
    expect(
      errorRatio(
        await out.read(),
        rope64(x.host, (b, t) => (at[b * 3 + t] ?? 0) - 1),
      ),
    ).toBeLessThan(1e-6);
    using near = rope(x.device, { offset: 3 });
    using far = rope(x.device, { offset: 1_000_003 });
    const dots = (v: ArrayLike<number>): number[] =>
      [0, 1].map((h) => Array.from({ length: 16 }, (_, i) => (v[h * 16 + i] ?? 0) * (v[64 + h * 16 + i] ?? 0)).reduce((s, p) => s + p, 0));
    expect(errorRatio(dots(await far.read()), dots(await near.read()))).toBeLessThan(1e-5);
    x.device.dispose();
  });

  test('a slice of a fused projection is read in place', async () => {
    const fused = random(device, [1, 4, 6, 8], 10);
    using keys = fused.device.view({ shape: [1, 4, 2, 8], offset: 2 * 8 });
    using out = rope(keys);
    const values = Float64Array.from({ length: 64 }, (_, i) => fused.host.values[Math.floor(i / 16) * 48 + 16 + (i % 16)] ?? 0);
    expect(
      errorRatio(
        await out.read(),
        rope64({ shape: [1, 4, 2, 8], values }, (_, t) => t),
      ),
    ).toBeLessThan(1e-6);
    fused.device.dispose();
  });

  test('a long sequence shares angles among heads, and more lengths make no more pipelines', async () => {
    const before = device.pipelines.size;
    for (const tokens of [1100, 1, 77, 1024]) {
      const x = random(device, [1, tokens, 5, 8], tokens);
      using out = scope(() => rope(x.device));
      expect(
        errorRatio(
          await out.read(),
          rope64(x.host, (_, t) => t),
        ),
      ).toBeLessThan(1e-6);
      x.device.dispose();
    }
    expect(device.pipelines.size - before).toBeLessThanOrEqual(1);
  });

  test('what does not fit is refused with what was expected', () => {
    using x = tensor(device, new Float32Array(24), [1, 3, 1, 8]);
    using flat = tensor(device, new Float32Array(24), [3, 8]);
    using wrong = tensor(device, new Int32Array(4));
    expect(() => rope(flat)).toThrow('rope: x is [3, 8] f32; it must be [batch, tokens, heads, headDim]');
    expect(() => rope(x, { rotaryDim: 3 })).toThrow('it must be even, from 2 to the head dimension 8');
    expect(() => rope(x, { positions: wrong })).toThrow('use [3] or [1, 3]');
    expect(() => rope(x, { base: 1 })).toThrow('base is 1');
    expect(() => rope(x, { offset: 0.5 })).toThrow('offset is 0.5');
    expect(() => rope(x, { scaling: { type: 'linear', factor: 0 } })).toThrow('scaling.factor is 0');
  });
});

test('scaled frequencies: ends are kept or divided, and known values come out', () => {
  const plain = ropeFrequencies(128, 500_000).radians;
  const llama = ropeFrequencies(128, 500_000, { type: 'llama3', factor: 8, originalTokens: 8192 }).radians;
  expect(llama[0]).toBe(1);
  expect(llama[63]).toBeCloseTo((plain[63] ?? 0) / 8, 12);
  const inside = 8192 / ((2 * Math.PI) / (plain[30] ?? 1));
  expect(inside > 1 && inside < 4).toBe(true);
  const smooth = (inside - 1) / 3;
  expect(llama[30]).toBeCloseTo(((plain[30] ?? 0) / 8) * (1 - smooth) + (plain[30] ?? 0) * smooth, 12);
  const yarn = ropeFrequencies(64, 10_000, { type: 'yarn', factor: 4, originalTokens: 2048 });
  expect(yarn.magnitude).toBeCloseTo(1.138629, 6);
  expect(yarn.radians[0]).toBe(1);
  expect(yarn.radians[31]).toBeCloseTo(10_000 ** (-62 / 64) / 4, 12);
  const ntk = ropeFrequencies(64, 10_000, { type: 'ntk', factor: 4 }).radians;
  expect(ntk[31]).toBeCloseTo(10_000 ** (-62 / 64) / 4, 12);
  expect(ropeFrequencies(64, 10_000, { type: 'linear', factor: 4 }).radians[0]).toBe(0.25);
});
