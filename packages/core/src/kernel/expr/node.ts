import { HeedError } from '../../errors.js';
import { simplified } from './simplify.js';

export type ExprType = 'f32' | 'i32' | 'u32' | 'bool';
export type NumericType = 'f32' | 'i32' | 'u32';
export type IntegerType = 'i32' | 'u32';

/** An operand: an expression, or a literal that takes the type of the other operand. */
export type Operand<T extends ExprType> = Expr<T> | (T extends 'bool' ? boolean : number);
/** An expression of whatever type. */
export type AnyExpr = Expr<ExprType>;

export type UnaryOp =
  | 'neg'
  | 'abs'
  | 'sign'
  | 'floor'
  | 'ceil'
  | 'round'
  | 'fract'
  | 'sqrt'
  | 'inverseSqrt'
  | 'exp'
  | 'exp2'
  | 'log'
  | 'log2'
  | 'sin'
  | 'cos'
  | 'tanh'
  | 'erf'
  | 'sigmoid'
  | 'softplus'
  | 'not'
  | 'popcount';
export type CompareOp = 'eq' | 'ne' | 'lt' | 'le' | 'gt' | 'ge';
export type BinaryOp = 'add' | 'sub' | 'mul' | 'div' | 'mod' | 'min' | 'max' | 'pow' | 'and' | 'or' | 'xor' | 'shl' | 'shr' | CompareOp;
export type Op = 'const' | 'variable' | 'uniform' | 'load' | 'raw' | UnaryOp | BinaryOp | 'clamp' | 'select' | 'cast' | 'bitcast';

/** A storage array that an expression reads by element. */
export interface CaptureDeclaration {
  readonly name: string;
  readonly elementType: NumericType;
  /** Whether gradients flow into the array (f32 only). */
  readonly differentiable: boolean;
}

/** How WGSL reads a captured array: `length` is a u32 expression, `load` takes a u32 index below it. */
export interface WgslCapture {
  readonly length: string;
  readonly load: (index: string) => string;
}

/** Raw WGSL with its float64 twin; see `rawFunction`. */
export interface RawDefinition {
  readonly key: string;
  readonly inputs: readonly ExprType[];
  readonly output: ExprType;
  readonly wgsl: (args: readonly string[], capture: (name: string) => WgslCapture) => string;
  readonly declarations?: string;
  readonly js: (args: readonly number[], captures: Readonly<Record<string, ArrayLike<number>>>) => number;
  readonly derivative?: (args: readonly AnyExpr[]) => readonly (Expr<'f32'> | undefined)[];
  readonly captures?: readonly CaptureDeclaration[];
}

/** What a node carries beside its operands. */
export interface Payload {
  readonly value?: number;
  readonly name?: string;
  readonly capture?: CaptureDeclaration;
  readonly raw?: RawDefinition;
}

const MAX_F32 = 3.4028234663852886e38;

/**
 * A node of a typed expression; immutable. Methods build larger expressions; the free functions of the same names do the same.
 * Booleans are 0 and 1 on the host. Integers have the wrap-around of WGSL, floats are float64 on the host and f32 on the device.
 */
export class Expr<T extends ExprType> {
  readonly op: Op;
  readonly type: T;
  readonly args: readonly AnyExpr[];
  readonly payload: Payload;

  constructor(op: Op, type: T, args: readonly AnyExpr[], payload: Payload = {}) {
    this.op = op;
    this.type = type;
    this.args = args;
    this.payload = payload;
  }

  add(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('add', this, other) as Expr<T>;
  }
  sub(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('sub', this, other) as Expr<T>;
  }
  mul(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('mul', this, other) as Expr<T>;
  }
  /** Quotient; integers truncate towards zero and division by zero gives the dividend, as in WGSL. */
  div(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('div', this, other) as Expr<T>;
  }
  /** Floats: x - y floor(x / y), sign of y. Integers: Euclidean, in [0, |y|); modulo zero gives 0. */
  mod(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('mod', this, other) as Expr<T>;
  }
  min(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('min', this, other) as Expr<T>;
  }
  max(this: Expr<NumericType>, other: Expr<T> | number): Expr<T> {
    return binary('max', this, other) as Expr<T>;
  }
  /** Power. A constant integer exponent up to 16 in size takes any base; otherwise a base <= 0 gives 0 (1 for exponent 0). */
  pow(this: Expr<'f32'>, other: Expr<'f32'> | number): Expr<'f32'> {
    return binary('pow', this, other) as Expr<'f32'>;
  }
  /** Into [low, high]; the derivative is 1 on the borders, too. */
  clamp(this: Expr<NumericType>, low: Expr<T> | number, high: Expr<T> | number): Expr<T> {
    return make('clamp', this.type, [this, lift(low, this.type), lift(high, this.type)]) as Expr<ExprType> as Expr<T>;
  }

