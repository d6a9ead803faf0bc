import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { type DType, type Shape, tensor, type Tensor, zeros } from '../src/index.js';
import { contiguousStrides, sizeOf, vjp } from '../src/internal.js';
import { cumsum, type CumsumOptions, planScan } from '../src/ops/cumsum.js';
import { argmax, argmin, l2norm, logsumexp, max, mean, min, sum } from '../src/ops/reduce.js';
import { planColumns, planRows } from '../src/ops/reduce-kernels.js';
import { checkGradients, devices, expectClose, layoutKinds, place, randomValues, readOf, testedTiers, type Values } from './ops-support.js';

const open = devices();

/** The elements of each group that a reduction joins, in row-major order, and the shape of the groups. */
function groups(x: Values, axes: readonly number[], keepDims = false): { shape: number[]; lists: number[][] } {
  const kept = x.shape.map((_, axis) => axis).filter((axis) => !axes.includes(axis));
  const keptShape = kept.map((axis) => x.shape[axis]!);
  const strides = contiguousStrides(x.shape);
  const keptStrides = contiguousStrides(keptShape);
  const lists = Array.from({ length: sizeOf(keptShape) }, (): number[] => []);
  x.values.forEach((value, flat) => {
    const to = kept.reduce((s, axis, k) => s + (Math.floor(flat / strides[axis]!) % x.shape[axis]!) * keptStrides[k]!, 0);
    lists[to]!.push(value);
  });
  return { shape: keepDims ? x.shape.map((n, axis) => (axes.includes(axis) ? 1 : n)) : keptShape, lists };
}

const total = (list: readonly number[]): number => list.reduce((s, v) => s + v, 0);
const lse = (list: readonly number[]): number => {
  const m = Math.max(...list);
  return m + Math.log(total(list.map((v) => Math.exp(v - m))));
};
const reductions: [string, (x: Tensor, axes?: number[], o?: { keepDims?: boolean }) => Tensor, (list: readonly number[]) => number][] = [
  ['sum', sum, total],
  ['mean', mean, (l) => total(l) / l.length],
  ['max', max, (l) => Math.max(...l)],
  ['min', min, (l) => Math.min(...l)],
  ['logsumexp', logsumexp, lse],
  ['l2norm', l2norm, (l) => Math.hypot(...l)],
];

const shapes = fc.oneof(
  fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1, maxLength: 5 }),
  fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 300 })),
  fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 90 }), fc.integer({ min: 1, max: 9 })),
) as fc.Arbitrary<number[]>;

test.each(testedTiers)('reductions over any axes of any layout equal float64 on %s', async (tier) => {
  await fc.assert(
    fc.asyncProperty(
      shapes,
      fc.constantFrom<DType>('f32', 'f16'),
      fc.constantFrom(...layoutKinds),
      fc.nat(1e6),
      fc.boolean(),
      async (shape, dtype, layout, seed, keepDims) => {
        const random = new RandomStream(seed);
        const values = randomValues(random, shape, dtype);
        const axes = [...random.permutation(shape.length)].slice(0, 1 + (seed % shape.length));
        using x = place(open[tier], values, dtype, layout);
        const [name, op, f] = reductions[tier === 'baseline' ? 2 * (seed % 3) : (seed % 2) * 4]!;
        const expected = groups(values, axes, keepDims);
        const got = await readOf(() => op(x, axes, { keepDims }));
        expect(got.shape).toEqual(expected.shape);
        const out = name === 'logsumexp' || name === 'l2norm' ? 'f32' : dtype;
        expect(got.dtype).toBe(out);
        const tol = out === 'f16' ? 2e-3 : 2e-5;
        expectClose(
          got.values,
          expected.lists.map(f),
          tol,
          tol * Math.sqrt(expected.lists[0]!.length),
          `${name} [${shape}] over [${axes}] ${layout}`,
        );
      },
    ),
    { numRuns: 24, seed: 5 },
  );
});

