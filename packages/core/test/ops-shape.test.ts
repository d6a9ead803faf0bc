import fc from 'fast-check';
import { expect, test } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { planStridedCopy } from '../src/tensor/copy.js';
import { planPad } from '../src/ops/pad-kernel.js';
import { type DType, scope, type Shape, tensor, type Tensor, zeros } from '../src/index.js';
import { contiguousStrides, sizeOf, vjp } from '../src/internal.js';
import { mul } from '../src/ops/arithmetic.js';
import { concat, pad, stack } from '../src/ops/join.js';
import { viewStrides } from '../src/ops/layout.js';
import { broadcastTo, flip, permute, reshape, squeeze, transpose, unsqueeze } from '../src/ops/shape.js';
import { slice, split } from '../src/ops/slice.js';
import { broadcast, checkGradients, devices, layoutKinds, place, randomValues, readOf, testedTiers, type Values } from './ops-support.js';

const open = devices();
const dtypes: DType[] = ['f32', 'f16', 'u32', 'u8', 'i32'];

const coordinates = (flat: number, shape: Shape): number[] => {
  const strides = contiguousStrides(shape);
  return shape.map((n, axis) => Math.floor(flat / strides[axis]!) % n);
};
const at = (x: Values, index: readonly number[]): number =>
  x.values[index.reduce((sum, i, axis) => sum + i * contiguousStrides(x.shape)[axis]!, 0)]!;
const build = (shape: Shape, f: (index: number[]) => number): Values => ({
  shape,
  values: Array.from({ length: sizeOf(shape) }, (_, flat) => f(coordinates(flat, shape))),
});

const permuteValues = (x: Values, order: readonly number[]): Values =>
  build(
    order.map((a) => x.shape[a]!),
    (index) =>
      at(
        x,
        x.shape.map((_, axis) => index[order.indexOf(axis)]!),
      ),
  );
const flipValues = (x: Values, axes: readonly number[]): Values =>
  build(x.shape, (index) =>
    at(
      x,
      index.map((i, axis) => (axes.includes(axis) ? x.shape[axis]! - 1 - i : i)),
    ),
  );
const sliceValues = (x: Values, cuts: readonly [number, number, number][]): Values =>
  build(
    cuts.map(([a, b, s]) => Math.ceil((b - a) / s)),
    (index) =>
      at(
        x,
        index.map((i, axis) => cuts[axis]![0] + i * cuts[axis]![2]),
      ),
  );

const shapes = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 4 });

test.each(testedTiers)('permute, flip, slice and pad of views equal plain loops on %s', async (tier) => {
  const device = open[tier];
  await fc.assert(
    fc.asyncProperty(
      shapes,
      fc.constantFrom(...dtypes),
      fc.constantFrom(...layoutKinds),
      fc.nat(1e6),
      async (shape, dtype, layout, seed) => {
        const random = new RandomStream(seed);
        const values = randomValues(random, shape, dtype, 0, 200);
        using x = place(device, values, dtype, layout);
        const order = [...random.permutation(shape.length)];
        expect(await readOf(() => permute(x, order))).toEqual({ dtype, ...permuteValues(values, order) });
        const axes = order.slice(0, 1 + (seed % shape.length));
        expect(await readOf(() => flip(x, axes))).toEqual({ dtype, ...flipValues(values, axes) });
        const cuts = shape.map((n): [number, number, number] => {
          const [a = 0, b = 0, s = 0] = random.integers(3, n + 1);
          return [Math.min(a, b), Math.max(a, b), 1 + (s % 3)];
        });
        const cut = sliceValues(values, cuts);
        expect(await readOf(() => slice(x, cuts))).toEqual({ dtype, ...cut });
        const widths = shape.map((): [number, number] => [...random.integers(2, 3)] as [number, number]);
        const padded = build(
          shape.map((n, a) => n + widths[a]![0] + widths[a]![1]),
          (index) => {
            const inner = index.map((i, a) => i - widths[a]![0]);
            return inner.every((i, a) => i >= 0 && i < shape[a]!) ? at(values, inner) : 3;
          },
        );
        expect(await readOf(() => pad(x, widths, { value: 3 }))).toEqual({ dtype, ...padded });
      },
    ),
    { numRuns: 25, seed: 4 },
  );
});

