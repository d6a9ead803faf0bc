import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  capture,
  compile,
  constantOf,
  derivative,
  evaluate,
  expr,
  freeNames,
  i32,
  key,
  rawFunction,
  substitute,
  toWgsl,
  typedExpr,
  uniform,
  variable,
} from '../src/kernel/expr/index.js';
import { convert, erf, reinterpret, roundHalfEven } from '../src/kernel/expr/semantics.js';
import { floats, integers, scale, table, x, y } from './expr-arbitrary.js';
import type { AnyExpr, Expr } from '../src/kernel/expr/index.js';

const environment = { uniforms: { scale: 0.7 }, captures: { table: [0.3, -0.9, 1.4] } };
const point = fc.record({
  x: fc.double({ min: -2, max: 2, noNaN: true }),
  y: fc.double({ min: -2, max: 2, noNaN: true }),
  i: fc.integer({ min: -2, max: 5 }),
});
const at = (e: Expr<'f32'>, variables: Record<string, number>): number => evaluate(e, { ...environment, variables });

/** The tree walked as it stands, with no sharing and no numbering: the independent form of `evaluate`. */
function walk(e: AnyExpr, names: Record<string, number>): number {
  const a = e.args.map((arg) => walk(arg, names));
  const [p = 0, q = 0, r = 0] = a;
  const integer = e.args[0]?.type === 'i32' || e.args[0]?.type === 'u32';
  const type = e.args[0]?.type ?? e.type;
  const wrap = (v: bigint): number => Number(type === 'i32' ? BigInt.asIntN(32, v) : BigInt.asUintN(32, v));
  switch (e.op) {
    case 'const':
      return e.payload.value!;
    case 'variable':
    case 'uniform':
      return names[e.payload.name!]!;
    case 'load':
      return environment.captures.table[Math.min(2, Math.max(0, p))]!;
    case 'cast':
      return convert(p, type, e.type);
    case 'bitcast':
      return reinterpret(p, type, e.type);
    case 'select':
      return p ? q : r;
    case 'add':
      return integer ? wrap(BigInt(p) + BigInt(q)) : p + q;
    case 'sub':
      return integer ? wrap(BigInt(p) - BigInt(q)) : p - q;
    case 'mul':
      return integer ? wrap(BigInt(p) * BigInt(q)) : p * q;
    case 'div':
      return integer ? (q === 0 ? p : wrap(BigInt(p) / BigInt(q))) : p / q;
    case 'mod':
      return q === 0 ? 0 : wrap(((BigInt(p) % BigInt(q)) + BigInt(Math.abs(q))) % BigInt(Math.abs(q)));
    case 'min':
      return p < q ? p : q;
    case 'max':
      return p > q ? p : q;
    case 'clamp':
      return p < q ? q : p > r ? r : p;
    case 'pow':
      return p > 0 ? Math.exp(q * Math.log(p)) : q === 0 ? 1 : 0;
    case 'neg':
      return integer ? wrap(-BigInt(p)) : -p;
    case 'abs':
      return integer ? wrap(BigInt(Math.abs(p))) : Math.abs(p);
    case 'not':
      return type === 'bool' ? 1 - p : wrap(~BigInt(p));
    case 'and':
      return type === 'bool' ? p * q : wrap(BigInt(p) & BigInt(q));
    case 'or':
      return type === 'bool' ? Math.max(p, q) : wrap(BigInt(p) | BigInt(q));
    case 'xor':
      return wrap(BigInt(p) ^ BigInt(q));
    case 'shl':
      return wrap(BigInt(p) << (BigInt(q) & 31n));
    case 'shr':
      return wrap(BigInt(p) >> (BigInt(q) & 31n));
    case 'popcount':
      return BigInt.asUintN(32, BigInt(p)).toString(2).split('1').length - 1;
    case 'sign':
      return Math.sign(p);
    case 'lt':
      return p < q ? 1 : 0;
    case 'gt':
      return p > q ? 1 : 0;
    case 'floor':
      return Math.floor(p);
    case 'ceil':
      return Math.ceil(p);
    case 'round':
      return roundHalfEven(p);
    case 'fract':
      return p - Math.floor(p);
    case 'sqrt':
      return Math.sqrt(p);
    case 'inverseSqrt':
      return Math.sqrt(1 / p);
    case 'exp':
      return Math.exp(p);
    case 'exp2':
      return Math.exp(p * Math.LN2);
    case 'log':
      return Math.log(p);
    case 'log2':
      return Math.log(p) / Math.LN2;
    case 'sin':
      return Math.sin(p);
    case 'cos':
      return Math.sin(p + Math.PI / 2);
    case 'tanh':
      return Math.tanh(p);
    case 'erf':
      return erf(p);
    case 'sigmoid':
      return 0.5 + 0.5 * Math.tanh(p / 2);
    case 'softplus':
      return Math.log(1 + Math.exp(p));
    default:
      throw new Error(e.op);
  }
}