test.each(testedTiers)('long rows and columns are reduced in two stages, twice the same on %s', async (tier) => {
  const device = open[tier];
  for (const shape of [[2, 20000], [20001], [3001, 4]] as Shape[]) {
    const values = randomValues(new RandomStream(1), shape, 'f32');
    using x = place(device, values, 'f32', 'plain');
    const axis = shape.length === 1 ? 0 : 1;
    const axes = shape[1] === 4 ? [0] : [axis];
    const lists = groups(values, axes).lists;
    for (const [, op, f] of [reductions[0]!, reductions[4]!]) {
      const first = await readOf(() => op(x, axes));
      expectClose(first.values, lists.map(f), 1e-5, 1e-3);
      expect(await readOf(() => op(x, axes))).toEqual(first);
    }
    const best = (await readOf(() => argmax(x, axes[0]))).values;
    expect(best).toEqual(lists.map((l) => l.indexOf(Math.max(...l))));
  }
  expect(planRows(2, 5000, 4)).toEqual({ width: 4, lanes: 256, chunk: 1000, chunks: 5 });
  expect(planRows(4096, 1024, 4).chunks).toBe(1);
  expect(planColumns(1, 4096, 256, 4)).toEqual({ width: 4, lanes: 32, chunk: 64, chunks: 64 });
});

test('argmax and argmin take the lowest index on ties, along axes and over all', async () => {
  for (const tier of testedTiers) {
    const random = new RandomStream(2);
    for (const dtype of tier === 'baseline' ? (['f32', 'u32'] as const) : (['f32'] as const)) {
      const values = { shape: [5, 7, 3], values: Array.from(random.integers(105, 5)) };
      using x = place(open[tier], values, dtype, 'strided');
      for (const axis of [0, 1, -1]) {
        const lists = groups(values, [(axis + 3) % 3]).lists;
        expect((await readOf(() => argmax(x, axis))).values).toEqual(lists.map((l) => l.indexOf(Math.max(...l))));
        expect((await readOf(() => argmin(x, axis))).values).toEqual(lists.map((l) => l.indexOf(Math.min(...l))));
      }
      expect(await readOf(() => argmax(x))).toEqual({
        shape: [],
        dtype: 'u32',
        values: [values.values.indexOf(Math.max(...values.values))],
      });
    }
  }
});

test('integers are summed exactly', async () => {
  using x = tensor(open.subgroups, Uint32Array.of(4294967295, 5, 16777217, 1), [2, 2]);
  expect(await readOf(() => sum(x))).toEqual({ shape: [], dtype: 'u32', values: [16777222] });
  expect((await readOf(() => max(x, 0))).values).toEqual([4294967295, 5]);
  using bytes = tensor(open.baseline, new Uint8Array(1000).fill(255));
  expect((await readOf(() => sum(bytes))).values).toEqual([255000]);
});

test('gradients of reductions equal finite differences', async () => {
  const shape = [2, 3, 5];
  for (const tier of testedTiers) {
    for (const [name, op, f] of reductions) {
      for (const axes of tier === 'baseline' ? [[2], [0], [0, 2]] : [[0, 1, 2]]) {
        const values = randomValues(new RandomStream(3, name), shape);
        const twin = ([x]: Values[]): Values => {
          const g = groups(x!, axes);
          return { shape: g.shape, values: g.lists.map(f) };
        };
        await checkGradients(open[tier], (x) => op(x, axes), twin, [values], {
          what: `${name} over [${axes}]`,
          layouts: ['strided'],
          rtol: 1e-3,
        });
      }
    }
  }
});

test('the gradient of a maximum goes to the first of equals, in the dtype of x', async () => {
  using x = tensor(open.baseline, [1, 3, 3, 2, 2, 2], [2, 3], { dtype: 'f16' });
  using g = tensor(open.baseline, [10, 20], [2], { dtype: 'f16' });
  const { outputs, grads } = vjp(() => max(x, 1), [x], [g]);
  expect(grads[0]!.dtype).toBe('f16');
  expect(Array.from(await grads[0]!.read())).toEqual([0, 10, 0, 20, 0, 0]);
  for (const t of [...outputs, ...grads]) t.dispose();
});

function runningSums(x: Values, axis: number, { reverse = false, exclusive = false }: CumsumOptions): Values {
  const strides = contiguousStrides(x.shape);
  const n = x.shape[axis]!;
  const out = new Array<number>(x.values.length).fill(0);
  x.values.forEach((_, flat) => {
    const own = Math.floor(flat / strides[axis]!) % n;
    if (own !== 0) return;
    let running = 0;
    for (let j = 0; j < n; j++) {
      const at = flat + (reverse ? n - 1 - j : j) * strides[axis]!;
      if (exclusive) out[at] = running;
      running += x.values[at]!;
      if (!exclusive) out[at] = running;
    }
  });
  return { shape: x.shape, values: out };
}

