import { HeedError } from '../../errors.js';
import { freeNames, key } from './graph.js';
import { Expr, constant } from './node.js';
import { variable } from './functions.js';
import type { Named } from './graph.js';
import type { CaptureDeclaration, ExprType, NumericType } from './node.js';

/** A pointwise function: an expression of ordered inputs. */
export interface ExprFunction<T extends ExprType = 'f32'> {
  /** The inputs, in the order of the parameters. */
  readonly inputs: readonly Named[];
  readonly body: Expr<T>;
  /** Variables of the body that are no inputs: names that the kernel around it provides. */
  readonly free: readonly Named[];
  readonly uniforms: readonly Named<NumericType>[];
  readonly captures: readonly CaptureDeclaration[];
  /** Structural cache key; covers inputs and body, no run-time value. */
  readonly key: string;
}

type Inputs<T extends readonly ExprType[]> = { [I in keyof T]: Expr<T[I]> };

/**
 * A function of float inputs written as a lambda over expressions: `expr((x, y) => x.mul(y).sigmoid())`.
 * Inputs are named x0, x1, ... by position, so minified code gives the same keys.
 * Default and rest parameters do not count as inputs; use `typedExpr` for those.
 * @throws HeedError INVALID_ARGUMENT when the lambda returns no expression
 */
export function expr<T extends ExprType = 'f32'>(body: (...inputs: Expr<'f32'>[]) => Expr<T> | number): ExprFunction<T> {
  return typedExpr(
    Array.from({ length: body.length }, () => 'f32' as const),
    body,
  );
}

/** As `expr` with inputs of the given types: `typedExpr(['f32', 'u32'], (x, i) => ...)`. */
export function typedExpr<const I extends readonly ExprType[], T extends ExprType = 'f32'>(
  types: I,
  body: (...inputs: Inputs<I>) => Expr<T> | number,
): ExprFunction<T> {
  const inputs = types.map((type, i): Named => ({ name: `x${i}`, type }));
  const value = body(...(inputs.map(({ name, type }) => variable(name, type)) as unknown as Inputs<I>));
  if (value === undefined || (typeof value !== 'number' && !(value instanceof Expr))) {
    throw new HeedError('INVALID_ARGUMENT', `expr: the function returns ${String(value)}; return an expression or a number`);
  }
  return exprFunction(inputs, typeof value === 'number' ? (constant(value, 'f32') as Expr<ExprType> as Expr<T>) : value);
}

/** A pointwise function from an expression and the variables that are its inputs. */
export function exprFunction<T extends ExprType>(inputs: readonly Named[], body: Expr<T>): ExprFunction<T> {
  const { variables, uniforms, captures } = freeNames(body);
  const free = variables.filter(({ name }) => !inputs.some((input) => input.name === name));
  const signature = inputs.map(({ name, type }) => `${name}-${type}`).join('-');
  return { inputs, body, free, uniforms, captures, key: `${signature}-${key(body)}` };
}
