import { HeedError } from '../../errors.js';
import { graphOf } from './graph.js';
import { convert, hostFunction, reinterpret } from './semantics.js';
import type { NumberedNode } from './graph.js';
import type { AnyExpr, Expr, ExprType } from './node.js';

/** Values by name that an expression is evaluated with. Booleans may be given as such or as 0 and 1. */
export interface Environment {
  readonly variables?: Readonly<Record<string, number | boolean>>;
  readonly uniforms?: Readonly<Record<string, number>>;
  readonly captures?: Readonly<Record<string, ArrayLike<number>>>;
}

/** What an expression of a type evaluates to on the host. */
export type HostValue<T extends ExprType> = T extends 'bool' ? boolean : number;

/**
 * The value of an expression on the host: float64 for f32, 32-bit wrap-around for integers. Capture indices clamp into the array.
 * @throws HeedError INVALID_ARGUMENT when a name has no value
 */
export function evaluate<T extends ExprType>(e: Expr<T>, environment: Environment = {}): HostValue<T> {
  const variables = environment.variables ?? {};
  const names = Object.keys(variables);
  const values = names.map((name) => Number(variables[name]));
  const result = compile(e, names, environment)(...values);
  return (e.type === 'bool' ? result !== 0 : result) as HostValue<T>;
}

type Step = (r: Float64Array) => void;

/**
 * An expression as a host function of the named variables: closures over one register file, no `eval` (pages with a content
 * security policy forbid it). Uniforms and captures are bound now. Booleans are 0 and 1 in and out. Not re-entrant from raw functions.
 * @throws HeedError INVALID_ARGUMENT when a uniform, capture or variable has no value
 */
export function compile(e: AnyExpr, inputs: readonly string[], environment: Environment = {}): (...values: number[]) => number {
  const { nodes, root } = graphOf(e);
  const registers = new Float64Array(nodes.length);
  const steps: Step[] = [];
  const parameters: { register: number; input: number; convert: (value: number) => number }[] = [];
  nodes.forEach((node, register) => {
    const { expr } = node;
    if (expr.op === 'variable') {
      const input = inputs.indexOf(expr.payload.name ?? '');
      if (input < 0) throw missing('variable', expr.payload.name);
      parameters.push({ register, input, convert: intake(expr.type) });
    } else if (expr.op === 'const') {
      registers[register] = expr.payload.value ?? 0;
    } else if (expr.op === 'uniform') {
      const value = environment.uniforms?.[expr.payload.name ?? ''];
      if (value === undefined) throw missing('uniform', expr.payload.name);
      registers[register] = intake(expr.type)(value);
    } else {
      steps.push(stepOf(node, register, nodes, environment));
    }
  });
  return (...values) => {
    for (const p of parameters) registers[p.register] = p.convert(values[p.input] ?? Number.NaN);
    for (const step of steps) step(registers);
    return registers[root]!;
  };
}

function intake(type: ExprType): (value: number) => number {
  if (type === 'i32') return (value) => value | 0;
  if (type === 'u32') return (value) => value >>> 0;
  return type === 'bool' ? (value) => (value ? 1 : 0) : (value) => value;
}

function missing(kind: string, name = ''): HeedError {
  return new HeedError('INVALID_ARGUMENT', `expr: ${kind} "${name}" has no value; give it in the environment`);
}

function stepOf(node: NumberedNode, out: number, nodes: readonly NumberedNode[], environment: Environment): Step {
  const { expr, args } = node;
  const [i = 0, j = 0, k = 0] = args;
  const from = nodes[i]?.expr.type ?? 'f32';
  if (expr.op === 'load') return loadStep(expr, i, out, environment);
  if (expr.op === 'raw') return rawStep(expr, args, out, environment);
  if (expr.op === 'cast')
    return (r) => {
      r[out] = convert(r[i]!, from, expr.type);
    };
  if (expr.op === 'bitcast')
    return (r) => {
      r[out] = reinterpret(r[i]!, from, expr.type);
    };
  if (expr.op === 'select')
    return (r) => {
      r[out] = r[i] !== 0 ? r[j]! : r[k]!;
    };
  const apply = hostFunction(expr.op, from);
  if (apply === undefined) throw new HeedError('UNSUPPORTED', `expr: ${expr.op} has no host form for ${from}; convert the operand`);
  return (r) => {
    r[out] = apply(r[i]!, r[j]!, r[k]!);
  };
}

function loadStep(expr: AnyExpr, index: number, out: number, environment: Environment): Step {
  const name = expr.payload.capture?.name ?? '';
  const array = environment.captures?.[name];
  if (array === undefined) throw missing('capture', name);
  if (array.length === 0) throw new HeedError('INVALID_ARGUMENT', `expr: capture "${name}" is empty; give at least one element`);
  const last = array.length - 1;
  return (r) => {
    r[out] = array[Math.min(last, Math.max(0, r[index]!))]!;
  };
}

function rawStep(expr: AnyExpr, args: readonly number[], out: number, environment: Environment): Step {
  const raw = expr.payload.raw!;
  const captures = environment.captures ?? {};
  for (const capture of raw.captures ?? []) if (captures[capture.name] === undefined) throw missing('capture', capture.name);
  return (r) => {
    r[out] = raw.js(
      args.map((arg) => r[arg]!),
      captures,
    );
  };
}
