import { graphOf } from './graph.js';
import { emitOperation } from './wgsl-operations.js';
import type { AnyExpr, CaptureDeclaration, ExprType, NumericType, WgslCapture } from './node.js';

/** How names of an expression are spelt in a kernel. All have defaults. */
export interface WgslNames {
  /** A variable; default: its own name. */
  readonly variable?: (name: string, type: ExprType) => string;
  /** A uniform; default: `uniforms.<name>`. */
  readonly uniform?: (name: string, type: NumericType) => string;
  /** A captured array; default: the storage array of its name. */
  readonly capture?: (capture: CaptureDeclaration) => WgslCapture;
  /** Start of the names of `let` bindings, unique inside the function; default `e`. */
  readonly prefix?: string;
}

/** WGSL of an expression. */
export interface WgslText {
  /** Module-scope declarations that raw functions bring; empty without them. */
  readonly declarations: string;
  /** `let` bindings, one a line; each shared subexpression once. */
  readonly statements: string;
  /** A name or literal that holds the value after the statements. */
  readonly result: string;
}

/**
 * WGSL of an expression: straight-line `let` bindings, so text grows with the number of distinct nodes. Literals are finite and
 * typed, capture indices are clamped into the array, sin, cos, tanh and erf do not depend on the accuracy of the driver's own.
 */
export function toWgsl(e: AnyExpr, names: WgslNames = {}): WgslText {
  const prefix = names.prefix ?? 'e';
  const { nodes, root } = graphOf(e);
  const spelt: string[] = [];
  const statements: string[] = [];
  const declarations = new Map<string, string>();
  const capture = names.capture ?? defaultCapture;
  nodes.forEach(({ expr, args }, index) => {
    const text = args.map((arg) => spelt[arg]!);
    const name = `${prefix}${index}`;
    const { name: own = '', value = 0, raw } = expr.payload;
    if (expr.op === 'const') {
      spelt.push(literal(value, expr.type));
      return;
    }
    if (expr.op === 'variable') {
      spelt.push(names.variable?.(own, expr.type) ?? own);
      return;
    }
    if (expr.op === 'uniform') {
      spelt.push(names.uniform?.(own, expr.type as NumericType) ?? `uniforms.${own}`);
      return;
    }
    let body: string;
    if (expr.op === 'load') {
      body = loadText(capture(expr.payload.capture!), text[0]!, expr.args[0]!.type);
    } else if (expr.op === 'raw') {
      if (raw!.declarations !== undefined) declarations.set(raw!.key, raw!.declarations.trim());
      const byName = new Map((raw!.captures ?? []).map((c) => [c.name, c]));
      body = raw!.wgsl(text, (wanted) => capture(byName.get(wanted)!));
    } else {
      body = emitOperation(expr, text, name, (line) => statements.push(line));
    }
    statements.push(`let ${name}: ${expr.type} = ${body};`);
    spelt.push(name);
  });
  return { declarations: [...declarations.values()].join('\n'), statements: statements.join('\n'), result: spelt[root]! };
}

function defaultCapture(capture: CaptureDeclaration): WgslCapture {
  return { length: `arrayLength(&${capture.name})`, load: (index) => `${capture.name}[${index}]` };
}

function loadText(capture: WgslCapture, index: string, type: ExprType): string {
  const unsigned = type === 'i32' ? `u32(max(${index}, 0i))` : index;
  return capture.load(`min(${unsigned}, ${capture.length} - 1u)`);
}

/** A literal of a type as WGSL spells it; negative ones in parentheses. */
export function literal(value: number, type: ExprType): string {
  if (type === 'bool') return value !== 0 ? 'true' : 'false';
  if (type === 'u32') return `${value}u`;
  if (type === 'i32') {
    if (value === -(2 ** 31)) return 'i32(-2147483648)';
    return value < 0 ? `(${value}i)` : `${value}i`;
  }
  const rounded = Math.fround(value);
  const digits = Object.is(rounded, -0) ? '-0' : String(rounded);
  const spelt = /[.e]/.test(digits) ? digits : `${digits}.0`;
  return digits.startsWith('-') ? `(${spelt})` : spelt;
}