test.each(testedTiers)('large transpositions go through tiles on %s', async (tier) => {
  for (const [shape, order, dtype] of [
    [[37, 70], [1, 0], 'f32'],
    [[2, 33, 5, 40], [3, 2, 0, 1], 'f16'],
    [[3, 64, 2, 9], [0, 2, 3, 1], 'u32'],
  ] as [number[], number[], DType][]) {
    const values = randomValues(new RandomStream(1), shape, dtype, 0, 100);
    using x = place(open[tier], values, dtype, 'strided');
    const stop = open[tier].trace();
    expect(await readOf(() => permute(x, order))).toEqual({ dtype, ...permuteValues(values, order) });
    expect(stop().map(({ kernel }) => kernel)).toContain('transpose-tiles');
  }
});

test('reshape keeps order, finds -1 and is a view where strides allow', async () => {
  const device = open.baseline;
  const values = randomValues(new RandomStream(2), [2, 3, 4]);
  for (const layout of layoutKinds) {
    using x = place(device, values, 'f32', layout);
    for (const [given, want] of [
      [
        [6, -1],
        [6, 4],
      ],
      [[-1], [24]],
      [
        [2, 3, 2, 2],
        [2, 3, 2, 2],
      ],
      [
        [4, 6],
        [4, 6],
      ],
      [
        [1, 24, 1],
        [1, 24, 1],
      ],
    ] as const) {
      expect(await readOf(() => reshape(x, given))).toEqual({ dtype: 'f32', shape: want, values: values.values });
    }
  }
  using x = place(device, values, 'f32', 'strided');
  using outer = reshape(x, [6, 4]);
  expect(outer.storage).toBe(x.storage);
  using copied = scope(() => reshape(x, [24]));
  expect(copied.storage).not.toBe(x.storage);
  expect(viewStrides([2, 3, 4], [24, 8, 1], [6, 2, 2])).toEqual([8, 2, 1]);
  expect(viewStrides([4, 6], [12, 1], [24])).toBeUndefined();
  expect(viewStrides([3, 1, 4], [0, 4, 1], [3, 2, 2])).toEqual([0, 2, 1]);
});

test('views share the buffer: slices, splits, permutations of outer axes, stretched axes', () => {
  const device = open.baseline;
  scope(() => {
    const x = zeros(device, [2, 6, 4, 8]);
    const views: Tensor[] = [
      slice(x, 1, 2, 4),
      permute(x, [0, 2, 1, 3]),
      broadcastTo(slice(x, 1, 0, 1), [2, 6, 4, 8]),
      ...split(x, 3, 1),
      squeeze(slice(x, 0, 0, 1)),
      unsqueeze(x, 2),
    ];
    for (const view of views) expect(view.storage).toBe(x.storage);
    expect(slice(x, -1, 0, 4).storage).toBe(x.storage);
    expect(transpose(x).storage).not.toBe(x.storage);
    expect(squeeze(slice(x, 0, 0, 1)).shape).toEqual([6, 4, 8]);
    expect(unsqueeze(x, -1).shape).toEqual([2, 6, 4, 8, 1]);
  });
});

test.each(testedTiers)('concat and stack put tensors side by side along any axis on %s', async (tier) => {
  for (const dtype of dtypes) {
    for (const axis of [0, 1, 2]) {
      const random = new RandomStream(axis, dtype);
      const parts = [3, 1, 4].map((n) =>
        randomValues(
          random,
          [2, 3, 2].map((m, i) => (i === axis ? n : m)),
          dtype,
          0,
          99,
        ),
      );
      const tensors = parts.map((p, i) => place(open[tier], p, dtype, layoutKinds[i + 2]!));
      const expected = build(
        [2, 3, 2].map((m, i) => (i === axis ? 8 : m)),
        (index) => {
          const k = index[axis]!;
          const [part, start] = k < 3 ? [0, 0] : k < 4 ? [1, 3] : [2, 4];
          return at(
            parts[part]!,
            index.map((i, a) => (a === axis ? i - start : i)),
          );
        },
      );
      expect(await readOf(() => concat(tensors, axis))).toEqual({ dtype, ...expected });
      for (const t of tensors) t.dispose();
    }
  }
  using a = tensor(open[tier], [1, 2, 3]);
  using b = tensor(open[tier], [4, 5, 6]);
  expect((await readOf(() => stack([a, b]))).values).toEqual([1, 2, 3, 4, 5, 6]);
  expect(await readOf(() => stack([a, b], -1))).toEqual({ dtype: 'f32', shape: [3, 2], values: [1, 4, 2, 5, 3, 6] });
});

