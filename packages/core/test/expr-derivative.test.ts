import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { capture, derivative, evaluate, captureDerivative, select, variable } from '../src/kernel/expr/index.js';
import { distinctNodes, floats, scale, table, x, y } from './expr-arbitrary.js';
import type { Expr } from '../src/kernel/expr/index.js';

const environment = { uniforms: { scale: 0.7 }, captures: { table: [0.3, -0.9, 1.4] } };
const point = fc.record({
  x: fc.double({ min: -2, max: 2, noNaN: true }),
  y: fc.double({ min: -2, max: 2, noNaN: true }),
  i: fc.integer({ min: -2, max: 5 }),
});
const at = (e: Expr<'f32'>, variables: Record<string, number>): number => evaluate(e, { ...environment, variables });

describe('derivatives', () => {
  test('random smooth expressions agree with central differences', () => {
    fc.assert(
      fc.property(floats(false), point, (e, p) => {
        const h = 1e-6;
        const slope = (from: number, to: number): number => (at(e, { ...p, x: p.x + to }) - at(e, { ...p, x: p.x + from })) / (to - from);
        const numeric = slope(-h, h);
        // min, max and select have kinks: where the one-sided slopes disagree there is no derivative to compare with.
        fc.pre(Math.abs(slope(-h, 0) - slope(0, h)) < 1e-4 * Math.max(1, Math.abs(numeric)));
        const exact = at(derivative(e, x), p);
        expect(Math.abs(exact - numeric)).toBeLessThan(2e-4 * Math.max(1, Math.abs(exact)));
      }),
      { seed: 3, numRuns: 1000 },
    );
  });

  test('second derivatives are derivatives of derivatives', () => {
    const gelu = x.mul(x.div(Math.SQRT2).erf().add(1)).mul(0.5);
    const second = derivative(derivative(gelu, 'x'), 'x');
    for (const v of [-2, -0.3, 0, 1.1]) {
      const density = Math.exp((-v * v) / 2) / Math.sqrt(2 * Math.PI);
      expect(at(second, { x: v })).toBeCloseTo(density * (2 - v * v), 12);
    }
  });

  test('the derivative by a uniform is taken like one by a variable', () => {
    expect(at(derivative(scale.mul(scale).mul(x), scale), { x: 3 })).toBeCloseTo(2 * 0.7 * 3, 12);
    expect(at(derivative(x, y), { x: 3, y: 1 })).toBe(0);
  });

  test('kinks follow the stated conventions', () => {
    const slope = (e: Expr<'f32'>, v: number): number => at(derivative(e, x), { x: v });
    expect([-1, 0, 2].map((v) => slope(x.max(0), v))).toEqual([0, 0, 1]);
    expect([-1, 0, 2].map((v) => slope(x.abs(), v))).toEqual([-1, 0, 1]);
    expect([-2, -1, 0, 1, 2].map((v) => slope(x.clamp(-1, 1), v))).toEqual([0, 1, 1, 1, 0]);
    expect(slope(x.floor().add(x.round()).add(x.sign()), 0.3)).toBe(0);
    expect(slope(select(x.gt(1), x.mul(x), x.mul(3)), 2)).toBe(4);
    expect(slope(select(x.gt(1), x.mul(x), x.mul(3)), 0)).toBe(3);
  });

  test('gradients into a captured array come as index and value, one term a place', () => {
    const i = variable('i', 'i32');
    const e = table
      .at(i)
      .mul(x)
      .add(table.at(i.add(1)).mul(table.at(i)));
    const terms = captureDerivative(e, 'table').map(({ index, value }) => {
      const variables = { i: 1, x: 5 };
      return [evaluate(index, { variables }), evaluate(value, { ...environment, variables })];
    });
    expect(terms).toEqual([
      [1, 5 + 1.4],
      [2, -0.9],
    ]);
    expect(captureDerivative(x.mul(2), 'table')).toEqual([]);
    expect(captureDerivative(capture('fixed', 'f32').at(i), 'fixed')).toEqual([]);
  });

  test('repeated derivatives of a product grow with the nodes, not with the paths', () => {
    let e: Expr<'f32'> = x;
    for (let i = 0; i < 30; i++) e = e.mul(e).sin();
    expect(distinctNodes(derivative(e, x))).toBeLessThan(300);
  });
});
