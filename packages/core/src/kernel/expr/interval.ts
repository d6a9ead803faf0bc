import { graphOf } from './graph.js';
import type { NumberedNode } from './graph.js';
import type { AnyExpr, Expr, ExprType } from './node.js';

// Interval arithmetic over expressions: conservative bounds when variables run over boxes. Integers whose exact range leaves 32 bits
// may wrap anywhere; floats are widened a little, since the device rounds to f32 where the host does not.

/** Closed bounds of a value; bool is 0 and 1. */
export interface Bounds {
  readonly low: number;
  readonly high: number;
}

/** What the intervals of names are. Captures without an entry may hold anything. */
export interface IntervalEnvironment {
  readonly variables: Readonly<Record<string, Bounds>>;
  readonly uniforms?: Readonly<Record<string, number>>;
  /** Bounds of the elements of a captured array between two indices (inclusive, clamped by the caller's own length). */
  readonly captures?: Readonly<Record<string, (low: number, high: number) => Bounds>>;
}

const TYPE_RANGE: Record<ExprType, Bounds> = {
  f32: { low: -Infinity, high: Infinity },
  i32: { low: -(2 ** 31), high: 2 ** 31 - 1 },
  u32: { low: 0, high: 2 ** 32 - 1 },
  bool: { low: 0, high: 1 },
};

/**
 * Whether a predicate holds on a whole box of its variables: `full` (everywhere), `empty` (nowhere) or `unknown`. Conservative:
 * correlations between operands are lost, so `unknown` may be said of uniform boxes, never the reverse.
 */
export function classify(predicate: Expr<'bool'>, environment: IntervalEnvironment): 'empty' | 'full' | 'unknown' {
  const { low, high } = bounds(predicate, environment);
  return low === 1 ? 'full' : high === 0 ? 'empty' : 'unknown';
}

/** Conservative bounds of an expression over a box. */
export function bounds(e: AnyExpr, environment: IntervalEnvironment): Bounds {
  const { nodes, root } = graphOf(e);
  const known: Bounds[] = [];
  for (const node of nodes) known.push(fitted(nodeBounds(node, known, nodes, environment), node.expr));
  return known[root]!;
}

function fitted(b: Bounds, expr: AnyExpr): Bounds {
  const range = TYPE_RANGE[expr.type];
  if (Number.isNaN(b.low) || Number.isNaN(b.high) || b.low < range.low || b.high > range.high) return range;
  if (expr.type !== 'f32' || expr.op === 'const' || expr.op === 'uniform' || expr.op === 'variable') return b;
  return { low: b.low - Math.abs(b.low) * 1e-6 - 1e-30, high: b.high + Math.abs(b.high) * 1e-6 + 1e-30 };
}

const exactly = (value: number): Bounds => ({ low: value, high: value });
const truth = (low: boolean, high: boolean): Bounds => ({ low: low ? 1 : 0, high: high ? 1 : 0 });

function corners(a: Bounds, b: Bounds, f: (x: number, y: number) => number): Bounds {
  const values = [f(a.low, b.low), f(a.low, b.high), f(a.high, b.low), f(a.high, b.high)];
  return { low: Math.min(...values), high: Math.max(...values) };
}

function nodeBounds(
  node: NumberedNode,
  known: readonly Bounds[],
  nodes: readonly NumberedNode[],
  environment: IntervalEnvironment,
): Bounds {
  const { expr, args } = node;
  const name = expr.payload.name ?? '';
  const whole = TYPE_RANGE[expr.type];
  if (expr.op === 'const') return exactly(expr.payload.value ?? 0);
  if (expr.op === 'variable') return environment.variables[name] ?? whole;
  if (expr.op === 'uniform') return environment.uniforms?.[name] === undefined ? whole : exactly(environment.uniforms[name]);
  const [a, b, c] = args.map((arg) => known[arg]!);
  if (a === undefined || expr.op === 'raw') return whole;
  if (expr.op === 'load') {
    const read = environment.captures?.[expr.payload.capture?.name ?? ''];
    return read === undefined ? whole : read(a.low, a.high);
  }
  const from = nodes[args[0]!]!.expr.type;
  if (b === undefined) return unaryBounds(expr, a, from);
  if (c === undefined) return from === 'bool' ? boolBounds(expr, a, b) : binaryBounds(expr, a, b, from);
  if (expr.op === 'select') {
    if (a.low === 1) return b;
    return a.high === 0 ? c : { low: Math.min(b.low, c.low), high: Math.max(b.high, c.high) };
  }
  // clamp grows with each of its operands.
  return { low: Math.min(Math.max(a.low, b.low), c.low), high: Math.min(Math.max(a.high, b.high), c.high) };
}