test.each(testedTiers)('running sums along any axis, backwards and exclusive, equal float64 on %s', async (tier) => {
  await fc.assert(
    fc.asyncProperty(
      shapes,
      fc.constantFrom<DType>('f32', 'f16', 'u32'),
      fc.constantFrom(...layoutKinds),
      fc.boolean(),
      fc.boolean(),
      fc.nat(1e6),
      async (shape, dtype, layout, reverse, exclusive, seed) => {
        const values = randomValues(new RandomStream(seed), shape, dtype, dtype === 'u32' ? 0 : -1, dtype === 'u32' ? 1000 : 1);
        using x = place(open[tier], values, dtype, layout);
        const axis = seed % shape.length;
        const got = await readOf(() => cumsum(x, axis, { reverse, exclusive }));
        const tol = dtype === 'u32' ? 0 : dtype === 'f16' ? 4e-3 : 2e-5;
        expect(got.dtype).toBe(dtype);
        expectClose(
          got.values,
          runningSums(values, axis, { reverse, exclusive }).values,
          tol,
          tol * 4,
          `[${shape}] axis ${axis} ${layout} ${reverse} ${exclusive}`,
        );
      },
    ),
    { numRuns: 20, seed: 6 },
  );
});

test.each(testedTiers)('long axes are cut and joined again on %s', async (tier) => {
  for (const [shape, axis] of [
    [[2, 10003], 1],
    [[12000], 0],
    [[700, 3], 0],
    [[2, 300, 2], 1],
  ] as [Shape, number][]) {
    const values = randomValues(new RandomStream(7), shape, 'u32', 0, 1e5);
    using x = place(open[tier], values, 'u32', 'plain');
    for (const options of [{}, { reverse: true, exclusive: true }]) {
      expect((await readOf(() => cumsum(x, axis, options))).values).toEqual(runningSums(values, axis, options).values);
    }
  }
  expect(planScan(10003, 2, 1024, 4096)).toEqual({ chunk: 5004, chunks: 2 });
  expect(planScan(4000, 2, 1024, 4096)).toEqual({ chunk: 4000, chunks: 1 });
});

test('the gradient of a running sum runs the other way', async () => {
  for (const options of [{}, { exclusive: true }, { reverse: true }]) {
    for (const axis of [0, 1]) {
      const values = randomValues(new RandomStream(8), [5, 6]);
      await checkGradients(
        open.baseline,
        (x) => cumsum(x, axis, options),
        ([x]) => runningSums(x!, axis, options),
        [values],
      );
    }
  }
});

test('nothing to reduce: sums are 0, extremes say so', async () => {
  using x = zeros(open.baseline, [2, 0]);
  expect((await readOf(() => sum(x, 1))).values).toEqual([0, 0]);
  expect((await readOf(() => sum(x, 0))).values).toEqual([]);
  expect((await readOf(() => logsumexp(x, 1))).values).toEqual([Math.fround(-1e30), Math.fround(-1e30)]);
  expect((await readOf(() => cumsum(x))).shape).toEqual([2, 0]);
  expect(() => max(x)).toThrow('max: [2, 0] f32 has no elements along axes [0, 1]; give at least one');
  expect(() => mean(x, 1)).toThrow('mean: [2, 0] f32 has no elements');
  expect(() => sum(x, 2)).toThrow('sum: [2, 0] f32 has no axis 2; use an integer from -2 to 1');
  using i = zeros(open.baseline, [2], { dtype: 'u32' });
  expect(() => mean(i)).toThrow('mean: x is [2] u32; it must be f32 or f16, convert it with cast()');
});

test('scalars reduce to themselves', async () => {
  using x = tensor(open.baseline, [3], []);
  for (const [name, op] of reductions) expect((await readOf(() => op(x))).values, name).toEqual([3]);
});

test('lengths do not make kernels', async () => {
  const device = open.subgroups;
  const random = new RandomStream(9);
  const call = async (): Promise<void> => {
    const [m = 1, n = 1] = [...random.integers(2, 300)].map((k) => k + 1);
    using x = zeros(device, [m, n]);
    for (const op of [(): Tensor => sum(x, 0), (): Tensor => sum(x, 1), (): Tensor => cumsum(x, 0), (): Tensor => cumsum(x, 1)])
      op().dispose();
  };
  for (let i = 0; i < 60; i++) await call();
  const settled = device.pipelines.size;
  for (let i = 0; i < 60; i++) await call();
  expect(device.pipelines.size - settled).toBeLessThanOrEqual(2);
});