const differentiable: [string, Shape[], (...x: Tensor[]) => Tensor, (x: Values[]) => Values][] = [
  ['reshape', [[2, 3, 4]], (x) => reshape(x, [4, 6]), ([x]) => ({ shape: [4, 6], values: [...x!.values] })],
  ['permute', [[2, 3, 4]], (x) => permute(x, [2, 0, 1]), ([x]) => permuteValues(x!, [2, 0, 1])],
  ['transpose', [[2, 3, 4]], (x) => transpose(x), ([x]) => permuteValues(x!, [0, 2, 1])],
  [
    'slice',
    [[4, 5]],
    (x) =>
      slice(x, [
        [1, 4, 2],
        [0, 5, 3],
      ]),
    ([x]) =>
      sliceValues(x!, [
        [1, 4, 2],
        [0, 5, 3],
      ]),
  ],
  ['flip', [[3, 4]], (x) => flip(x, 1), ([x]) => flipValues(x!, [1])],
  [
    'broadcastTo',
    [[3, 1]],
    (x) => broadcastTo(x, [2, 3, 4]),
    ([x]) => broadcast([x!, { shape: [2, 3, 4], values: new Array<number>(24).fill(0) }], (v) => v),
  ],
  [
    'pad',
    [[2, 3]],
    (x) =>
      pad(x, [
        [0, 1],
        [2, 0],
      ]),
    ([x]) => build([3, 5], ([i, j]) => (i! < 2 && j! >= 2 ? at(x!, [i!, j! - 2]) : 0)),
  ],
  [
    'concat',
    [
      [2, 1],
      [2, 3],
    ],
    (a, b) => concat([a, b], 1),
    ([a, b]) => build([2, 4], ([i, j]) => (j! < 1 ? at(a!, [i!, 0]) : at(b!, [i!, j! - 1]))),
  ],
  [
    'split',
    [[2, 5]],
    (x) => mul(split(x, [2, 3])[0]!, split(x, [2, 1, 2])[2]!),
    ([x]) => build([2, 2], ([i, j]) => at(x!, [i!, j!]) * at(x!, [i!, j! + 3])),
  ],
];

test.each(differentiable)('the gradient of %s goes back to where elements came from', async (what, inputShapes, op, twin) => {
  for (const tier of testedTiers) {
    for (const dtype of ['f32', 'f16'] as const) {
      const random = new RandomStream(3, what);
      const inputs = inputShapes.map((shape) => randomValues(random, shape, dtype));
      await checkGradients(open[tier], op, twin, inputs, {
        what,
        dtypes: inputs.map(() => dtype),
        layouts: ['strided', 'offset'],
        rtol: 4e-3,
        atol: 4e-3,
      });
    }
  }
});

test('tensors without elements have shapes all the same', async () => {
  using x = zeros(open.baseline, [0, 4]);
  using y = tensor(open.baseline, [1, 2, 3, 4], [1, 4]);
  expect((await readOf(() => concat([x, y]))).values).toEqual([1, 2, 3, 4]);
  expect((await readOf(() => transpose(x))).shape).toEqual([4, 0]);
  expect((await readOf(() => slice(y, 1, 4))).shape).toEqual([1, 0]);
  expect((await readOf(() => reshape(x, [2, 0, 3]))).shape).toEqual([2, 0, 3]);
  expect((await readOf(() => pad(x, [[1, 0]], { value: 2 }))).values).toEqual([2, 2, 2, 2]);
  const { outputs, grads } = vjp(() => concat([x, y]), [x, y], [y]);
  expect(Array.from(await grads[1]!.read())).toEqual([1, 2, 3, 4]);
  for (const t of [...outputs, ...grads]) t.dispose();
});

