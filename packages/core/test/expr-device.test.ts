import fc from 'fast-check';
import { expect, test } from 'vitest';
import { scope, tensor } from '../src/index.js';
import { compile, exprFunction } from '../src/kernel/expr/index.js';
import { erf } from '../src/kernel/expr/semantics.js';
import { pointwise } from '../src/ops/pointwise.js';
import { floats, integers, x, y } from './expr-arbitrary.js';
import { devices } from './ops-support.js';
import type { Expr } from '../src/kernel/expr/index.js';

// One pipeline an expression: few expressions, many values.
const open = devices();

test('random integer expressions give the same 32 bits on the device', async () => {
  const edges = [0, 1, -1, 7, -8, 31, 32, 1000, -12_345, 2 ** 31 - 1, -(2 ** 31), 0x5a5a5a5a];
  const m = edges.flatMap((a) => edges.map(() => a));
  const n = edges.flatMap(() => edges);
  const inputs = [
    { name: 'm', type: 'i32' },
    { name: 'n', type: 'i32' },
  ] as const;
  for (const e of fc.sample(integers, { seed: 31, numRuns: 15 })) {
    const host = compile(e, ['m', 'n']);
    const out = scope(() =>
      pointwise(exprFunction(inputs, e))(tensor(open.baseline, Int32Array.from(m)), tensor(open.baseline, Int32Array.from(n))),
    );
    const got = await out.read();
    out.dispose();
    expect([...got]).toEqual(m.map((a, i) => host(a, n[i]!)));
  }
});

test('random float expressions agree with float64 on the device', async () => {
  const xs = Array.from({ length: 60 }, (_, i) => Math.fround(Math.sin(i * 1.7) * 2));
  const ys = Array.from({ length: 60 }, (_, i) => Math.fround(Math.cos(i * 2.3) * 2));
  const inputs = [
    { name: 'x', type: 'f32' },
    { name: 'y', type: 'f32' },
  ] as const;
  for (const e of fc.sample(floats(false, [x, y]), { seed: 32, numRuns: 30 })) {
    const host = compile(e, ['x', 'y']);
    const out = scope(() => pointwise(exprFunction(inputs, e))(tensor(open.baseline, xs), tensor(open.baseline, ys)));
    const got = await out.read();
    out.dispose();
    xs.forEach((v, i) => {
      // Steepness by differences scales the tolerance: a product of slopes multiplies the roundings below it.
      const want = host(v, ys[i]!);
      const spread = Math.abs(host(v + 1e-4, ys[i]! + 1e-4) - want) + Math.abs(host(v - 1e-4, ys[i]! - 1e-4) - want);
      expect(Math.abs(got[i]! - want)).toBeLessThan(1e-4 * Math.max(1, Math.abs(want)) + spread);
    });
  }
});

test('functions that drivers get wrong keep their stated errors on the device', async () => {
  const cases: [name: string, f: (v: Expr<'f32'>) => Expr<'f32'>, host: (v: number) => number, range: number, bound: number][] = [
    ['sin', (v) => v.sin(), Math.sin, 1e5, 3e-7],
    ['cos', (v) => v.cos(), Math.cos, 1e5, 3e-7],
    ['tanh', (v) => v.tanh(), Math.tanh, 8, 4e-7],
    ['tanh of huge arguments', (v) => v.tanh(), Math.tanh, 1e30, 4e-7],
    ['erf', (v) => v.erf(), erf, 5, 3e-7],
    ['sigmoid', (v) => v.sigmoid(), (v) => 1 / (1 + Math.exp(-v)), 200, 3e-7],
    [
      'softplus',
      (v) => v.softplus().div(v.abs().add(1)),
      (v) => (Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)))) / (Math.abs(v) + 1),
      200,
      3e-7,
    ],
  ];
  const inputs = [{ name: 'x', type: 'f32' }] as const;
  for (const [name, f, host, range, bound] of cases) {
    const xs = Array.from({ length: 2001 }, (_, i) => Math.fround((i / 1000 - 1) * range));
    const out = scope(() => pointwise(exprFunction(inputs, f(x)))(tensor(open.baseline, xs)));
    const got = await out.read();
    out.dispose();
    const worst = xs.reduce((a, v, i) => Math.max(a, Math.abs(got[i]! - host(v))), 0);
    expect(worst, name).toBeLessThan(bound);
  }
});
