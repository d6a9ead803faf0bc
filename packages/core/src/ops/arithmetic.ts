import type { Expr } from '../kernel/expr/index.js';
import type { NumericType } from '../kernel/expr/index.js';
import type { Tensor } from '../tensor/tensor.js';
import { pointwise, type Pointwise, type PointwiseOperand, polymorphic } from './pointwise.js';

// Arithmetic by element, one fused kernel an operation each way.

type Float = Expr<'f32'>;
const numeric: readonly NumericType[] = ['f32', 'i32', 'u32'];
const signed: readonly NumericType[] = ['f32', 'i32'];

const addOp = polymorphic('add', 2, numeric, (a, b) => a!.add(b!));
const subOp = polymorphic('sub', 2, numeric, (a, b) => a!.sub(b!));
const mulOp = polymorphic('mul', 2, numeric, (a, b) => a!.mul(b!));
const divOp = polymorphic('div', 2, numeric, (a, b) => a!.div(b!));
const minimumOp = polymorphic('minimum', 2, numeric, (a, b) => a!.min(b!));
const maximumOp = polymorphic('maximum', 2, numeric, (a, b) => a!.max(b!));
const clampOp = polymorphic('clamp', 3, numeric, (x, low, high) => x!.clamp(low!, high!));
const negOp = polymorphic('neg', 1, signed, (x) => (x as Float).neg());
const absOp = polymorphic('abs', 1, numeric, (x) => x!.abs());
const squareOp = polymorphic('square', 1, numeric, (x) => x!.mul(x!));
const expOp = pointwise((x) => x.exp(), { name: 'exp' });
const logOp = pointwise((x) => x.log(), { name: 'log' });
const sqrtOp = pointwise((x) => x.sqrt(), { name: 'sqrt' });
const rsqrtOp = pointwise((x) => x.inverseSqrt(), { name: 'rsqrt' });
const sinOp = pointwise((x) => x.sin(), { name: 'sin' });
const cosOp = pointwise((x) => x.cos(), { name: 'cos' });
const floorOp = pointwise((x) => x.floor(), { name: 'floor' });
const roundOp = pointwise((x) => x.round(), { name: 'round' });
const powOp = pointwise((x, y) => x.pow(y), { name: 'pow' });
const powers: Map<number, Pointwise> = new Map();

/**
 * a + b.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns the broadcast shape: f32 (f16 where no tensor is f32), differentiable, or the integers' type, which wraps around
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function add(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return addOp(a, b);
}

/**
 * a - b.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns the broadcast shape: f32 (f16 where no tensor is f32), differentiable, or the integers' type, which wraps around
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function sub(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return subOp(a, b);
}

/**
 * a b.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns the broadcast shape: f32 (f16 where no tensor is f32), differentiable, or the integers' type, which wraps around
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function mul(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return mulOp(a, b);
}

/**
 * a / b. Integers truncate towards zero; division by zero then gives the dividend.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns the broadcast shape: f32 (f16 where no tensor is f32), differentiable, or the integers' type, which wraps around
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function div(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return divOp(a, b);
}

/**
 * The lesser of a and b; on ties the gradient goes to b.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns the broadcast shape: f32 (f16 where no tensor is f32), differentiable, or the integers' type, which wraps around
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function minimum(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return minimumOp(a, b);
}

/**
 * The greater of a and b; on ties the gradient goes to b.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns the broadcast shape: f32 (f16 where no tensor is f32), differentiable, or the integers' type, which wraps around
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function maximum(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return maximumOp(a, b);
}

/**
 * x into [low, high]; the gradient of x is 1 on the borders.
 * @param x any shape, float, i32 or u32 (u8 counts as u32)
 * @param low a number, or a tensor of the type of x that broadcasts with it; so is `high`
 * @returns the broadcast shape; f16 where all floats are f16, else f32. Floats are differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function clamp(x: Tensor, low: PointwiseOperand, high: PointwiseOperand): Tensor {
  return clampOp(x, low, high);
}

/**
 * -x.
 * @param x any shape, f32, f16 or i32
 * @returns the shape and dtype of x; floats are differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function neg(x: Tensor): Tensor {
  return negOp(x);
}

/**
 * |x|, gradient 0 at 0.
 * @param x any shape, f32 or f16 (computed in f32), i32, u32, or u8 (counts as u32)
 * @returns the shape of x and its dtype (u8: u32); floats are differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function abs(x: Tensor): Tensor {
  return absOp(x);
}

/**
 * x^2.
 * @param x any shape, f32 or f16 (computed in f32), i32, u32, or u8 (counts as u32)
 * @returns the shape of x and its dtype (u8: u32); floats are differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function square(x: Tensor): Tensor {
  return squareOp(x);
}

/**
 * e^x.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function exp(x: Tensor): Tensor {
  return expOp(x);
}

/**
 * Natural logarithm, for x > 0.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function log(x: Tensor): Tensor {
  return logOp(x);
}

/**
 * Square root, for x >= 0.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function sqrt(x: Tensor): Tensor {
  return sqrtOp(x);
}

/**
 * 1 / sqrt(x), for x > 0.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function rsqrt(x: Tensor): Tensor {
  return rsqrtOp(x);
}

/**
 * Sine; the argument is reduced in three parts, absolute error < 1.5e-7 for |x| < 1e5.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function sin(x: Tensor): Tensor {
  return sinOp(x);
}

/**
 * Cosine; the argument is reduced in three parts, absolute error < 1.5e-7 for |x| < 1e5.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError DTYPE_MISMATCH
 */
export function cos(x: Tensor): Tensor {
  return cosOp(x);
}

/**
 * The greatest integer up to x.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; gradients are 0
 * @throws HeedError DTYPE_MISMATCH
 */
export function floor(x: Tensor): Tensor {
  return floorOp(x);
}

/**
 * To the nearest integer, ties to even.
 * @param x any shape, f32 or f16 (computed in f32)
 * @returns the shape and dtype of x; gradients are 0
 * @throws HeedError DTYPE_MISMATCH
 */
export function round(x: Tensor): Tensor {
  return roundOp(x);
}

/**
 * x^y. A number y that is an integer of at most 16 in size takes any x and becomes products (one kernel an exponent);
 * otherwise x <= 0 gives 0 (1 where y is 0).
 * @param x a tensor, f32 or f16 (computed in f32), or a number
 * @param y broadcasts with x
 * @returns the broadcast shape; f16 where all floats are f16, else f32; differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function pow(x: PointwiseOperand, y: PointwiseOperand): Tensor {
  if (typeof y !== 'number' || !Number.isInteger(y) || Math.abs(y) > 16) return powOp(x, y);
  let op = powers.get(y);
  if (!op) powers.set(y, (op = pointwise((base) => base.pow(y), { name: `pow${y < 0 ? 'm' : ''}${Math.abs(y)}` })));
  return op(x);
}
