import { derivative, type Expr, toWgsl, variable } from '../../kernel/expr/index.js';

/**
 * Activations that matmul applies on the way out. `gelu` is the exact form by erf (Hendrycks, Gimpel 2016, section 2),
 * `geluTanh` its tanh approximation (same place), `silu` x sigmoid(x), `squaredRelu` max(x, 0)^2.
 */
export const activations = ['relu', 'squaredRelu', 'gelu', 'geluTanh', 'silu', 'sigmoid', 'tanh'] as const;
export type Activation = (typeof activations)[number];

/** The activation as an expression of the variable `x`. */
export function activationExpr(name: Activation): Expr<'f32'> {
  const x = variable('x', 'f32');
  switch (name) {
    case 'relu':
      return x.max(0);
    case 'squaredRelu':
      return x.max(0).mul(x.max(0));
    case 'gelu':
      return x.mul(0.5).mul(x.mul(Math.SQRT1_2).erf().add(1));
    case 'geluTanh':
      return x.mul(0.5).mul(
        x
          .add(x.mul(x).mul(x).mul(0.044715))
          .mul(Math.sqrt(2 / Math.PI))
          .tanh()
          .add(1),
      );
    case 'silu':
      return x.mul(x.sigmoid());
    case 'sigmoid':
      return x.sigmoid();
    case 'tanh':
      return x.tanh();
  }
}

/** The derivative of the activation by `x`. */
export function activationDerivative(name: Activation): Expr<'f32'> {
  return derivative(activationExpr(name), 'x');
}

/** `fn <name>(x: f32) -> f32` of an expression of `x`, and `fn <name>4` of four. */
export function expressionFunction(name: string, e: Expr<'f32'>): string {
  const { declarations, statements, result } = toWgsl(e);
  return `
    ${declarations}
    fn ${name}(x: f32) -> f32 {
      ${statements}
      return ${result};
    }
    fn ${name}4(x: vec4f) -> vec4f { return vec4f(${name}(x.x), ${name}(x.y), ${name}(x.z), ${name}(x.w)); }`;
}
