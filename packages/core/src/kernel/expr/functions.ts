import { binary, commonType, compare, constant, lift, make, unary } from './node.js';
import type { AnyExpr, CaptureDeclaration, Expr, ExprType, IntegerType, NumericType, Operand, RawDefinition } from './node.js';
import { HeedError } from '../../errors.js';

// The methods of Expr as free functions, for code that reads better without chains, and the leaves of expressions.

type Float = Expr<'f32'> | number;
type Numeric<T extends NumericType> = Expr<T> | number;

/** A named input. */
export function variable<T extends ExprType>(name: string, type: T): Expr<T> {
  return make('variable', type, [], { name: identifier('variable', name) });
}

/** A run-time scalar: its value is bound at dispatch and is no part of the cache key. */
export function uniform<T extends NumericType>(name: string, type: T): Expr<T> {
  return make('uniform', type, [], { name: identifier('uniform', name) });
}

/** A captured storage array; read elements with `at`. */
export interface Capture<T extends NumericType> extends CaptureDeclaration {
  readonly elementType: T;
  /** The element at an index, which clamps into the array. */
  at(index: Expr<IntegerType> | number): Expr<T>;
}

/**
 * Declare a storage array that expressions read.
 * @param options.differentiable gradients flow into it through `captureDerivative`; f32 only, default false
 */
export function capture<T extends NumericType>(name: string, elementType: T, options: { differentiable?: boolean } = {}): Capture<T> {
  const differentiable = options.differentiable ?? false;
  if (differentiable && elementType !== 'f32') {
    throw new HeedError('DTYPE_MISMATCH', `expr: capture "${name}" is ${elementType} and differentiable; only f32 has gradients`);
  }
  const declaration: CaptureDeclaration = { name: identifier('capture', name), elementType, differentiable };
  return {
    ...declaration,
    elementType,
    at: (index) =>
      make('load', elementType, [typeof index === 'number' ? constant(index, 'u32') : integer(index)], { capture: declaration }),
  };
}

function integer(index: AnyExpr): AnyExpr {
  if (index.type === 'i32' || index.type === 'u32') return index;
  throw new HeedError('DTYPE_MISMATCH', `expr: a capture is indexed by ${index.type}; use an i32 or u32 expression`);
}

function identifier(kind: string, name: string): string {
  if (/^[A-Za-z][A-Za-z0-9_]*$/.test(name) && !name.includes('__')) return name;
  throw new HeedError(
    'INVALID_ARGUMENT',
    `expr: ${kind} "${name}" is no WGSL identifier; use letters, digits and single underscores, a letter first`,
  );
}

/**
 * Raw WGSL as a function of expressions: the escape hatch. `wgsl` gives an expression text from operand names, `js` is its float64
 * twin, `derivative` the partial derivatives as expressions; `key` must change whenever any of them does.
 * @throws HeedError INVALID_ARGUMENT on a wrong number of operands, DTYPE_MISMATCH on a wrong type
 */
export function rawFunction<T extends ExprType>(
  definition: RawDefinition & { readonly output: T },
): (...args: (AnyExpr | number | boolean)[]) => Expr<T> {
  return (...args) => {
    if (args.length !== definition.inputs.length) {
      throw new HeedError(
        'INVALID_ARGUMENT',
        `expr: raw function "${definition.key}" is given ${args.length} operands; it takes ${definition.inputs.length}`,
      );
    }
    return make(
      'raw',
      definition.output,
      args.map((arg, i) => lift(arg, definition.inputs[i]!)),
      { raw: definition },
    );
  };
}

export function f32(value: AnyExpr | number): Expr<'f32'> {
  return typeof value === 'number' ? constant(value, 'f32') : value.f32();
}
export function i32(value: AnyExpr | number): Expr<'i32'> {
  return typeof value === 'number' ? constant(value, 'i32') : value.i32();
}
export function u32(value: AnyExpr | number): Expr<'u32'> {
  return typeof value === 'number' ? constant(value, 'u32') : value.u32();
}
/** A boolean literal. */
export function bool(value: boolean): Expr<'bool'> {
  return constant(value, 'bool');
}

export function add<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('add', a, b) as AnyExpr as Expr<T>;
}
export function sub<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('sub', a, b) as AnyExpr as Expr<T>;
}
export function mul<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('mul', a, b) as AnyExpr as Expr<T>;
}
/** Quotient; integers truncate towards zero and division by zero gives the dividend. */
export function div<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('div', a, b) as AnyExpr as Expr<T>;
}
/** Floats: x - y floor(x / y). Integers: Euclidean, in [0, |y|). */
export function mod<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('mod', a, b) as AnyExpr as Expr<T>;
}
export function min<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('min', a, b) as AnyExpr as Expr<T>;
}
export function max<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<T> {
  return binary('max', a, b) as AnyExpr as Expr<T>;
}
export function pow(a: Float, b: Float): Expr<'f32'> {
  return binary('pow', a, b) as Expr<'f32'>;
}
export function clamp<T extends NumericType>(x: Expr<T>, low: Numeric<T>, high: Numeric<T>): Expr<T> {
  return make('clamp', x.type, [x, lift(low, x.type), lift(high, x.type)]);
}

