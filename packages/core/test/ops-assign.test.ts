import { expect, test } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { type DType, grad, scope, type Shape, tensor, type Tensor } from '../src/index.js';
import { contiguousStrides, sizeOf } from '../src/internal.js';
import { copyInto, planCopy } from '../src/ops/assign.js';
import { broadcast, devices, expectClose, place, randomValues, testedTiers, tolerance } from './ops-support.js';

const open = devices();

const views: { base: Shape; shape: Shape; strides: Shape; offset: number; source: Shape }[] = [
  { base: [6, 8], shape: [6, 8], strides: [8, 1], offset: 0, source: [6, 8] },
  { base: [6, 8], shape: [2, 8], strides: [8, 1], offset: 16, source: [8] },
  { base: [6, 8], shape: [2, 4], strides: [16, 1], offset: 4, source: [2, 1] },
  { base: [7, 7], shape: [7], strides: [7], offset: 3, source: [7] },
  { base: [7, 7], shape: [5, 3], strides: [7, 1], offset: 1, source: [5, 3] },
  { base: [31], shape: [5], strides: [1], offset: 13, source: [5] },
  { base: [2, 3, 5], shape: [3, 2, 5], strides: [5, 15, 1], offset: 0, source: [2, 1] },
];

test.each(testedTiers)('exactly the elements of a view are overwritten on %s', async (tier) => {
  const device = open[tier];
  for (const [from, to] of [
    ['f32', 'f32'],
    ['f16', 'f16'],
    ['f32', 'f16'],
    ['u8', 'u8'],
    ['u32', 'u32'],
  ] as [DType, DType][]) {
    for (const view of views) {
      const random = new RandomStream(sizeOf(view.base), from);
      const before = randomValues(random, view.base, to, 0, 100);
      const given = randomValues(random, view.source, from, 0, 100);
      const base = place(device, before, to, 'plain');
      const source = place(device, given, from, 'plain');
      scope(() => copyInto(base.view(view), source));
      const spread = broadcast([{ shape: view.shape, values: new Array<number>(sizeOf(view.shape)).fill(0) }, given], (_, x) => x).values;
      const expected = [...before.values];
      const steps = contiguousStrides(view.shape);
      spread.forEach((value, flat) => {
        const at = view.shape.reduce((sum, n, axis) => sum + (Math.floor(flat / steps[axis]!) % n) * view.strides[axis]!, view.offset);
        expected[at] = value;
      });
      const tol = to === 'f16' ? tolerance.f16 : 0;
      expectClose(await base.read(), expected, tol, tol, `${from} into ${to} [${view.shape}]`);
      base.dispose();
      source.dispose();
    }
  }
});

test('a number fills a view', async () => {
  using x = tensor(open.baseline, Uint8Array.of(1, 2, 3, 4, 5));
  scope(() => copyInto(x.view({ shape: [3], strides: [1], offset: 1 }), 9));
  expect([...(await x.read())]).toEqual([1, 9, 9, 9, 5]);
});

test('rows of a cache are written as vectors', () => {
  const cache = { shape: [2, 3, 64], strides: [640, 64, 1], offset: 128, size: 384 };
  expect(planCopy(cache, { shape: [2, 3, 64], strides: [192, 64, 1], offset: 0, size: 384 })).toEqual({
    vector: true,
    splat: false,
    shape: [2, 48],
    outStrides: [160, 1],
    xStrides: [48, 1],
    items: 96,
  });
  expect(planCopy({ ...cache, offset: 3 }, { shape: [64], strides: [1], offset: 0, size: 64 }).vector).toBe(false);
});

test('bad targets say what to do', () => {
  using x = tensor(open.baseline, [1, 2, 3, 4], [2, 2]);
  using y = tensor(open.baseline, [1, 2, 3]);
  using i = tensor(open.baseline, Uint32Array.of(1, 2));
  expect(() => copyInto(x, y)).toThrow('copyInto: shapes [2, 2] and [3] do not broadcast');
  expect(() => copyInto(y, tensorOf(x))).toThrow('copyInto: shapes');
  expect(() => copyInto(x, i)).toThrow('the target is [2, 2] f32, the source [2] u32; convert the source with cast()');
  expect(() => scope(() => copyInto(x.view({ shape: [2], strides: [1], offset: 2 }), x.view({ shape: [2], strides: [1] })))).toThrow(
    'in one buffer',
  );
  expect(() =>
    grad((p: Tensor) => {
      copyInto(x, p);
      return p;
    })(x),
  ).toThrow('writes in place have no gradient');
});

const tensorOf = (x: Tensor): Tensor => x;
