import { matmul, mul, permute, scope, type Tensor } from '@heed/core';
import { checkDecayScan } from './decay-scan.js';

/**
 * Linear attention without a mask: scale q (k^T v), two products; differentiable.
 * @param q [batch, tokens, heads, keyDim]
 * @param k as q
 * @param v [batch, tokens, heads, valueDim]
 * @returns [batch, tokens, heads, valueDim], dtype of v; the state between is f32
 */
export function everyToken(q: Tensor, k: Tensor, v: Tensor, scale: number, who: string): Tensor {
  checkDecayScan(who, q, k, v, { scale });
  return scope(() => {
    const [queries, keys, values] = [q, k, v].map((x) => permute(x, [0, 2, 1, 3])) as [Tensor, Tensor, Tensor];
    const state = mul(matmul(keys, values, { transposeA: true, outDType: 'f32' }), scale);
    return permute(matmul(queries, state, { outDType: v.dtype === 'f16' ? 'f16' : 'f32' }), [0, 2, 1, 3]);
  });
}
