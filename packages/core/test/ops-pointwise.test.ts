import fc from 'fast-check';
import { expect, test } from 'vitest';
import { erf as erf64 } from '../src/kernel/expr/semantics.js';
import { RandomStream } from '../src/random/stream.js';
import { type DType, scope, type Shape, tensor, type Tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { expr, typedExpr, uniform } from '../src/kernel/expr/index.js';
import * as activations from '../src/ops/activations.js';
import * as arithmetic from '../src/ops/arithmetic.js';
import { broadcastShapes, planPointwise } from '../src/ops/broadcast.js';
import { cast, eq, ge, gt, le, lt, ne, where } from '../src/ops/compare.js';
import { pointwise } from '../src/ops/pointwise.js';
import {
  broadcast,
  checkGradients,
  devices,
  expectClose,
  layoutKinds,
  place,
  randomValues,
  readOf,
  rounded,
  testedTiers,
  tolerance,
} from './ops-support.js';

const open = devices();

const dtypeChoices: DType[][] = [
  ['f32', 'f32', 'f32'],
  ['f16', 'f16', 'f16'],
  ['f32', 'f16', 'f32'],
];

/** Shapes that broadcast: each operand may miss leading axes and have lengths of 1. */
const operandShapes = fc
  .tuple(
    fc.array(fc.constantFrom(1, 2, 3, 4, 5, 8), { minLength: 1, maxLength: 6 }).filter((s) => s.reduce<number>((p, n) => p * n, 1) <= 3000),
    fc.array(fc.tuple(fc.nat(3), fc.array(fc.boolean(), { minLength: 6, maxLength: 6 })), { minLength: 1, maxLength: 3 }),
  )
  .map(([shape, cuts]) =>
    cuts.map(([skip, ones]): Shape => shape.slice(Math.min(skip, shape.length)).map((n, i) => (ones[i] && i % 2 === 0 ? 1 : n))),
  );

test.each(testedTiers)('a fused function of broadcast, strided, mixed operands equals float64 on %s', async (tier) => {
  const device = open[tier];
  const f3 = pointwise((x, y, z) => x.mul(y).add(z.max(0.25)), { name: 'test3' });
  const f2 = pointwise((x, y) => x.mul(y).sub(y), { name: 'test2' });
  const f1 = pointwise((x) => x.mul(x).add(1), { name: 'test1' });
  await fc.assert(
    fc.asyncProperty(
      operandShapes,
      fc.constantFrom(...dtypeChoices),
      fc.array(fc.constantFrom(...layoutKinds), { minLength: 3, maxLength: 3 }),
      fc.nat(1e6),
      async (shapes, dtypes, layouts, seed) => {
        const random = new RandomStream(seed);
        const inputs = shapes.map((shape, i) => randomValues(random, shape, dtypes[i]));
        const tensors = inputs.map((x, i) => place(device, x, dtypes[i]!, layouts[i]!));
        const twin = [
          (x: number) => x * x + 1,
          (x: number, y: number) => x * y - y,
          (x: number, y: number, z: number) => x * y + Math.max(z, 0.25),
        ];
        const got = await readOf(() => [f1, f2, f3][shapes.length - 1]!(...tensors));
        const expected = broadcast(inputs, twin[shapes.length - 1]!);
        const outDType = dtypes.slice(0, shapes.length).includes('f32') ? 'f32' : 'f16';
        expect(got.shape).toEqual(expected.shape);
        expect(got.dtype).toBe(outDType);
        expectClose(got.values, expected.values, tolerance[outDType], tolerance[outDType]);
        for (const t of tensors) t.dispose();
      },
    ),
    { numRuns: 40, seed: 3 },
  );
});

const unary: [string, (x: Tensor) => Tensor, (x: number) => number, number, number][] = [
  ['neg', arithmetic.neg, (x) => -x, -3, 3],
  ['abs', arithmetic.abs, Math.abs, -3, 3],
  ['square', arithmetic.square, (x) => x * x, -3, 3],
  ['exp', arithmetic.exp, Math.exp, -3, 3],
  ['log', arithmetic.log, Math.log, 0.2, 3],
  ['sqrt', arithmetic.sqrt, Math.sqrt, 0.2, 3],
  ['rsqrt', arithmetic.rsqrt, (x) => 1 / Math.sqrt(x), 0.2, 3],
  ['sin', arithmetic.sin, Math.sin, -30, 30],
  ['cos', arithmetic.cos, Math.cos, -30, 30],
  ['pow3', (x) => arithmetic.pow(x, 3), (x) => x ** 3, -2, 2],
  ['pow -1', (x) => arithmetic.pow(x, -1), (x) => 1 / x, 0.3, 2],
  ['pow 1.5', (x) => arithmetic.pow(x, 1.5), (x) => x ** 1.5, 0.2, 2],
  ['clamp', (x) => arithmetic.clamp(x, -0.5, 1), (x) => Math.min(Math.max(x, -0.5), 1), -3, 3],
  ['relu', activations.relu, (x) => Math.max(x, 0), -3, 3],
  ['sigmoid', activations.sigmoid, (x) => 1 / (1 + Math.exp(-x)), -6, 6],
  ['tanh', activations.tanh, Math.tanh, -6, 6],
  ['silu', activations.silu, (x) => x / (1 + Math.exp(-x)), -6, 6],
  ['softplus', activations.softplus, (x) => Math.log1p(Math.exp(x)), -6, 6],
  ['logSigmoid', activations.logSigmoid, (x) => -Math.log1p(Math.exp(-x)), -6, 6],
  ['erf', activations.erf, erf64, -4, 4],
  ['gelu', (x) => activations.gelu(x), (x) => 0.5 * x * (1 + erf64(x / Math.SQRT2)), -4, 4],
  [
    'gelu tanh',
    (x) => activations.gelu(x, { approximate: 'tanh' }),
    (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    -4,
    4,
  ],
  ['elu', activations.elu, (x) => (x > 0 ? x : Math.expm1(x)), -3, 3],
];

test.each(unary)('%s and its gradient equal float64', async (name, op, f, low, high) => {
  for (const tier of testedTiers) {
    const values = randomValues(new RandomStream(5, name), [3, 7], 'f32', low, high);
    await checkGradients(open[tier], op, ([x]) => broadcast([x!], f), [values], { what: `${name} on ${tier}`, rtol: 2e-4, atol: 2e-4 });
  }
});

const binary: [string, (a: Tensor, b: Tensor) => Tensor, (a: number, b: number) => number][] = [
  ['add', arithmetic.add, (a, b) => a + b],
  ['sub', arithmetic.sub, (a, b) => a - b],
  ['mul', arithmetic.mul, (a, b) => a * b],
  ['div', arithmetic.div, (a, b) => a / b],
  ['pow', arithmetic.pow, (a, b) => a ** b],
  ['minimum', arithmetic.minimum, Math.min],
  ['maximum', arithmetic.maximum, Math.max],
];

test.each(binary)('%s: gradients have the shapes and dtypes of the operands and sum over stretched axes', async (name, op, f) => {
  for (const tier of testedTiers) {
    const random = new RandomStream(6, name);
    for (const [a, b, layouts] of [
      [
        [2, 3, 4],
        [2, 3, 4],
        ['plain', 'strided'],
      ],
      [[2, 3, 4], [4], ['permuted', 'offset']],
      [
        [5, 1],
        [2, 1, 3],
        ['plain', 'plain'],
      ],
      [[1], [2, 6], ['plain', 'plain']],
    ] as const) {
      const inputs = [randomValues(random, a, 'f32', 0.5, 2), randomValues(random, b, 'f32', 0.5, 2)];
      await checkGradients(open[tier], op, (x) => broadcast(x, f), inputs, {
        layouts: [...layouts],
        what: `${name} [${a}] [${b}] ${tier}`,
        rtol: 1e-3,
      });
    }
  }
});

test('f16 operands give f16 gradients, mixed ones each their own', async () => {
  for (const tier of testedTiers) {
    for (const dtypes of [
      ['f16', 'f16'],
      ['f16', 'f32'],
    ] as const) {
      const random = new RandomStream(7);
      const inputs = [randomValues(random, [3, 8], 'f16', 0.5, 2), randomValues(random, [8], dtypes[1], 0.5, 2)];
      await checkGradients(open[tier], arithmetic.mul, (x) => broadcast(x, (a, b) => a * b), inputs, {
        dtypes: [...dtypes],
        rtol: 4e-3,
        atol: 4e-3,
      });
    }
  }
});

test('numbers are run-time operands on either side', async () => {
  const device = open.subgroups;
  using x = tensor(device, [1, 2, 3, 4, 5]);
  const before = (): number => device.pipelines.size;
  expect((await readOf(() => arithmetic.sub(10, x))).values).toEqual([9, 8, 7, 6, 5]);
  const kernels = before();
  expect((await readOf(() => arithmetic.sub(1, x))).values).toEqual([0, -1, -2, -3, -4]);
  expect(before()).toBe(kernels);
  expect((await readOf(() => arithmetic.div(x, 2))).values).toEqual([0.5, 1, 1.5, 2, 2.5]);
  const { outputs, grads } = vjp(() => arithmetic.mul(x, 3), [x], [x]);
  expect(Array.from(await grads[0]!.read())).toEqual([3, 6, 9, 12, 15]);
  for (const t of [...outputs, ...grads]) t.dispose();
});

test('integers wrap around and keep their dtype', async () => {
  using a = tensor(open.baseline, Uint32Array.of(1, 2, 4294967295));
  using b = tensor(open.baseline, Uint32Array.of(3, 0, 2));
  expect(await readOf(() => arithmetic.add(a, b))).toEqual({ shape: [3], dtype: 'u32', values: [4, 2, 1] });
  expect((await readOf(() => arithmetic.div(a, b))).values).toEqual([0, 2, 2147483647]);
  using i = tensor(open.baseline, Int32Array.of(-5, 6));
  expect(await readOf(() => arithmetic.neg(i))).toEqual({ shape: [2], dtype: 'i32', values: [5, -6] });
});

test('comparisons give u8, also of strided views and odd lengths', async () => {
  const ops: [typeof eq, (a: number, b: number) => boolean][] = [
    [eq, (a, b) => a === b],
    [ne, (a, b) => a !== b],
    [lt, (a, b) => a < b],
    [le, (a, b) => a <= b],
    [gt, (a, b) => a > b],
    [ge, (a, b) => a >= b],
  ];
  for (const tier of testedTiers) {
    for (const dtype of ['f32', 'u32', 'u8', 'f16'] as const) {
      const random = new RandomStream(8, dtype);
      const inputs = [randomValues(random, [3, 5, 7], dtype, 0, 4), randomValues(random, [7], dtype, 0, 4)].map(({ shape, values }) => ({
        shape,
        values: values.map(Math.floor),
      }));
      const tensors = [place(open[tier], inputs[0]!, dtype, 'strided'), place(open[tier], inputs[1]!, dtype, 'plain')];
      for (const [op, f] of dtype === 'f32' ? ops : ops.slice(0, 1)) {
        const got = await readOf(() => op(tensors[0]!, tensors[1]!));
        expect(got.dtype).toBe('u8');
        expect(got.values).toEqual(broadcast(inputs, (a, b) => Number(f(a, b))).values);
      }
      for (const t of tensors) t.dispose();
    }
  }
});

test('where chooses by element and sends gradients to what was chosen', async () => {
  for (const tier of testedTiers) {
    const random = new RandomStream(9);
    const condition = { shape: [4, 5], values: randomValues(random, [4, 5], 'f32', 0, 2).values.map(Math.floor) };
    const c = place(open[tier], condition, 'u8', 'plain');
    const inputs = [randomValues(random, [4, 5]), randomValues(random, [5])];
    const twin = (x: typeof inputs): (typeof inputs)[number] => broadcast([condition, ...x], (k, a, b) => (k ? a : b));
    await checkGradients(open[tier], (a, b) => where(c, a, b), twin, inputs);
    using ids = tensor(open[tier], Uint32Array.of(1, 2, 3, 4, 5));
    expect((await readOf(() => where(c, ids, 4294967295))).values).toEqual(condition.values.map((k, i) => (k ? (i % 5) + 1 : 4294967295)));
    c.dispose();
  }
});

test('cast converts between all dtypes', async () => {
  const values = [0, 1, 2.75, 3.5, 200, 254, 255];
  for (const tier of testedTiers) {
    for (const from of ['f32', 'f16', 'i32', 'u32', 'u8'] as const) {
      for (const to of tier === 'baseline' || from === 'f32' ? (['f32', 'f16', 'i32', 'u32', 'u8'] as const) : (['f32'] as const)) {
        using x = place(open[tier], { shape: [7], values: values.map((v) => rounded(v, from)) }, from, 'aligned');
        const got = await readOf(() => cast(x, to));
        expect(got).toEqual({ shape: [7], dtype: to, values: values.map((v) => rounded(rounded(v, from), to)) });
      }
    }
  }
  using negative = tensor(open.baseline, [-3.9, 300, -1]);
  expect((await readOf(() => cast(negative, 'i32'))).values).toEqual([-3, 300, -1]);
  expect((await readOf(() => cast(negative, 'u8'))).values).toEqual([0, 255, 0]);
});

test('the gradient of a cast comes back in the dtype of its input', async () => {
  using x = tensor(open.baseline, [1, 2, 3], [3], { dtype: 'f16' });
  using cotangent = tensor(open.baseline, [0.5, 0.25, 4]);
  const { outputs, grads } = vjp(() => cast(x, 'f32'), [x], [cotangent]);
  expect(grads[0]!.dtype).toBe('f16');
  expect(Array.from(await grads[0]!.read())).toEqual([0.5, 0.25, 4]);
  for (const t of [...outputs, ...grads]) t.dispose();
});

test('a zero-length operand gives a zero-length result', async () => {
  using x = tensor(open.baseline, [], [0, 3]);
  using y = tensor(open.baseline, [1, 2, 3]);
  expect(await readOf(() => arithmetic.add(x, y))).toEqual({ shape: [0, 3], dtype: 'f32', values: [] });
});

test('typed expressions take booleans and integers as inputs', async () => {
  using mask = tensor(open.baseline, Uint8Array.of(1, 0, 1));
  using i = tensor(open.baseline, Uint32Array.of(5, 6, 7));
  using x = tensor(open.baseline, [1, 2, 3]);
  const f = pointwise(typedExpr(['bool', 'u32', 'f32'], (m, k, v) => m.select(k.f32().mul(v), v)));
  expect((await readOf(() => f(mask, i, x))).values).toEqual([5, 2, 21]);
});

test('bad operands say what was given and what to do', () => {
  using a = tensor(open.baseline, [1, 2, 3]);
  using b = tensor(open.baseline, [1, 2]);
  using i = tensor(open.baseline, Uint32Array.of(1, 2, 3));
  expect(() => arithmetic.add(a, b)).toThrow('add: shapes [3] and [2] do not broadcast: lengths 3 and 2 meet 1 from the end');
  expect(() => arithmetic.add(a, i)).toThrow(
    'add: operands are [3] f32 and [3] u32; both must be float, i32 or u32, convert one with cast()',
  );
  expect(() => arithmetic.add(1, 2)).toThrow('add: all operands are numbers');
  expect(() => arithmetic.exp(i)).toThrow('exp: operand 0 is [3] u32; it must be f32 or f16');
  expect(() => arithmetic.neg(i)).toThrow('neg: [3] u32 was given; it takes f32, i32');
  expect(() => where(a, a, a)).toThrow('where: operand 0 is [3] f32; it must be u8 (0 is false)');
  expect(() => pointwise((x) => x)(a, b)).toThrow('function: 2 operands were given; it takes 1');
  expect(() =>
    pointwise(
      expr((x) => x.mul(uniform('alpha', 'f32'))),
      { name: 'scaled' },
    )(a),
  ).toThrow('pointwise scaled: the expression uses alpha besides its inputs');
  const disposed = tensor(open.baseline, [1]);
  disposed.dispose();
  expect(() => arithmetic.exp(disposed)).toThrow('was disposed');
  const other = tensor(open.subgroups, [1, 2, 3]);
  expect(() => arithmetic.add(a, other)).toThrow('are of two devices');
  other.dispose();
});

test('lengths do not make kernels', () => {
  const device = open.baseline;
  const random = new RandomStream(11);
  const count = (): number => {
    const [m, n] = [...random.integers(2, 60)].map((k) => k + 2) as [number, number];
    scope(() => {
      const a = place(device, randomValues(random, [m, n]), 'f32', 'plain');
      const b = place(device, randomValues(random, [n]), 'f32', 'plain');
      const { grads } = vjp(() => arithmetic.mul(activations.gelu(a), b), [a, b], [a]);
      for (const g of grads) g.dispose();
    });
    return device.pipelines.size;
  };
  for (let i = 0; i < 40; i++) count();
  const settled = device.pipelines.size;
  for (let i = 0; i < 60; i++) count();
  expect(device.pipelines.size).toBe(settled);
});

test('plans take vectors where strides and offsets allow', () => {
  const layout = (shape: Shape, strides: Shape, offset = 0): Parameters<typeof planPointwise>[1][number] => ({
    shape,
    strides,
    offset,
    size: shape.reduce((p, n) => p * n, 1),
    contiguous: strides.every((s, i) => s === shape.slice(i + 1).reduce((p, n) => p * n, 1)),
  });
  expect(planPointwise([4, 8], [layout([4, 8], [8, 1]), 3])).toMatchObject({ form: 'flat', modes: 'vn' });
  expect(planPointwise([4, 8], [layout([4, 8], [8, 1]), layout([8], [1])])).toEqual({
    form: 'rows',
    modes: 'vv',
    shape: [4, 2],
    strides: [
      [2, 1],
      [0, 1],
    ],
    steps: [1, 1],
  });
  expect(planPointwise([4, 8], [layout([4, 8], [8, 1], 2), layout([4, 1], [1, 1])]).modes).toBe('gb');
  expect(planPointwise([4, 7], [layout([4, 7], [9, 1])])).toMatchObject({ form: 'odd', modes: 'g', shape: [4, 7], strides: [[9, 1]] });
  expect(planPointwise([2, 3, 4, 4], [layout([2, 3, 4, 4], [48, 16, 4, 1], 4), layout([4], [1])]).shape).toEqual([24, 1]);
  expect(broadcastShapes('add', [[3, 1], [2, 1, 5], []])).toEqual([2, 3, 5]);
});
