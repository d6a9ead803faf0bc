import { HeedError } from '../errors.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { axisOf } from './check.js';
import { pointwise } from './pointwise.js';
import { l2norm } from './reduce.js';

const divided = pointwise((x, norm, epsilon) => x.div(norm.max(epsilon)), { name: 'l2-normalize' });
const dividedHalf = pointwise((x, norm, epsilon) => x.div(norm.max(epsilon)), { name: 'l2-normalize', dtype: 'f16' });

/**
 * x divided by its Euclidean length along an axis.
 * @param x f32 or f16; lengths are f32
 * @param options.axis default -1
 * @param options.epsilon the least length to divide by, default 1e-12: shorter rows are divided by it
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError SHAPE_MISMATCH when x has no such axis, DTYPE_MISMATCH for integers, INVALID_ARGUMENT for an epsilon not above 0
 */
export function l2Normalize(x: Tensor, options: { axis?: number; epsilon?: number } = {}): Tensor {
  const { axis = -1, epsilon = 1e-12 } = options;
  const at = axisOf('l2Normalize', x, axis);
  if (!(epsilon > 0)) throw new HeedError('INVALID_ARGUMENT', `l2Normalize: epsilon is ${epsilon}; use a number above 0, such as 1e-12`);
  return scope(() => (x.dtype === 'f16' ? dividedHalf : divided)(x, l2norm(x, at, { keepDims: true }), epsilon));
}
