import type { Expr } from '../kernel/expr/index.js';
import { select } from '../kernel/expr/index.js';
import type { Tensor } from '../tensor/tensor.js';
import { pointwise } from './pointwise.js';

// Activation functions by element, on f32 and f16 (computed in f32), with gradients. One fused kernel each way.

type Float = Expr<'f32'>;

const reluOp = pointwise((x) => x.max(0), { name: 'relu' });
const sigmoidOp = pointwise((x) => x.sigmoid(), { name: 'sigmoid' });
const tanhOp = pointwise((x) => x.tanh(), { name: 'tanh' });
const siluOp = pointwise((x) => x.mul(x.sigmoid()), { name: 'silu' });
const softplusOp = pointwise((x) => x.softplus(), { name: 'softplus' });
const logSigmoidOp = pointwise((x) => x.logSigmoid(), { name: 'log-sigmoid' });
const erfOp = pointwise((x) => x.erf(), { name: 'erf' });
const geluErfOp = pointwise((x) => x.mul(0.5).mul(x.mul(Math.SQRT1_2).erf().add(1)), { name: 'gelu' });
const geluTanhOp = pointwise((x) => x.mul(0.5).mul(inner(x).tanh().add(1)), { name: 'gelu-tanh' });
const eluOp = pointwise((x) => select(x.gt(0), x, x.min(0).exp().sub(1)), { name: 'elu' });

/** sqrt(2 / pi) (x + 0.044715 x^3) */
function inner(x: Float): Float {
  return x.add(x.mul(x).mul(x).mul(0.044715)).mul(Math.sqrt(2 / Math.PI));
}

/**
 * max(x, 0); gradient 0 at 0.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function relu(x: Tensor): Tensor {
  return reluOp(x);
}

/**
 * 1 / (1 + e^-x).
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function sigmoid(x: Tensor): Tensor {
  return sigmoidOp(x);
}

/**
 * Hyperbolic tangent, absolute error < 3e-7.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function tanh(x: Tensor): Tensor {
  return tanhOp(x);
}

/**
 * x sigmoid(x), also known as swish.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function silu(x: Tensor): Tensor {
  return siluOp(x);
}

/**
 * log(1 + e^x), without overflow.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function softplus(x: Tensor): Tensor {
  return softplusOp(x);
}

/**
 * log(sigmoid(x)) = -softplus(-x).
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function logSigmoid(x: Tensor): Tensor {
  return logSigmoidOp(x);
}

/**
 * The error function, absolute error < 2e-7.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function erf(x: Tensor): Tensor {
  return erfOp(x);
}

/**
 * x Phi(x) with the normal distribution function Phi (Hendrycks, Gimpel 2016).
 * @param x any shape, f32 or f16 (computed in f32)
 * @param options.approximate `erf` (default): exact; `tanh`: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as in GPT-2
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function gelu(x: Tensor, options: { approximate?: 'erf' | 'tanh' } = {}): Tensor {
  return options.approximate === 'tanh' ? geluTanhOp(x) : geluErfOp(x);
}

/**
 * x for x > 0, else e^x - 1.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function elu(x: Tensor): Tensor {
  return eluOp(x);
}
