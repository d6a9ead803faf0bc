import { hash128 } from './hash.js';
import type { AnyExpr, CaptureDeclaration, ExprType, NumericType } from './node.js';

/** One node of a numbered graph: its operands are positions in the list before it. */
export interface NumberedNode {
  readonly expr: AnyExpr;
  readonly args: readonly number[];
}

/** An expression as a list in dependency order in which equal subexpressions occur once. */
export interface Graph {
  readonly nodes: readonly NumberedNode[];
  /** Structural text of each node, in the order of `nodes`; with positions in place of operands. */
  readonly texts: readonly string[];
  readonly root: number;
}

const graphs = new WeakMap<AnyExpr, Graph>();

/** Number an expression. Walks with a stack of its own, so depth is no limit; each shared node is visited once. */
export function graphOf(root: AnyExpr): Graph {
  const known = graphs.get(root);
  if (known !== undefined) return known;
  const position = new Map<AnyExpr, number>();
  const byText = new Map<string, number>();
  const nodes: NumberedNode[] = [];
  const texts: string[] = [];
  const stack: AnyExpr[] = [root];
  while (stack.length > 0) {
    const expr = stack[stack.length - 1]!;
    if (position.has(expr)) {
      stack.pop();
      continue;
    }
    const open = expr.args.filter((arg) => !position.has(arg));
    if (open.length > 0) {
      for (let i = open.length - 1; i >= 0; i--) stack.push(open[i]!);
      continue;
    }
    stack.pop();
    const args = expr.args.map((arg) => position.get(arg)!);
    const text = `${expr.op}:${expr.type}(${args.join(',')})${payloadText(expr)}`;
    let index = byText.get(text);
    if (index === undefined) {
      index = nodes.length;
      nodes.push({ expr, args });
      texts.push(text);
      byText.set(text, index);
    }
    position.set(expr, index);
  }
  const graph: Graph = { nodes, texts, root: position.get(root)! };
  graphs.set(root, graph);
  return graph;
}

function payloadText(expr: AnyExpr): string {
  const { value, name, capture, raw } = expr.payload;
  if (value !== undefined) return Object.is(value, -0) ? '=-0' : `=${value}`;
  if (name !== undefined) return JSON.stringify(name);
  if (capture !== undefined) return `${JSON.stringify(capture.name)}/${capture.elementType}`;
  return raw === undefined ? '' : JSON.stringify(raw.key);
}

/**
 * Cache key of an expression: structure, literals and the names of variables, uniforms and captures, not the values bound to them.
 * Equal structures built in different ways of sharing have equal keys.
 */
export function key(e: AnyExpr): string {
  const { texts, root } = graphOf(e);
  return hash128(`${texts.join(';')}@${root}`);
}

/** A free name of an expression with its type. */
export interface Named<T extends ExprType = ExprType> {
  readonly name: string;
  readonly type: T;
}

/** The free names of an expression, each once, in order of first use. */
export interface FreeNames {
  readonly variables: readonly Named[];
  readonly uniforms: readonly Named<NumericType>[];
  readonly captures: readonly CaptureDeclaration[];
}

export function freeNames(e: AnyExpr): FreeNames {
  const variables: Named[] = [];
  const uniforms: Named<NumericType>[] = [];
  const captures = new Map<string, CaptureDeclaration>();
  const addCapture = (capture: CaptureDeclaration): void => {
    const other = captures.get(capture.name);
    if (other === undefined || (capture.differentiable && !other.differentiable)) captures.set(capture.name, capture);
  };
  for (const { expr } of graphOf(e).nodes) {
    const { name = '', capture, raw } = expr.payload;
    if (expr.op === 'variable') variables.push({ name, type: expr.type });
    else if (expr.op === 'uniform') uniforms.push({ name, type: expr.type as NumericType });
    else if (capture !== undefined) addCapture(capture);
    else if (raw?.captures !== undefined) raw.captures.forEach(addCapture);
  }
  return { variables, uniforms, captures: [...captures.values()] };
}
