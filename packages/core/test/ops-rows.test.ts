import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, type Tensor, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { crossEntropy } from '../src/ops/cross-entropy.js';
import { klDivergence, mse } from '../src/ops/losses.js';
import { layerNorm, rmsNorm } from '../src/ops/norm.js';
import { logSoftmax, softmax } from '../src/ops/softmax.js';

const sumOf = (values: ArrayLike<number>): number => Array.from(values).reduce((a, b) => a + b, 0);
const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => sumOf(Array.from(a, (x, i) => x * (b[i] ?? 0)));

/** The loss <f(inputs), cotangent> in float64, and its slope by central differences. */
function slope(
  f: (inputs: Float64Array[]) => Float64Array,
  inputs: Float64Array[],
  cotangent: ArrayLike<number>,
  which: number,
  at: number,
): number {
  const moved = (h: number): number => dot(f(inputs.map((x, i) => (i === which ? x.map((v, j) => (j === at ? v + h : v)) : x))), cotangent);
  return (moved(1e-5) - moved(-1e-5)) / 2e-5;
}

const logSoftmaxRow = (x: ArrayLike<number>): number[] => {
  const row = Array.from(x);
  const most = Math.max(...row);
  const lse = most + Math.log(sumOf(row.map((v) => Math.exp(v - most))));
  return row.map((v) => v - lse);
};

const rowsOf = (x: Float64Array, n: number, f: (row: Float64Array) => number[]): Float64Array =>
  Float64Array.from({ length: x.length / n }, (_, r) => r).length === 0
    ? new Float64Array()
    : Float64Array.from(Array.from({ length: x.length / n }, (_, r) => f(x.subarray(r * n, (r + 1) * n))).flat());

function normRow(centre: boolean, epsilon: number, weight: Float64Array, bias?: Float64Array): (row: Float64Array) => number[] {
  return (row) => {
    const mean = centre ? sumOf(row) / row.length : 0;
    const variance = sumOf(Array.from(row, (v) => (v - mean) ** 2)) / row.length;
    return Array.from(row, (v, j) => ((v - mean) / Math.sqrt(variance + epsilon)) * (weight[j] ?? 0) + (bias?.[j] ?? 0));
  };
}

