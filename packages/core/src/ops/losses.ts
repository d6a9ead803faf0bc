import { expr } from '../kernel/expr/index.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { expectFloat, expectShape } from './check.js';
import { pointwise } from './pointwise.js';
import { mean, sum } from './reduce.js';

let squaredDifference: ((a: Tensor, b: Tensor) => Tensor) | undefined;
let divergence: ((p: Tensor, q: Tensor) => Tensor) | undefined;

/**
 * Mean squared error of two tensors of one shape.
 * @param x f32 or f16
 * @param target the shape of x
 * @returns [], the dtype of the difference; differentiable in both
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function mse(x: Tensor, target: Tensor): Tensor {
  expectFloat('mse', 'x', x);
  expectShape('mse', 'target', target, x.shape, 'the shape of x');
  squaredDifference ??= pointwise(expr((a, b) => a.sub(b).mul(a.sub(b))));
  const difference = squaredDifference;
  return scope(() => mean(difference(x, target)));
}

/**
 * Kullback-Leibler divergence of q from p over the last axis, from logarithms: sum p (log p - log q), mean over rows, in nats.
 * @param logP logarithms of the wanted probabilities, [..., n]
 * @param logQ logarithms of the probabilities that are judged, the same shape
 * @returns []; differentiable in both
 */
export function klDivergence(logP: Tensor, logQ: Tensor): Tensor {
  expectFloat('klDivergence', 'logP', logP);
  expectShape('klDivergence', 'logQ', logQ, logP.shape, 'the shape of logP');
  divergence ??= pointwise(expr((p, q) => p.exp().mul(p.sub(q))));
  const apart = divergence;
  return scope(() => mean(sum(apart(logP, logQ), -1)));
}
