import { HeedError } from '../../errors.js';
import { convert, hostFunction, reinterpret } from './semantics.js';
import type { AnyExpr, Expr, ExprType, Op } from './node.js';

// Local rewriting as nodes are built: constants fold, neutral and absorbing operands vanish. Derivatives stay small by this alone.
// x * 0 is 0 whatever x is: WGSL may assume finite numbers, so nothing is lost.

/** How this file builds nodes without importing the class that calls it. */
interface Factory {
  constant<T extends ExprType>(value: number | boolean, type: T): Expr<T>;
  make<T extends ExprType>(op: Op, type: T, args: readonly AnyExpr[]): Expr<T>;
}

const isConst = (e: AnyExpr): boolean => e.op === 'const';
const isValue = (e: AnyExpr, value: number): boolean => e.op === 'const' && e.payload.value === value;
const LEAVES: ReadonlySet<Op> = new Set(['const', 'variable', 'uniform', 'load', 'raw']);

/** The simpler form of a node about to be built, or undefined when it has none. */
export function simplified(op: Op, type: ExprType, args: readonly AnyExpr[], factory: Factory): AnyExpr | undefined {
  if (LEAVES.has(op)) return undefined;
  const [a, b, c] = args;
  if (a === undefined) return undefined;
  checkOperation(op, a.type);
  if (b !== undefined && isValue(b, 0) && (op === 'div' || op === 'mod')) {
    // WGSL refuses a literal zero divisor of integers, though division by a run-time zero is defined: give that value here.
    if (type !== 'f32') return op === 'div' ? a : factory.constant(0, type);
    throw new HeedError('INVALID_ARGUMENT', `expr: ${op} by the literal 0; use a divisor other than zero`);
  }
  if (args.every(isConst)) return folded(op, type, args, factory);
  if (op === 'select') return simplerSelect(type, a, b!, c!, factory);
  if (b === undefined) return simplerUnary(op, type, a, factory);
  if (type === 'bool') return simplerBool(op, a, b, factory);
  return simplerArithmetic(op, type, a, b, factory);
}

function checkOperation(op: Op, type: ExprType): void {
  if (op === 'cast' || op === 'bitcast' || op === 'select') return;
  if (hostFunction(op, type) === undefined) {
    throw new HeedError('DTYPE_MISMATCH', `expr: ${op} has no form for ${type}; convert the operand with .f32(), .i32() or .u32()`);
  }
}

function folded(op: Op, type: ExprType, args: readonly AnyExpr[], factory: Factory): AnyExpr {
  const values = args.map((e) => e.payload.value ?? 0);
  const [a = 0, b = 0, c = 0] = values;
  const from = args[0]!.type;
  let value: number;
  if (op === 'cast') value = convert(a, from, type);
  else if (op === 'bitcast') value = reinterpret(a, from, type);
  else if (op === 'select') value = a !== 0 ? b : c;
  else if (op === 'pow' && Number.isInteger(b) && Math.abs(b) <= 16) value = a ** b;
  else value = hostFunction(op, from)!(a, b, c);
  if (Number.isNaN(value)) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `expr: ${op} of the literals ${values.join(', ')} is not a number; keep its operands in the domain`,
    );
  }
  return factory.constant(value, type);
}

function simplerSelect(type: ExprType, condition: AnyExpr, whenTrue: AnyExpr, whenFalse: AnyExpr, factory: Factory): AnyExpr | undefined {
  if (isConst(condition)) return isValue(condition, 1) ? whenTrue : whenFalse;
  if (same(whenTrue, whenFalse)) return whenTrue;
  if (condition.op === 'not') return factory.make('select', type, [condition.args[0]!, whenFalse, whenTrue]);
  if (type === 'bool' && isValue(whenTrue, 1) && isValue(whenFalse, 0)) return condition;
  return undefined;
}

function simplerUnary(op: Op, type: ExprType, a: AnyExpr, factory: Factory): AnyExpr | undefined {
  if (op === 'neg') {
    if (a.op === 'neg') return a.args[0];
    if (a.op === 'sub') return factory.make('sub', type, [a.args[1]!, a.args[0]!]);
  }
  if (op === 'not' && a.op === 'not') return a.args[0];
  if ((op === 'floor' || op === 'ceil' || op === 'round') && (a.op === 'floor' || a.op === 'ceil' || a.op === 'round')) return a;
  if (op === 'abs' && a.op === 'abs') return a;
  return undefined;
}