test('bad shapes and axes say what was given and what to do', () => {
  using x = zeros(open.baseline, [2, 3]);
  using i = zeros(open.baseline, [2, 3], { dtype: 'u32' });
  expect(() => reshape(x, [4, -1])).toThrow('reshape: [2, 3] f32 has 6 elements and cannot be [4, -1]; the product must be 6');
  expect(() => permute(x, [0, 0])).toThrow('permute: order [0, 0] of [2, 3] f32 must name each of its 2 axes once');
  expect(() => slice(x, 2, 0)).toThrow('slice: [2, 3] f32 has no axis 2; use an integer from -2 to 1');
  expect(() => slice(x, 1, 2, 5)).toThrow('slice: range [2, 5) in steps of 1 on axis 1');
  expect(() => split(x, [1, 1])).toThrow('the parts must be integers that add up to 3');
  expect(() => concat([x, i])).toThrow('concat: [2, 3] f32 and [2, 3] u32; convert one with cast()');
  expect(() => concat([])).toThrow('concat: the list is empty');
  expect(() => squeeze(x, 0)).toThrow('squeeze: axis 0 of [2, 3] f32 has length 2');
  expect(() => unsqueeze(x, 4)).toThrow('unsqueeze: axis 4 of [2, 3] f32; use an integer from -3 to 2');
  expect(() => broadcastTo(x, [3])).toThrow('broadcastTo: [2, 3] f32 does not broadcast to [3]');
  expect(() => pad(x, [[-1, 0]])).toThrow('slice() takes away');
  expect(() => flip(x, [0, -2])).toThrow('name one axis twice');
});

test('rows that start at multiples of a word are copied by it, others one by one', () => {
  const plan = (dtype: DType, shape: number[], strides: number[], offset = 0) =>
    planStridedCopy({ dtype, shape, strides, offset, size: shape.reduce((product, n) => product * n, 1) });
  expect(plan('f32', [6, 8], [12, 1])).toEqual({ word: 'vec4u', per: 4, shape: [6, 2], strides: [3, 1], items: 12 });
  expect(plan('f32', [6, 8], [8, 1])).toEqual({ word: 'vec4u', per: 4, shape: [12], strides: [1], items: 12 });
  expect(plan('f16', [6, 8], [24, 1])).toEqual({ word: 'vec4u', per: 8, shape: [6, 1], strides: [3, 1], items: 6 });
  expect(plan('f16', [6, 8], [12, 1])).toMatchObject({ word: 'vec2u', per: 4 });
  expect(plan('f16', [6, 8], [9, 1])).toMatchObject({ word: '', per: 1 });
  expect(plan('u8', [6, 8], [12, 1], 4)).toMatchObject({ word: 'u32', per: 4 });
  expect(plan('f32', [6, 8], [12, 1], 2).word).toBe('vec2u');
  expect(plan('f32', [6, 7], [8, 1]).word).toBe('u32');
  expect(plan('f32', [6, 8], [1, 6])).toMatchObject({ word: '', strides: [1, 6] });
});

test('pads merge axes that nothing stands around, and go in vectors where rows and borders are multiples of four', () => {
  const x = { shape: [3, 4, 8], strides: [32, 8, 1], offset: 0 };
  expect(planPad(x, [[1, 0]])).toEqual({ width: 4, shape: [32], inner: [24], before: [8], strides: [1] });
  expect(
    planPad(x, [
      [0, 0],
      [2, 1],
    ]),
  ).toEqual({ width: 4, shape: [3, 14], inner: [3, 8], before: [0, 4], strides: [8, 1] });
  expect(
    planPad(x, [
      [0, 0],
      [0, 0],
      [4, 4],
    ]),
  ).toEqual({ width: 4, shape: [12, 4], inner: [12, 2], before: [0, 1], strides: [2, 1] });
  expect(
    planPad(x, [
      [0, 0],
      [0, 0],
      [1, 3],
    ]).width,
  ).toBe(1);
  expect(planPad({ ...x, offset: 2 }, [[1, 0]]).width).toBe(1);
});