describe('host evaluation', () => {
  test('random float expressions have the value of a plain tree walk', () => {
    fc.assert(
      fc.property(floats(true), point, (e, p) => {
        const names = { ...p, scale: 0.7 };
        // A jump may fall between two roundings; skip values at a distance where it does.
        const got = at(e, p);
        const want = walk(e, names);
        if (Math.abs(got - want) < 1e-9 * Math.max(1, Math.abs(want))) return;
        const moved = { ...names, x: p.x + 1e-7, y: p.y + 1e-7 };
        expect(Math.abs(walk(e, moved) - want)).toBeGreaterThan(1e-5);
      }),
      { seed: 1, numRuns: 1500 },
    );
  });

  test('random integer expressions wrap as 32-bit arithmetic does', () => {
    const any = fc.oneof(fc.integer(), fc.integer({ min: -40, max: 40 }), fc.constantFrom(-(2 ** 31), 2 ** 31 - 1));
    fc.assert(
      fc.property(integers, any, any, (e, m, n) => {
        expect(evaluate(e, { variables: { m, n } })).toBe(walk(e, { m, n }));
      }),
      { seed: 2, numRuns: 1500 },
    );
  });

  test('a compiled closure is called again and again with new values', () => {
    const f = compile(x.mul(y).add(scale), ['y', 'x'], environment);
    expect([f(2, 3), f(-1, 4), f(2, 3)]).toEqual([6.7, -3.3, 6.7]);
  });

  test('erf agrees with tabulated values to the last digits', () => {
    expect(erf(0.5)).toBeCloseTo(0.5204998778130465, 15);
    expect(erf(-2)).toBeCloseTo(-0.9953222650189527, 15);
    expect(erf(3.5)).toBeCloseTo(0.9999992569016276, 14);
  });

  test('a name without a value is refused by name', () => {
    expect(() => evaluate(x.add(y), { variables: { x: 1 } })).toThrow('expr: variable "y" has no value');
    expect(() => evaluate(scale)).toThrow('uniform "scale"');
    expect(() => evaluate(table.at(0))).toThrow('capture "table"');
  });

  test('deep chains do not overflow the stack', () => {
    let e: Expr<'f32'> = x;
    for (let i = 0; i < 20_000; i++) e = e.add(y);
    expect(at(e, { x: 1, y: 0.5 })).toBe(10_001);
    expect(at(derivative(e, 'y'), { x: 1, y: 0.5 })).toBe(20_000);
  });
});

describe('simplification', () => {
  test('neutral and absorbing operands vanish', () => {
    expect(x.add(0)).toBe(x);
    expect(x.mul(1)).toBe(x);
    expect(x.mul(0).payload.value).toBe(0);
    expect(x.sub(x).payload.value).toBe(0);
    expect(x.neg().neg()).toBe(x);
    expect(key(x.add(y.neg()))).toBe(key(x.sub(y)));
    expect(key(x.mul(2).mul(3))).toBe(key(x.mul(6)));
    expect(key(derivative(x.mul(3).add(y), x))).toBe(key(constantOf(3, 'f32')));
  });

  test('integer powers are products and take negative bases', () => {
    expect(at(x.pow(3), { x: -2 })).toBe(-8);
    expect(at(x.pow(-2), { x: -2 })).toBe(0.25);
    expect(at(derivative(x.pow(4), x), { x: -1 })).toBe(-4);
  });

  test('literals that have no value are refused where they are written', () => {
    expect(() => x.add(Number.NaN)).toThrow('NaN');
    expect(() => constantOf(-1, 'f32').log()).toThrow('log of the literals -1');
    expect(() => x.div(0)).toThrow('div by the literal 0');
    expect(() => i32(x).add(0.5)).toThrow('does not fit i32');
    expect(() => x.add(i32(x) as AnyExpr as Expr<'f32'>)).toThrow('add is given f32 and i32');
    expect(() => uniform('no good', 'f32')).toThrow('no WGSL identifier');
  });
});

