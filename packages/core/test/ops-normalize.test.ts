import { expect, test } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { tensor, zeros } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { l2Normalize } from '../src/ops/normalize.js';
import { checkGradients, devices, randomValues, readOf, testedTiers, type Values } from './ops-support.js';

const open = devices();

function unitColumns({ shape, values }: Values, axis: number): Values {
  const [m = 0, n = 0] = shape;
  const length = (i: number): number =>
    Math.hypot(...values.filter((_, k) => (axis === 1 ? Math.floor(k / n) === Math.floor(i / n) : k % n === i % n)));
  return { shape: [m, n], values: values.map((v, i) => v / length(i)) };
}

test('rows and columns get length 1, with gradients, in the dtype of x', async () => {
  for (const tier of testedTiers) {
    for (const axis of [0, 1]) {
      for (const dtype of ['f32', 'f16'] as const) {
        const values = randomValues(new RandomStream(axis), [3, 8], dtype);
        const options = dtype === 'f16' ? { dtypes: [dtype], rtol: 1e-2, atol: 5e-3 } : { rtol: 1e-3 };
        await checkGradients(
          open[tier],
          (x) => l2Normalize(x, { axis }),
          ([x]) => unitColumns(x!, axis),
          [values],
          options,
        );
      }
    }
  }
});

test('rows shorter than epsilon are divided by it, forwards and backwards', async () => {
  using x = zeros(open.baseline, [1, 4]);
  using g = tensor(open.baseline, [3, 4, 0, 0], [1, 4]);
  const { outputs, grads } = vjp(() => l2Normalize(x, { epsilon: 0.5 }), [x], [g]);
  expect(Array.from(await outputs[0]!.read())).toEqual([0, 0, 0, 0]);
  expect(Array.from(await grads[0]!.read())).toEqual([6, 8, 0, 0]);
  for (const t of [...outputs, ...grads]) t.dispose();
  expect((await readOf(() => l2Normalize(g))).values[0]).toBeCloseTo(0.6, 6);
});

test('bad arguments say what to do', () => {
  using x = zeros(open.baseline, [2, 3]);
  using i = zeros(open.baseline, [2], { dtype: 'u32' });
  expect(() => l2Normalize(x, { epsilon: 0 })).toThrow('l2Normalize: epsilon is 0; use a number above 0');
  expect(() => l2Normalize(x, { axis: 2 })).toThrow('l2Normalize: [2, 3] f32 has no axis 2');
  expect(() => l2Normalize(i)).toThrow('it must be f32 or f16');
});