function simplerBool(op: Op, a: AnyExpr, b: AnyExpr, factory: Factory): AnyExpr | undefined {
  if (op === 'and' || op === 'or') {
    const neutral = op === 'and' ? 1 : 0;
    if (isValue(a, neutral)) return b;
    if (isValue(b, neutral)) return a;
    if (isConst(a)) return a;
    if (isConst(b)) return b;
    if (a === b) return a;
  }
  if (a === b && (op === 'eq' || op === 'le' || op === 'ge')) return factory.constant(true, 'bool');
  if (a === b && (op === 'ne' || op === 'lt' || op === 'gt' || op === 'xor')) return factory.constant(false, 'bool');
  return undefined;
}

function simplerArithmetic(op: Op, type: ExprType, a: AnyExpr, b: AnyExpr, factory: Factory): AnyExpr | undefined {
  const zero = (): AnyExpr => factory.constant(0, type);
  switch (op) {
    case 'add':
      if (isValue(a, 0)) return b;
      if (isValue(b, 0)) return a;
      if (b.op === 'neg') return factory.make('sub', type, [a, b.args[0]!]);
      if (a.op === 'neg') return factory.make('sub', type, [b, a.args[0]!]);
      return undefined;
    case 'sub':
      if (isValue(b, 0)) return a;
      if (a === b) return zero();
      if (isValue(a, 0) && type !== 'u32') return factory.make('neg', type, [b]);
      if (b.op === 'neg') return factory.make('add', type, [a, b.args[0]!]);
      return undefined;
    case 'mul':
      return simplerProduct(type, a, b, factory);
    case 'div':
      if (isValue(b, 1)) return a;
      if (isValue(a, 0)) return zero();
      if (type === 'f32' && isValue(b, -1)) return factory.make('neg', type, [a]);
      if (a.op === 'neg' && type === 'f32') return factory.make('neg', type, [factory.make('div', type, [a.args[0]!, b])]);
      return undefined;
    case 'mod':
      return isValue(b, 1) && type !== 'f32' ? zero() : undefined;
    case 'min':
    case 'max':
      return same(a, b) ? a : undefined;
    case 'pow':
      return simplerPower(a, b, factory);
    case 'and':
      return isValue(a, 0) || isValue(b, 0) ? zero() : undefined;
    case 'or':
    case 'xor':
      return isValue(a, 0) ? b : isValue(b, 0) ? a : undefined;
    case 'shl':
    case 'shr':
      return isValue(b, 0) ? a : undefined;
    default:
      return undefined;
  }
}

function simplerProduct(type: ExprType, a: AnyExpr, b: AnyExpr, factory: Factory): AnyExpr | undefined {
  if (isValue(a, 0) || isValue(b, 0)) return factory.constant(0, type);
  if (isValue(a, 1)) return b;
  if (isValue(b, 1)) return a;
  if (type === 'u32') return undefined;
  if (isConst(b)) return factory.make('mul', type, [b, a]);
  if (isValue(a, -1)) return factory.make('neg', type, [b]);
  if (isConst(a) && b.op === 'mul' && isConst(b.args[0]!)) {
    return factory.make('mul', type, [factory.make('mul', type, [a, b.args[0]!]), b.args[1]!]);
  }
  if (isConst(a) && b.op === 'neg') return factory.make('mul', type, [factory.make('neg', type, [a]), b.args[0]!]);
  if (a.op === 'neg') return factory.make('neg', type, [factory.make('mul', type, [a.args[0]!, b])]);
  if (b.op === 'neg') return factory.make('neg', type, [factory.make('mul', type, [a, b.args[0]!])]);
  return undefined;
}

/** A constant integer exponent becomes products, which are right for negative bases, too; 0.5 and -0.5 become roots. */
function simplerPower(a: AnyExpr, b: AnyExpr, factory: Factory): AnyExpr | undefined {
  const exponent = b.payload.value;
  if (b.op !== 'const' || exponent === undefined) return undefined;
  if (exponent === 0.5) return factory.make('sqrt', 'f32', [a]);
  if (exponent === -0.5) return factory.make('inverseSqrt', 'f32', [a]);
  if (!Number.isInteger(exponent) || Math.abs(exponent) > 16) return undefined;
  let result: AnyExpr = factory.constant(1, 'f32');
  let square = a;
  for (let rest = Math.abs(exponent); rest > 0; rest >>= 1) {
    if (rest & 1) result = factory.make('mul', 'f32', [result, square]);
    if (rest > 1) square = factory.make('mul', 'f32', [square, square]);
  }
  return exponent < 0 ? factory.make('div', 'f32', [factory.constant(1, 'f32'), result]) : result;
}

function same(a: AnyExpr, b: AnyExpr): boolean {
  return a === b || (isConst(a) && isConst(b) && Object.is(a.payload.value, b.payload.value));
}