export function neg<T extends 'f32' | 'i32'>(x: Expr<T>): Expr<T> {
  return unary('neg', x);
}
export function abs<T extends NumericType>(x: Expr<T>): Expr<T> {
  return unary('abs', x);
}
export function sign<T extends 'f32' | 'i32'>(x: Expr<T>): Expr<T> {
  return unary('sign', x);
}
export function floor(x: Float): Expr<'f32'> {
  return f32(x).floor();
}
export function ceil(x: Float): Expr<'f32'> {
  return f32(x).ceil();
}
export function round(x: Float): Expr<'f32'> {
  return f32(x).round();
}
export function fract(x: Float): Expr<'f32'> {
  return f32(x).fract();
}
export function sqrt(x: Float): Expr<'f32'> {
  return f32(x).sqrt();
}
export function inverseSqrt(x: Float): Expr<'f32'> {
  return f32(x).inverseSqrt();
}
export function exp(x: Float): Expr<'f32'> {
  return f32(x).exp();
}
export function exp2(x: Float): Expr<'f32'> {
  return f32(x).exp2();
}
export function log(x: Float): Expr<'f32'> {
  return f32(x).log();
}
export function log2(x: Float): Expr<'f32'> {
  return f32(x).log2();
}
export function sin(x: Float): Expr<'f32'> {
  return f32(x).sin();
}
export function cos(x: Float): Expr<'f32'> {
  return f32(x).cos();
}
export function tanh(x: Float): Expr<'f32'> {
  return f32(x).tanh();
}
export function erf(x: Float): Expr<'f32'> {
  return f32(x).erf();
}
export function sigmoid(x: Float): Expr<'f32'> {
  return f32(x).sigmoid();
}
export function softplus(x: Float): Expr<'f32'> {
  return f32(x).softplus();
}
export function logSigmoid(x: Float): Expr<'f32'> {
  return f32(x).logSigmoid();
}

export function eq(a: AnyExpr | number | boolean, b: AnyExpr | number | boolean): Expr<'bool'> {
  return compare('eq', a, b);
}
export function ne(a: AnyExpr | number | boolean, b: AnyExpr | number | boolean): Expr<'bool'> {
  return compare('ne', a, b);
}
export function lt<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<'bool'> {
  return compare('lt', a, b);
}
export function le<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<'bool'> {
  return compare('le', a, b);
}
export function gt<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<'bool'> {
  return compare('gt', a, b);
}
export function ge<T extends NumericType>(a: Numeric<T>, b: Numeric<T>): Expr<'bool'> {
  return compare('ge', a, b);
}

export function and<T extends 'bool' | IntegerType>(a: Operand<T>, b: Operand<T>): Expr<T> {
  return binary('and', a, b) as AnyExpr as Expr<T>;
}
export function or<T extends 'bool' | IntegerType>(a: Operand<T>, b: Operand<T>): Expr<T> {
  return binary('or', a, b) as AnyExpr as Expr<T>;
}
export function xor<T extends 'bool' | IntegerType>(a: Operand<T>, b: Operand<T>): Expr<T> {
  return binary('xor', a, b) as AnyExpr as Expr<T>;
}
export function not<T extends 'bool' | IntegerType>(a: Expr<T>): Expr<T> {
  return unary('not', a);
}
export function shl<T extends IntegerType>(a: Expr<T>, bits: Expr<'u32'> | number): Expr<T> {
  return make('shl', a.type, [a, lift(bits, 'u32')]);
}
export function shr<T extends IntegerType>(a: Expr<T>, bits: Expr<'u32'> | number): Expr<T> {
  return make('shr', a.type, [a, lift(bits, 'u32')]);
}
export function popcount<T extends IntegerType>(a: Expr<T>): Expr<T> {
  return unary('popcount', a);
}
/** `whenTrue` where the condition holds, else `whenFalse`. */
export function select<T extends ExprType>(condition: Expr<'bool'>, whenTrue: Operand<T>, whenFalse: Operand<T>): Expr<T> {
  const type = commonType(whenTrue, whenFalse);
  return make('select', type, [lift(condition, 'bool'), lift(whenTrue, type), lift(whenFalse, type)]) as AnyExpr as Expr<T>;
}
export function bitcast<T extends NumericType>(x: Expr<NumericType>, type: T): Expr<T> {
  return x.bitcast(type);
}
