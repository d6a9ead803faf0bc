import type { DType } from '../dtype.js';
import type { ExprType, NumericType } from '../kernel/expr/index.js';
import { type Expr, typedExpr } from '../kernel/expr/index.js';
import type { Tensor } from '../tensor/tensor.js';
import { apply } from '../autodiff/tape.js';
import { commonType, Compiled, type PointwiseOperand, polymorphic, runPointwise } from './pointwise.js';

// Comparisons give u8 tensors of 0 and 1. They are constant almost everywhere: no gradient flows through them.

const numeric: readonly NumericType[] = ['f32', 'i32', 'u32'];
const eqOp = polymorphic('eq', 2, numeric, (a, b) => a!.eq(b!));
const neOp = polymorphic('ne', 2, numeric, (a, b) => a!.ne(b!));
const ltOp = polymorphic('lt', 2, numeric, (a, b) => a!.lt(b!));
const leOp = polymorphic('le', 2, numeric, (a, b) => a!.le(b!));
const gtOp = polymorphic('gt', 2, numeric, (a, b) => a!.gt(b!));
const geOp = polymorphic('ge', 2, numeric, (a, b) => a!.ge(b!));

/**
 * 1 where a = b, else 0.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns u8 of the broadcast shape; not differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function eq(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return eqOp(a, b);
}

/**
 * 1 where a differs from b, else 0.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns u8 of the broadcast shape; not differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function ne(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return neOp(a, b);
}

/**
 * 1 where a < b, else 0.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns u8 of the broadcast shape; not differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function lt(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return ltOp(a, b);
}

/**
 * 1 where a <= b, else 0.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns u8 of the broadcast shape; not differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function le(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return leOp(a, b);
}

/**
 * 1 where a > b, else 0.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns u8 of the broadcast shape; not differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function gt(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return gtOp(a, b);
}

/**
 * 1 where a >= b, else 0.
 * @param a a tensor, or a number: a run-time value
 * @param b broadcasts with a; both are float, i32 or u32 (u8 counts as u32)
 * @returns u8 of the broadcast shape; not differentiable
 * @throws HeedError SHAPE_MISMATCH when shapes do not broadcast, DTYPE_MISMATCH, INVALID_ARGUMENT when neither is a tensor
 */
export function ge(a: PointwiseOperand, b: PointwiseOperand): Tensor {
  return geOp(a, b);
}

const wheres: Map<NumericType, Compiled> = new Map();

/**
 * a where the condition is not 0, else b; all three broadcast. Gradients flow into a and b.
 * @param condition u8, u32 or i32
 * @param a a tensor or a number; a and b are both float, i32 or u32
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT when a and b are both numbers (use mul or cast)
 */
export function where(condition: Tensor, a: PointwiseOperand, b: PointwiseOperand): Tensor {
  const type = commonType('where', [a, b], numeric);
  let compiled = wheres.get(type);
  if (!compiled) {
    const types: readonly ['bool', NumericType, NumericType] = ['bool', type, type];
    const body = typedExpr<typeof types, ExprType>(types, (c, x, y) => c.select(x as Expr<ExprType>, y as Expr<ExprType>));
    wheres.set(type, (compiled = new Compiled('where', body)));
  }
  return runPointwise(compiled, [condition, a, b]);
}

const casts: Map<string, Compiled> = new Map();
const exprTypes: Record<DType, NumericType> = { f32: 'f32', f16: 'f32', i32: 'i32', u32: 'u32', u8: 'u32' };

/**
 * x in another dtype. Float to integer truncates towards zero and saturates (u8 at 255), integers keep their low bits; gradients
 * flow between floats only.
 * @param x any shape and dtype
 * @returns a copy, or a further handle of x when it has the dtype already
 * @throws HeedError DISPOSED after dispose
 */
export function cast(x: Tensor, dtype: DType): Tensor {
  if (x.dtype === dtype) return apply({ name: 'cast', inputs: [x], forward: () => x.alias(), backward: ([g]) => [g ?? null] });
  const from = exprTypes[x.dtype];
  const to = exprTypes[dtype];
  const id = `${from}-${dtype === 'u8' ? 'u8' : to}`;
  let compiled = casts.get(id);
  if (!compiled) {
    const convert = (v: Expr<NumericType>): Expr<ExprType> =>
      to === 'f32' ? v.f32() : to === 'i32' ? v.i32() : dtype === 'u8' && from === 'f32' ? v.u32().min(255) : v.u32();
    casts.set(id, (compiled = new Compiled('cast', typedExpr([from], convert))));
  }
  return runPointwise(compiled, [x], dtype);
}