  neg(this: Expr<'f32' | 'i32'>): Expr<T> {
    return unary('neg', this) as Expr<ExprType> as Expr<T>;
  }
  abs(this: Expr<NumericType>): Expr<T> {
    return unary('abs', this) as Expr<ExprType> as Expr<T>;
  }
  sign(this: Expr<'f32' | 'i32'>): Expr<T> {
    return unary('sign', this) as Expr<ExprType> as Expr<T>;
  }
  floor(this: Expr<'f32'>): Expr<'f32'> {
    return unary('floor', this);
  }
  ceil(this: Expr<'f32'>): Expr<'f32'> {
    return unary('ceil', this);
  }
  /** To the nearest integer, ties to even. */
  round(this: Expr<'f32'>): Expr<'f32'> {
    return unary('round', this);
  }
  fract(this: Expr<'f32'>): Expr<'f32'> {
    return unary('fract', this);
  }
  sqrt(this: Expr<'f32'>): Expr<'f32'> {
    return unary('sqrt', this);
  }
  inverseSqrt(this: Expr<'f32'>): Expr<'f32'> {
    return unary('inverseSqrt', this);
  }
  exp(this: Expr<'f32'>): Expr<'f32'> {
    return unary('exp', this);
  }
  exp2(this: Expr<'f32'>): Expr<'f32'> {
    return unary('exp2', this);
  }
  log(this: Expr<'f32'>): Expr<'f32'> {
    return unary('log', this);
  }
  log2(this: Expr<'f32'>): Expr<'f32'> {
    return unary('log2', this);
  }
  sin(this: Expr<'f32'>): Expr<'f32'> {
    return unary('sin', this);
  }
  cos(this: Expr<'f32'>): Expr<'f32'> {
    return unary('cos', this);
  }
  tanh(this: Expr<'f32'>): Expr<'f32'> {
    return unary('tanh', this);
  }
  erf(this: Expr<'f32'>): Expr<'f32'> {
    return unary('erf', this);
  }
  sigmoid(this: Expr<'f32'>): Expr<'f32'> {
    return unary('sigmoid', this);
  }
  softplus(this: Expr<'f32'>): Expr<'f32'> {
    return unary('softplus', this);
  }
  logSigmoid(this: Expr<'f32'>): Expr<'f32'> {
    return unary('neg', unary('softplus', unary('neg', this)));
  }

  eq(other: Operand<T>): Expr<'bool'> {
    return compare('eq', this, other);
  }
  ne(other: Operand<T>): Expr<'bool'> {
    return compare('ne', this, other);
  }
  lt(this: Expr<NumericType>, other: Expr<T> | number): Expr<'bool'> {
    return compare('lt', this, other);
  }
  le(this: Expr<NumericType>, other: Expr<T> | number): Expr<'bool'> {
    return compare('le', this, other);
  }
  gt(this: Expr<NumericType>, other: Expr<T> | number): Expr<'bool'> {
    return compare('gt', this, other);
  }
  ge(this: Expr<NumericType>, other: Expr<T> | number): Expr<'bool'> {
    return compare('ge', this, other);
  }

  /** Logical on bool, bitwise on integers. */
  and(this: Expr<'bool' | IntegerType>, other: Operand<T>): Expr<T> {
    return binary('and', this, other) as Expr<T>;
  }
  or(this: Expr<'bool' | IntegerType>, other: Operand<T>): Expr<T> {
    return binary('or', this, other) as Expr<T>;
  }
  xor(this: Expr<'bool' | IntegerType>, other: Operand<T>): Expr<T> {
    return binary('xor', this, other) as Expr<T>;
  }
  not(this: Expr<'bool' | IntegerType>): Expr<T> {
    return unary('not', this) as Expr<ExprType> as Expr<T>;
  }
  /** Shift by the low five bits of the other operand; `shr` of i32 keeps the sign. */
  shl(this: Expr<IntegerType>, bits: Expr<'u32'> | number): Expr<T> {
    return make('shl', this.type, [this, lift(bits, 'u32')]) as Expr<ExprType> as Expr<T>;
  }
  shr(this: Expr<IntegerType>, bits: Expr<'u32'> | number): Expr<T> {
    return make('shr', this.type, [this, lift(bits, 'u32')]) as Expr<ExprType> as Expr<T>;
  }
  popcount(this: Expr<IntegerType>): Expr<T> {
    return unary('popcount', this) as Expr<ExprType> as Expr<T>;
  }

  /** `whenTrue` where this is true, else `whenFalse`; two literals are f32. */
  select<U extends ExprType>(this: Expr<'bool'>, whenTrue: Operand<U>, whenFalse: Operand<U>): Expr<U> {
    const type = commonType(whenTrue, whenFalse);
    return make('select', type, [this, lift(whenTrue, type), lift(whenFalse, type)]) as AnyExpr as Expr<U>;
  }