describe.each(['baseline', 'subgroups'] as const)('rows on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  async function check(
    f: (inputs: Tensor[]) => Tensor,
    twin: (inputs: Float64Array[]) => Float64Array,
    values: Float32Array[],
    shapes: number[][],
    dtype: 'f32' | 'f16',
    bound: number,
  ): Promise<void> {
    const inputs = values.map((v, i) => tensor(device, v, shapes[i] ?? [], { dtype }));
    const exact = await Promise.all(inputs.map(async (t) => Float64Array.from(await t.read())));
    const expected = twin(exact);
    const G = new RandomStream(77).normal(expected.length);
    const probe = f(inputs);
    const cotangent = tensor(device, G, probe.shape, { dtype: probe.dtype });
    probe.dispose();
    const g = await cotangent.read();
    const { outputs, grads } = vjp(() => f(inputs), inputs, [cotangent]);
    const got = await (outputs[0] as Tensor).read();
    got.forEach((v, i) => expect(Math.abs(v - (expected[i] ?? 0))).toBeLessThan(bound * (1 + Math.abs(expected[i] ?? 0))));
    for (const [which, x] of exact.entries()) {
      const gradient = await (grads[which] as Tensor).read();
      for (const at of new Set([0, x.length >> 1, x.length - 1])) {
        const s = slope(twin, exact, g, which, at);
        expect(Math.abs((gradient[at] ?? 0) - s)).toBeLessThan(5 * bound * (1 + Math.abs(s)));
      }
    }
    for (const t of [...inputs, cotangent, ...outputs, ...grads]) t.dispose();
  }

  const shape = fc.record({
    rows: fc.integer({ min: 1, max: 5 }),
    n: fc.constantFrom(1, 3, 4, 17, 64, 100, 256, 513),
    seed: fc.nat(),
    dtype: fc.constantFrom('f32' as const, 'f16' as const),
  });

  test('softmax and its logarithm are what they say, with gradients', async () => {
    await fc.assert(
      fc.asyncProperty(shape, fc.boolean(), async ({ rows, n, seed, dtype }, log) => {
        const x = new RandomStream(seed).normal(rows * n).map((v) => 3 * v);
        const twin = ([v]: Float64Array[]): Float64Array =>
          rowsOf(v as Float64Array, n, (row) => (log ? logSoftmaxRow(row) : logSoftmaxRow(row).map(Math.exp)));
        await check(([t]) => (log ? logSoftmax : softmax)(t as Tensor), twin, [x], [[rows, n]], dtype, dtype === 'f32' ? 2e-5 : 4e-3);
      }),
      { numRuns: 10, seed: 1 },
    );
    using hidden = tensor(device, new Float32Array(8).fill(-1e30), [2, 4]);
    using p = softmax(hidden);
    expect([...(await p.read())]).toEqual(new Array(8).fill(0));
  });

  test('norms scale rows to one, with gradients of rows, weights and biases', async () => {
    await fc.assert(
      fc.asyncProperty(shape, fc.boolean(), async ({ rows, n, seed, dtype }, centre) => {
        if (centre && n < 3) return;
        const random = new RandomStream(seed);
        const x = random.normal(rows * n).map((v) => v + (centre ? 10 : 0));
        const [weight, bias] = [random.normal(n), random.normal(n)];
        const bound = dtype === 'f32' ? 1e-4 : 2e-2;
        if (centre) {
          await check(
            ([t, w, b]) => layerNorm(t as Tensor, w, b),
            ([v, w, b]) => rowsOf(v as Float64Array, n, normRow(true, 1e-5, w as Float64Array, b)),
            [x, weight, bias],
            [[rows, n], [n], [n]],
            dtype,
            bound,
          );
        } else {
          await check(
            ([t, w]) => rmsNorm(t as Tensor, w),
            ([v, w]) => rowsOf(v as Float64Array, n, normRow(false, 1e-6, w as Float64Array)),
            [x, weight],
            [[rows, n], [n]],
            dtype,
            bound,
          );
        }
      }),
      { numRuns: 12, seed: 2 },
    );
  });

  test('weights of a norm collect their gradient over many rows', async () => {
    const [rows, n] = [2600, 20];
    const random = new RandomStream(8);
    await check(
      ([t, w]) => rmsNorm(t as Tensor, w),
      ([v, w]) => rowsOf(v as Float64Array, n, normRow(false, 1e-6, w as Float64Array)),
      [random.normal(rows * n), random.normal(n)],
      [[rows, n], [n]],
      'f32',
      1e-4,
    );
  });

  test('crossEntropy is the mean, sum or row of minus log p, and ignored rows count for nothing', async () => {
    for (const [rows, n] of [
      [1, 3],
      [7, 256],
      [300, 12],
    ] as const) {
      for (const reduction of ['mean', 'sum', 'none'] as const) {
        const random = new RandomStream(n);
        const x = random.normal(rows * n);
        const classes = random.integers(rows, n);
        if (rows > 1) classes[1] = 999_999;
        using targets = tensor(device, classes);
        const counted = classes.filter((c) => c !== 999_999).length;
        const twin = ([v]: Float64Array[]): Float64Array => {
          const losses = Array.from(classes, (c, r) =>
            c === 999_999 ? 0 : -(logSoftmaxRow((v as Float64Array).subarray(r * n, (r + 1) * n))[c] ?? 0),
          );
          return Float64Array.from(reduction === 'none' ? losses : [sumOf(losses) / (reduction === 'mean' ? counted : 1)]);
        };
        await check(([t]) => crossEntropy(t as Tensor, targets, { ignoreIndex: 999_999, reduction }), twin, [x], [[rows, n]], 'f32', 3e-5);
      }
    }
  });

  test('mse and klDivergence with gradients', async () => {
    const random = new RandomStream(6);
    const [a, b] = [random.normal(24), random.normal(24)];
    await check(
      ([x, y]) => mse(x as Tensor, y as Tensor),
      ([x, y]) => Float64Array.of(sumOf(Array.from(x as Float64Array, (v, i) => (v - (y?.[i] ?? 0)) ** 2)) / 24),
      [a, b],
      [
        [4, 6],
        [4, 6],
      ],
      'f32',
      1e-5,
    );
    await check(
      ([x, y]) => klDivergence(x as Tensor, y as Tensor),
      ([x, y]) => Float64Array.of(sumOf(Array.from(x as Float64Array, (v, i) => Math.exp(v) * (v - (y?.[i] ?? 0)))) / 4),
      [a, b],
      [
        [4, 6],
        [4, 6],
      ],
      'f32',
      1e-5,
    );
  });

  test('shapes and dtypes that do not fit are refused', () => {
    using x = tensor(device, [1, 2, 3, 4], [2, 2]);
    using w = tensor(device, [1, 2, 3]);
    using ids = tensor(device, Uint32Array.of(0));
    expect(() => rmsNorm(x, w)).toThrow(/weight is \[3\] f32; it must be \[2\]/);
    expect(() => crossEntropy(x, ids)).toThrow(/one class a row/);
    expect(() => softmax(ids)).toThrow(/f32 or f16/);
  });
});
