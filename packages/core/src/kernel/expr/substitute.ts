import { graphOf } from './graph.js';
import { lift, make } from './node.js';
import type { AnyExpr, Expr, ExprType } from './node.js';

/** What `substitute` puts in place of names. */
export interface Substitution {
  /** Variables by name: an expression of the same type or a literal. */
  readonly variables?: Readonly<Record<string, AnyExpr | number | boolean>>;
  /** New names of uniforms. */
  readonly uniforms?: Readonly<Record<string, string>>;
  /** New names of captures. */
  readonly captures?: Readonly<Record<string, string>>;
}

export function substitute<T extends ExprType>(e: Expr<T>, by: Substitution): Expr<T> {
  const { nodes, root } = graphOf(e);
  const built: AnyExpr[] = [];
  for (const { expr, args } of nodes) {
    const { name = '', capture } = expr.payload;
    const variable = by.variables?.[name];
    if (expr.op === 'variable' && variable !== undefined) built.push(lift(variable, expr.type));
    else if (expr.op === 'uniform' && by.uniforms?.[name] !== undefined)
      built.push(make('uniform', expr.type, [], { name: by.uniforms[name] }));
    else {
      const renamed = capture === undefined ? undefined : by.captures?.[capture.name];
      const payload = capture !== undefined && renamed !== undefined ? { capture: { ...capture, name: renamed } } : expr.payload;
      built.push(
        make(
          expr.op,
          expr.type,
          args.map((arg) => built[arg]!),
          payload,
        ),
      );
    }
  }
  return built[root] as Expr<T>;
}
