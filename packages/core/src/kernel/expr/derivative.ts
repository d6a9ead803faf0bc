import { HeedError } from '../../errors.js';
import { graphOf } from './graph.js';
import { binary, compare, constant, make, unary } from './node.js';
import type { NumberedNode } from './graph.js';
import type { AnyExpr, Expr } from './node.js';

// Reverse mode over the numbered graph: one pass gives the adjoint of every node, so all derivatives of an expression share their
// work. The results are expressions again and can be derived again.
// At kinks: abs and sign use 0 at 0; min and max give all to the second operand on ties (so relu'(0) = 0 for x.max(0)); clamp lets
// its border through; floor, ceil, round, sign, comparisons and conversions from integers and bool have derivative 0.

type Float = Expr<'f32'>;

/** One term of a gradient into a captured array: `value` is to be added at `index`. */
export interface CaptureTerm {
  readonly index: Expr<'i32' | 'u32'>;
  readonly value: Expr<'f32'>;
}

/**
 * The derivative of a float expression by a variable or uniform, as an expression (of any order by repetition).
 * @param wrt a variable or uniform made by `variable` or `uniform`, or the name of a variable
 * @throws HeedError UNSUPPORTED when a raw function on the way brings no derivative
 */
export function derivative(e: Expr<'f32'>, wrt: Expr<'f32'> | string): Expr<'f32'> {
  const [op, name] = typeof wrt === 'string' ? (['variable', wrt] as const) : ([wrt.op, wrt.payload.name] as const);
  if (op !== 'variable' && op !== 'uniform') {
    throw new HeedError('INVALID_ARGUMENT', `expr: derivative by a node of kind ${op}; give a variable or a uniform`);
  }
  return gradients(e, [{ op, name: name ?? '' }])[0]!;
}

/** Derivatives by several variables or uniforms in one pass; they share subexpressions. */
export function gradients(e: Expr<'f32'>, wrt: readonly { readonly op: 'variable' | 'uniform'; readonly name: string }[]): Float[] {
  const { nodes } = graphOf(e);
  const wanted = (node: NumberedNode): boolean =>
    node.expr.type === 'f32' && wrt.some((w) => node.expr.op === w.op && node.expr.payload.name === w.name);
  const adjoints = reverse(e, wanted);
  return wrt.map((w) => {
    const at = nodes.findIndex(({ expr }) => expr.op === w.op && expr.payload.name === w.name);
    return adjoints[at] ?? constant(0, 'f32');
  });
}

/**
 * The gradient of a float expression into a captured array: one term for each distinct place that reads it. Terms whose indices
 * coincide at run time add up. Indices are as written; clamp them into the array as reads do.
 */
export function captureDerivative(e: Expr<'f32'>, captureName: string): CaptureTerm[] {
  const wanted = ({ expr }: NumberedNode): boolean =>
    expr.op === 'load' && expr.type === 'f32' && expr.payload.capture?.name === captureName && expr.payload.capture.differentiable;
  const adjoints = reverse(e, wanted);
  const terms: CaptureTerm[] = [];
  graphOf(e).nodes.forEach((node, i) => {
    const value = adjoints[i];
    if (wanted(node) && value !== undefined) terms.push({ index: node.expr.args[0] as Expr<'i32' | 'u32'>, value });
  });
  return terms;
}

/** Adjoint of each node that leads to a wanted one; undefined where nothing flows. */
function reverse(e: Expr<'f32'>, wanted: (node: NumberedNode) => boolean): (Float | undefined)[] {
  const { nodes, root } = graphOf(e);
  const depends: boolean[] = [];
  nodes.forEach((node, i) => {
    depends[i] = wanted(node) || (node.expr.type === 'f32' && node.args.some((arg) => depends[arg]));
  });
  const adjoints: (Float | undefined)[] = Array.from({ length: nodes.length });
  if (depends[root]) adjoints[root] = constant(1, 'f32');
  for (let i = root; i >= 0; i--) {
    const g = adjoints[i];
    const node = nodes[i]!;
    if (g === undefined || node.args.length === 0) continue;
    const operands = node.args.map((arg) => nodes[arg]!.expr);
    if (!node.args.some((arg) => depends[arg])) continue;
    pullback(node.expr, operands, g).forEach((part, position) => {
      const arg = node.args[position]!;
      if (part === undefined || !depends[arg] || isZero(part)) return;
      const sum = adjoints[arg];
      adjoints[arg] = sum === undefined ? part : sum.add(part);
    });
  }
  return adjoints;
}

