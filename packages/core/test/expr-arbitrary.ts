import fc from 'fast-check';
import { capture, select, uniform, variable } from '../src/kernel/expr/index.js';
import type { AnyExpr, Expr } from '../src/kernel/expr/index.js';

// Random expressions that stay in the domain of every function and away from overflow.

export const x: Expr<'f32'> = variable('x', 'f32');
export const y: Expr<'f32'> = variable('y', 'f32');
export const scale: Expr<'f32'> = uniform('scale', 'f32');
export const table = capture('table', 'f32', { differentiable: true });

const smooth: ((a: Expr<'f32'>) => Expr<'f32'>)[] = [
  (a) => a.sin(),
  (a) => a.cos(),
  (a) => a.tanh(),
  (a) => a.erf(),
  (a) => a.sigmoid(),
  (a) => a.softplus(),
  (a) => a.logSigmoid(),
  (a) => a.neg(),
  (a) => a.tanh().exp(),
  (a) => a.tanh().exp2(),
  (a) => a.mul(a).add(1).sqrt(),
  (a) => a.mul(a).add(0.5).log(),
  (a) => a.mul(a).add(0.5).log2(),
  (a) => a.mul(a).add(1).inverseSqrt(),
  (a) => a.tanh().pow(3),
  (a) => a.mul(a).add(0.5).pow(-0.7),
];
const kinked: ((a: Expr<'f32'>) => Expr<'f32'>)[] = [
  (a) => a.abs(),
  (a) => a.floor(),
  (a) => a.ceil(),
  (a) => a.round(),
  (a) => a.fract(),
  (a) => a.sign(),
  (a) => a.clamp(-0.75, 0.8),
  (a) => a.i32().f32(),
];
const pairs: ((a: Expr<'f32'>, b: Expr<'f32'>) => Expr<'f32'>)[] = [
  (a, b) => a.add(b),
  (a, b) => a.sub(b),
  (a, b) => a.mul(b).tanh(),
  (a, b) => a.div(b.mul(b).add(1)),
  (a, b) => a.min(b),
  (a, b) => a.max(b),
  (a, b) => select(a.lt(b), a.sin(), b.mul(0.5)),
  (a, b) => a.mul(a).add(0.25).pow(b.tanh()),
];

/** Random float expressions of x, y, scale and table; with `kinks` also functions with jumps. */
export function floats(
  kinks: boolean,
  leaves: readonly Expr<'f32'>[] = [x, y, scale, table.at(variable('i', 'i32'))],
): fc.Arbitrary<Expr<'f32'>> {
  const unary = kinks ? [...smooth, ...kinked] : smooth;
  return fc.letrec<{ tree: Expr<'f32'> }>((tie) => ({
    tree: fc.oneof(
      { maxDepth: 6, withCrossShrink: true },
      fc.constantFrom(...leaves),
      fc.tuple(fc.constantFrom(...unary), tie('tree')).map(([f, a]) => f(a)),
      fc.tuple(fc.constantFrom(...pairs), tie('tree'), tie('tree')).map(([f, a, b]) => f(a, b)),
      fc.tuple(tie('tree'), fc.integer({ min: -20, max: 20 })).map(([a, n]) => a.mul(n / 8).add(0.125)),
    ),
  })).tree;
}

type Integer = Expr<'i32'>;
const integerPairs: ((a: Integer, b: Integer) => Integer)[] = [
  (a, b) => a.add(b),
  (a, b) => a.sub(b),
  (a, b) => a.mul(b),
  (a, b) => a.div(b),
  (a, b) => a.mod(b),
  (a, b) => a.min(b),
  (a, b) => a.max(b),
  (a, b) => a.and(b),
  (a, b) => a.or(b),
  (a, b) => a.xor(b),
  (a, b) => a.shl(b.u32()),
  (a, b) => a.shr(b.u32()),
  (a, b) => a.u32().div(b.u32()).i32(),
  (a, b) => a.u32().mod(b.u32()).i32(),
  (a, b) => select(a.lt(b), b, a.neg()),
  (a, b) => a.clamp(b.min(a), b.max(a)),
];
const integerUnary: ((a: Integer) => Integer)[] = [
  (a) => a.neg(),
  (a) => a.abs(),
  (a) => a.not(),
  (a) => a.popcount(),
  (a) => a.sign(),
  (a) => a.u32().shr(3).i32(),
];

/** Random i32 expressions of m and n. */
export const integers: fc.Arbitrary<Integer> = fc.letrec<{ tree: Integer }>((tie) => ({
  tree: fc.oneof(
    { maxDepth: 5, withCrossShrink: true },
    fc.constantFrom<Integer>(variable('m', 'i32'), variable('n', 'i32')),
    fc.tuple(fc.constantFrom(...integerUnary), tie('tree')).map(([f, a]) => f(a)),
    fc.tuple(fc.constantFrom(...integerPairs), tie('tree'), tie('tree')).map(([f, a, b]) => f(a, b)),
    fc.tuple(tie('tree'), fc.integer({ min: 1, max: 1000 })).map(([a, n]) => a.add(n).mul(3)),
  ),
})).tree;

/** Number of distinct node objects of an expression. */
export function distinctNodes(root: AnyExpr): number {
  const seen = new Set<AnyExpr>();
  const stack = [root];
  for (let e = stack.pop(); e !== undefined; e = stack.pop()) {
    if (seen.has(e)) continue;
    seen.add(e);
    stack.push(...e.args);
  }
  return seen.size;
}