  /** Conversion to float. */
  f32(): Expr<'f32'> {
    return cast(this, 'f32');
  }
  /** Conversion to i32: floats truncate and saturate, u32 keeps its bits. */
  i32(): Expr<'i32'> {
    return cast(this, 'i32');
  }
  /** Conversion to u32: floats truncate and saturate, i32 keeps its bits. */
  u32(): Expr<'u32'> {
    return cast(this, 'u32');
  }
  /** The same 32 bits read as another type. */
  bitcast<U extends NumericType>(this: Expr<NumericType>, type: U): Expr<U> {
    return (this.type as ExprType) === type ? (this as AnyExpr as Expr<U>) : make('bitcast', type, [this]);
  }
}

function describe(value: AnyExpr | number | boolean): string {
  return value instanceof Expr ? value.type : typeof value === 'number' ? `the literal ${value}` : String(value);
}

/** The type of two operands of which at most one is a literal; two numbers are f32, two booleans bool. */
export function commonType(a: AnyExpr | number | boolean, b: AnyExpr | number | boolean): ExprType {
  if (a instanceof Expr) return a.type;
  if (b instanceof Expr) return b.type;
  return typeof a === 'boolean' ? 'bool' : 'f32';
}

/**
 * An operand as an expression of the wanted type.
 * @throws HeedError DTYPE_MISMATCH when an expression has another type, INVALID_ARGUMENT for a literal that the type cannot hold
 */
export function lift<T extends ExprType>(value: AnyExpr | number | boolean, type: T): Expr<T> {
  if (value instanceof Expr) {
    if (value.type === type) return value as AnyExpr as Expr<T>;
    throw new HeedError(
      'DTYPE_MISMATCH',
      `expr: an operand is ${value.type} where ${type} is expected; convert it with .${type === 'bool' ? 'ne(0)' : `${type}()`}`,
    );
  }
  return constant(value, type);
}

/**
 * A literal. Floats beyond the range of f32 become its largest finite number: WGSL has no infinities.
 * @throws HeedError INVALID_ARGUMENT for NaN, or an integer out of range or with a fraction
 */
export function constant<T extends ExprType>(value: number | boolean, type: T): Expr<T> {
  if (typeof value === 'boolean' ? type !== 'bool' : type === 'bool' && value !== 0 && value !== 1) {
    throw new HeedError('INVALID_ARGUMENT', `expr: the literal ${value} is not a ${type}; use a ${type === 'bool' ? 'boolean' : 'number'}`);
  }
  let number = Number(value);
  if (type === 'f32') {
    if (Number.isNaN(number)) throw new HeedError('INVALID_ARGUMENT', 'expr: a literal is NaN; WGSL has no NaN, use a finite number');
    number = Math.min(MAX_F32, Math.max(-MAX_F32, number));
  } else if (type !== 'bool') {
    const [low, high] = type === 'i32' ? [-(2 ** 31), 2 ** 31 - 1] : [0, 2 ** 32 - 1];
    if (!Number.isInteger(number) || number < low || number > high) {
      throw new HeedError('INVALID_ARGUMENT', `expr: the literal ${number} does not fit ${type}; use an integer in [${low}, ${high}]`);
    }
    number = number === 0 ? 0 : number;
  }
  return new Expr('const', type, [], { value: number });
}

/** A node, simplified. Types must be right already. */
export function make<T extends ExprType>(op: Op, type: T, args: readonly AnyExpr[], payload: Payload = {}): Expr<T> {
  return (simplified(op, type, args, { constant, make }) ?? new Expr(op, type, args, payload)) as AnyExpr as Expr<T>;
}

export function unary<T extends ExprType>(op: UnaryOp, a: Expr<T>): Expr<T> {
  return make(op, a.type, [a]);
}

/** A binary node; a literal takes the type of the other operand. */
export function binary(op: BinaryOp, a: AnyExpr | number | boolean, b: AnyExpr | number | boolean): AnyExpr {
  const type = commonType(a, b);
  return make(op, type, [lift(a, type), sameType(op, b, type)]);
}

export function compare(op: CompareOp, a: AnyExpr | number | boolean, b: AnyExpr | number | boolean): Expr<'bool'> {
  const type = commonType(a, b);
  return make(op, 'bool', [lift(a, type), sameType(op, b, type)]);
}

function sameType(op: string, b: AnyExpr | number | boolean, type: ExprType): AnyExpr {
  if (b instanceof Expr && b.type !== type) {
    throw new HeedError(
      'DTYPE_MISMATCH',
      `expr: ${op} is given ${type} and ${describe(b)}; both must have one type, convert with .f32(), .i32() or .u32()`,
    );
  }
  return lift(b, type);
}

function cast<T extends NumericType>(e: AnyExpr, type: T): Expr<T> {
  return e.type === type ? (e as AnyExpr as Expr<T>) : make('cast', type, [e]);
}