describe('keys', () => {
  test('equal structures have equal keys however they share nodes', () => {
    const shared = x.add(y);
    expect(key(shared.mul(shared))).toBe(key(x.add(y).mul(x.add(y))));
  });

  test('structure, literals, types and names all reach the key', () => {
    const n = variable('x', 'i32');
    const all: AnyExpr[] = [
      x,
      y,
      n,
      uniform('x', 'f32'),
      x.add(1),
      x.add(2),
      x.sub(1),
      n.add(1),
      table.at(n),
      capture('other', 'f32').at(n),
      n.shr(1),
      n.u32().shr(1),
    ];
    expect(new Set(all.map(key)).size).toBe(all.length);
  });

  test('values of uniforms and captures do not', () => {
    expect(key(uniform('window', 'i32').add(1))).toBe(key(uniform('window', 'i32').add(1)));
  });
});

describe('functions', () => {
  test('expr takes the inputs from the parameters', () => {
    const f = expr((a, b) => a.mul(b).add(scale));
    expect(f.inputs).toEqual([
      { name: 'x0', type: 'f32' },
      { name: 'x1', type: 'f32' },
    ]);
    expect(f.uniforms).toEqual([{ name: 'scale', type: 'f32' }]);
    expect(f.free).toEqual([]);
    expect(compile(f.body, ['x0', 'x1'], environment)(2, 4)).toBe(8.7);
    expect(expr(() => 3).body.payload.value).toBe(3);
    expect(f.key).toBe(expr((first, second) => first.mul(second).add(scale)).key);
    expect(f.key).not.toBe(expr((a, b, _c) => a.mul(b).add(scale)).key);
  });

  test('typedExpr takes other types, and free variables are listed', () => {
    const f = typedExpr(['u32', 'f32'], (i, v) => i.f32().mul(v).add(variable('index', 'u32').f32()));
    expect(f.inputs.map(({ type }) => type)).toEqual(['u32', 'f32']);
    expect(f.free).toEqual([{ name: 'index', type: 'u32' }]);
  });

  test('a raw function brings WGSL, host twin, derivative and captures', () => {
    const cube = rawFunction({
      key: 'cube-plus-table',
      inputs: ['f32'],
      output: 'f32',
      captures: [{ name: 'table', elementType: 'f32', differentiable: false }],
      declarations: 'fn cube(x: f32) -> f32 { return x * x * x; }',
      wgsl: ([a], c) => `cube(${a}) + ${c('table').load('0u')}`,
      js: ([a], { table: t }) => a! ** 3 + t![0]!,
      derivative: ([a]) => [(a as Expr<'f32'>).pow(2).mul(3)],
    });
    const e = cube(x.mul(2));
    expect(at(e, { x: 1 })).toBe(8.3);
    expect(at(derivative(e, x), { x: 1 })).toBe(24);
    expect(toWgsl(e)).toEqual({
      declarations: 'fn cube(x: f32) -> f32 { return x * x * x; }',
      statements: 'let e2: f32 = 2.0 * x;\nlet e3: f32 = cube(e2) + table[0u];',
      result: 'e3',
    });
    expect(freeNames(e).captures.map(({ name }) => name)).toEqual(['table']);
    expect(() => cube(x, y)).toThrow('given 2 operands');
  });

  test('substitution replaces variables and renames uniforms and captures', () => {
    const e = substitute(x.add(scale).mul(table.at(0)), {
      variables: { x: y.mul(2) },
      uniforms: { scale: 'other' },
      captures: { table: 'rows' },
    });
    expect(evaluate(e, { variables: { y: 3 }, uniforms: { other: 1 }, captures: { rows: [10] } })).toBe(70);
    expect(substitute(x.mul(y), { variables: { x: 0 } }).payload.value).toBe(0);
  });
});
