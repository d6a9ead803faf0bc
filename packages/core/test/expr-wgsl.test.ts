import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { derivative, literal, toWgsl, variable } from '../src/kernel/expr/index.js';
import { erf } from '../src/kernel/expr/semantics.js';
import { floats, integers, scale, table, x } from './expr-arbitrary.js';
import type { AnyExpr, Expr } from '../src/kernel/expr/index.js';

describe('WGSL', () => {
  test('text is balanced, bound once and free of infinities for random expressions', () => {
    fc.assert(
      fc.property(
        fc.oneof<fc.Arbitrary<AnyExpr>[]>(
          floats(true),
          integers,
          floats(false).map((e) => derivative(e, x)),
        ),
        (e) => {
          const { statements, result, declarations } = toWgsl(e);
          const text = `${statements}\n${result}`;
          expect(declarations).toBe('');
          expect(text).not.toMatch(/NaN|Infinity|undefined|null|- -|--/i);
          expect(text.split('(').length).toBe(text.split(')').length);
          const names = [...statements.matchAll(/^let (\w+): (?:f32|i32|u32|bool) = .*;$/gm)].map((m) => m[1]);
          expect(names.length).toBe(statements === '' ? 0 : statements.split('\n').length);
          expect(new Set(names).size).toBe(names.length);
          // Every generated name is bound before it is used.
          const bound = new Set<string>();
          for (const line of text.split('\n')) {
            const [, name, body = line] = /^let (\w+): \w+ = (.*);$/.exec(line) ?? [];
            for (const [used] of body.matchAll(/\be\d+\w?\b/g)) expect(bound.has(used)).toBe(true);
            if (name !== undefined) bound.add(name);
          }
        },
      ),
      { seed: 4, numRuns: 600 },
    );
  });

  test('thirty squarings make thirty bindings', () => {
    let e: Expr<'f32'> = x;
    for (let i = 0; i < 30; i++) e = e.mul(e);
    expect(toWgsl(e).statements.split('\n')).toHaveLength(30);
  });

  test('literals carry their type and stay finite', () => {
    expect([literal(1, 'f32'), literal(-0.5, 'f32'), literal(-0, 'f32'), literal(0.1, 'f32')]).toEqual([
      '1.0',
      '(-0.5)',
      '(-0.0)',
      '0.10000000149011612',
    ]);
    expect([literal(7, 'u32'), literal(-7, 'i32'), literal(-(2 ** 31), 'i32'), literal(1, 'bool')]).toEqual([
      '7u',
      '(-7i)',
      'i32(-2147483648)',
      'true',
    ]);
    expect(toWgsl(x.min(Infinity)).statements).toContain('min(x, 3.4028234663852886e+38)');
  });

  test('names, uniforms and captures are spelt as the kernel wants', () => {
    const e = table.at(variable('i', 'i32')).mul(scale).add(x);
    expect(toWgsl(e)).toEqual({
      declarations: '',
      statements:
        'let e1: f32 = table[min(u32(max(i, 0i)), arrayLength(&table) - 1u)];\nlet e3: f32 = uniforms.scale * e1;\nlet e5: f32 = e3 + x;'.replace(
          'uniforms.scale * e1',
          'e1 * uniforms.scale',
        ),
      result: 'e5',
    });
    const packed = toWgsl(e, {
      prefix: 's',
      variable: (name) => `v_${name}`,
      uniform: (name) => `u.${name}`,
      capture: ({ name }) => ({ length: `u.${name}_length`, load: (index) => `bitcast<f32>(arena[u.${name}_base + ${index}])` }),
    });
    expect(packed.statements.split('\n')[0]).toBe(
      'let s1: f32 = bitcast<f32>(arena[u.table_base + min(u32(max(v_i, 0i)), u.table_length - 1u)]);',
    );
  });

  test('f32 arithmetic of the emitted tanh, erf, sin and softplus stays within the stated errors', () => {
    const cases: [Expr<'f32'>, (v: number) => number, number, number][] = [
      [x.tanh(), Math.tanh, 12, 4e-7],
      [x.erf(), erf, 6, 2e-7],
      [x.sin(), Math.sin, 40_000, 2e-7],
      [x.cos(), Math.cos, 40_000, 2e-7],
    ];
    for (const [e, want, range, bound] of cases) {
      const f = f32Twin(toWgsl(e));
      for (let i = 0; i <= 4000; i++) {
        const v = Math.fround((i / 2000 - 1) * range);
        expect(Math.abs(f(v) - want(v))).toBeLessThan(bound);
      }
    }
    const softplus = f32Twin(toWgsl(x.softplus()));
    for (let v = -60; v < 60; v += 0.37) {
      const want = Math.max(v, 0) + Math.log1p(Math.exp(-Math.abs(v)));
      expect(Math.abs(softplus(Math.fround(v)) - want) / want).toBeLessThan(6e-6);
    }
  });
});

/** Runs the emitted straight-line text in f32: every operation rounded. Tests only; the library never evaluates text. */
function f32Twin({ statements, result }: { statements: string; result: string }): (x: number) => number {
  const lines = statements.split('\n').map((line) => {
    const [, name, type, body] = /^let (\w+): (\w+) = (.*);$/.exec(line)!;
    const parsed = body!.replaceAll(/(\d)i\b/g, '$1');
    return `const ${name} = ${type === 'f32' ? rounded(parsed) : parsed};`;
  });
  return new Function(
    'x',
    `const f=Math.fround,{min,max,abs,sign,round}=Math,exp=(v)=>f(Math.exp(v)),clamp=(v,a,b)=>min(max(v,a),b),
    select=(a,b,c)=>c?b:a,i32=Math.trunc;${lines.join('')}return ${result};`,
  ) as (x: number) => number;
}

/** Put Math.fround around every sum, product and quotient of a float expression. */
function rounded(text: string): string {
  let at = 0;
  const tokens = [...text.matchAll(/\d+\.?\d*(?:e[+-]?\d+)?|\w+|[-+*/(),<>=&]+?(?![=&])|&&|==|>=|<=|[<>]/g)].map((m) => m[0]);
  const peek = (): string => tokens[at] ?? '';
  const primary = (): string => {
    const token = tokens[at++]!;
    if (token === '-') return `(-${primary()})`;
    if (token === '(') {
      const inner = compare();
      at++;
      return `(${inner})`;
    }
    if (/^\d/.test(token)) return `f(${token})`;
    if (peek() !== '(') return token;
    at++;
    const args = [compare()];
    while (peek() === ',') {
      at++;
      args.push(compare());
    }
    at++;
    return `${token}(${args.join(',')})`;
  };
  const level =
    (ops: string[], below: () => string, wrap: boolean): (() => string) =>
    () => {
      let left = below();
      while (ops.includes(peek())) {
        const op = tokens[at++]!;
        left = wrap ? `f(${left}${op}${below()})` : `(${left}${op}${below()})`;
      }
      return left;
    };
  const compare = level(
    ['<', '>', '>=', '<=', '=='],
    level(['&'], level(['+', '-'], level(['*', '/'], primary, true), true), false),
    false,
  );
  return compare();
}