const isZero = (e: AnyExpr): boolean => e.op === 'const' && e.payload.value === 0;
const zero = (): Float => constant(0, 'f32');

/** Cotangents of the operands of one node from its own. */
function pullback(out: AnyExpr, operands: readonly AnyExpr[], g: Float): (Float | undefined)[] {
  const [a, b, c] = operands as Float[];
  const y = out as Float;
  if (a === undefined) return [];
  switch (out.op) {
    case 'add':
      return [g, g];
    case 'sub':
      return [g, g.neg() as Float];
    case 'mul':
      return [g.mul(b!), g.mul(a)];
    case 'div':
      return [g.div(b!), g.mul(y).div(b!).neg() as Float];
    case 'mod':
      return [g, g.mul(a.div(b!).floor()).neg() as Float];
    case 'min':
      return choose(compare('lt', a, b!), g);
    case 'max':
      return choose(compare('gt', a, b!), g);
    case 'clamp':
      return clampPullback(a, b!, c!, g);
    case 'pow':
      return powPullback(a, b!, y, g);
    case 'select':
      return [undefined, pick(out.args[0]!, g, zero()), pick(out.args[0]!, zero(), g)];
    case 'raw':
      return rawPullback(out, operands, g);
    case 'floor':
    case 'ceil':
    case 'round':
    case 'sign':
    case 'cast':
    case 'bitcast':
    case 'load':
      return [];
    default:
      return [g.mul(unaryDerivative(out, a, y))];
  }
}

/** f'(a) of a unary function with value y. */
function unaryDerivative(out: AnyExpr, a: Float, y: Float): Float {
  switch (out.op) {
    case 'neg':
      return constant(-1, 'f32');
    case 'abs':
      return unary('sign', a);
    case 'fract':
      return constant(1, 'f32');
    case 'sqrt':
      return binary('div', 0.5, y) as Float;
    case 'inverseSqrt':
      return y.mul(y).mul(y).mul(-0.5);
    case 'exp':
      return y;
    case 'exp2':
      return y.mul(Math.LN2);
    case 'log':
      return binary('div', 1, a) as Float;
    case 'log2':
      return binary('div', Math.LOG2E, a) as Float;
    case 'sin':
      return a.cos();
    case 'cos':
      return a.sin().neg() as Float;
    case 'tanh':
      return binary('sub', 1, y.mul(y)) as Float;
    case 'erf':
      return a
        .mul(a)
        .neg()
        .exp()
        .mul(2 / Math.sqrt(Math.PI));
    // s(x) s(-x) keeps its relative accuracy where 1 - s(x) would cancel.
    case 'sigmoid':
      return y.mul((a.neg() as Float).sigmoid());
    case 'softplus':
      return a.sigmoid();
    default:
      throw new HeedError('UNSUPPORTED', `expr: ${out.op} has no derivative; keep it out of differentiated expressions`);
  }
}

function pick(condition: AnyExpr, whenTrue: Float, whenFalse: Float): Float {
  return make('select', 'f32', [condition, whenTrue, whenFalse]);
}

/** All to the first operand where the condition holds, else all to the second. */
function choose(condition: Expr<'bool'>, g: Float): Float[] {
  return [pick(condition, g, zero()), pick(condition, zero(), g)];
}

function clampPullback(x: Float, low: Float, high: Float, g: Float): Float[] {
  const below = compare('lt', x, low);
  const above = compare('gt', x, high);
  const outside = binary('or', below, above) as Expr<'bool'>;
  return [pick(outside, zero(), g), pick(below, g, zero()), pick(above, g, zero())];
}

/** Powers with an exponent that is no small integer: a base <= 0 is outside the domain and gets 0. */
function powPullback(a: Float, b: Float, y: Float, g: Float): Float[] {
  const positive = compare('gt', a, 0);
  const safe = a.max(1.1754943508222875e-38);
  return [pick(positive, g.mul(b).mul(a.pow(b.sub(1))), zero()), pick(positive, g.mul(y).mul(safe.log()), zero())];
}

function rawPullback(out: AnyExpr, operands: readonly AnyExpr[], g: Float): (Float | undefined)[] {
  const raw = out.payload.raw!;
  if (raw.derivative === undefined) {
    throw new HeedError('UNSUPPORTED', `expr: the raw function "${raw.key}" has no derivative; give one in rawFunction`);
  }
  return raw.derivative(operands).map((partial) => (partial === undefined ? undefined : g.mul(partial)));
}