function unaryBounds(expr: AnyExpr, a: Bounds, from: ExprType): Bounds {
  const whole = TYPE_RANGE[expr.type];
  switch (expr.op) {
    case 'neg':
      return { low: -a.high, high: -a.low };
    case 'not':
      return from === 'bool' ? { low: 1 - a.high, high: 1 - a.low } : whole;
    case 'abs':
      return { low: a.low > 0 ? a.low : a.high < 0 ? -a.high : 0, high: Math.max(Math.abs(a.low), Math.abs(a.high)) };
    case 'floor':
      return { low: Math.floor(a.low), high: Math.floor(a.high) };
    case 'ceil':
      return { low: Math.ceil(a.low), high: Math.ceil(a.high) };
    case 'cast':
      return castBounds(a, from, expr.type);
    default:
      return whole;
  }
}

function castBounds(a: Bounds, from: ExprType, to: ExprType): Bounds {
  if (to === 'f32' || from === 'bool') return a;
  if (from !== 'f32') return a;
  const { low, high } = TYPE_RANGE[to];
  const saturate = (v: number): number => Math.min(high, Math.max(low, Math.trunc(v)));
  return { low: saturate(a.low), high: saturate(a.high) };
}

function boolBounds(expr: AnyExpr, a: Bounds, b: Bounds): Bounds {
  const decided = a.low === a.high && b.low === b.high;
  switch (expr.op) {
    case 'and':
      return { low: Math.min(a.low, b.low), high: Math.min(a.high, b.high) };
    case 'or':
      return { low: Math.max(a.low, b.low), high: Math.max(a.high, b.high) };
    case 'eq':
      return decided ? truth(a.low === b.low, a.low === b.low) : TYPE_RANGE.bool;
    default:
      return decided ? truth(a.low !== b.low, a.low !== b.low) : TYPE_RANGE.bool;
  }
}

function binaryBounds(expr: AnyExpr, a: Bounds, b: Bounds, from: ExprType): Bounds {
  const whole = TYPE_RANGE[expr.type];
  const same = a.low === a.high && b.low === b.high && a.low === b.low;
  const apart = a.high < b.low || b.high < a.low;
  switch (expr.op) {
    case 'add':
      return { low: a.low + b.low, high: a.high + b.high };
    case 'sub':
      return { low: a.low - b.high, high: a.high - b.low };
    case 'mul':
      return corners(a, b, (x, y) => (x === 0 || y === 0 ? 0 : x * y));
    case 'min':
      return { low: Math.min(a.low, b.low), high: Math.min(a.high, b.high) };
    case 'max':
      return { low: Math.max(a.low, b.low), high: Math.max(a.high, b.high) };
    case 'div':
      if (b.low <= 0 && b.high >= 0) return whole;
      return corners(a, b, from === 'f32' ? (x, y) => x / y : (x, y) => Math.trunc(x / y));
    case 'mod':
      return from === 'f32' ? whole : moduloBounds(a, b, whole);
    case 'shr':
      if (b.low !== b.high || b.low > 31) return whole;
      return { low: Math.floor(a.low / 2 ** b.low), high: Math.floor(a.high / 2 ** b.low) };
    case 'shl':
      if (b.low !== b.high || b.low > 31) return whole;
      return { low: a.low * 2 ** b.low, high: a.high * 2 ** b.low };
    case 'and':
      // A mask of known non-negative bits bounds the result; anything else may set the sign.
      return a.low >= 0 && b.low >= 0 ? { low: 0, high: Math.min(a.high, b.high) } : whole;
    case 'eq':
      return truth(same, !apart);
    case 'ne':
      return truth(apart, !same);
    case 'lt':
      return truth(a.high < b.low, a.low < b.high);
    case 'le':
      return truth(a.high <= b.low, a.low <= b.high);
    case 'gt':
      return truth(a.low > b.high, a.high > b.low);
    case 'ge':
      return truth(a.low >= b.high, a.high >= b.low);
    default:
      return whole;
  }
}

/** Euclidean remainder by a known divisor: exact inside one period, else the whole period. */
function moduloBounds(a: Bounds, b: Bounds, whole: Bounds): Bounds {
  if (b.low !== b.high || b.low === 0) return whole;
  const period = Math.abs(b.low);
  const quotient = Math.floor(a.low / period);
  if (quotient === Math.floor(a.high / period)) return { low: a.low - quotient * period, high: a.high - quotient * period };
  return { low: 0, high: period - 1 };
}
