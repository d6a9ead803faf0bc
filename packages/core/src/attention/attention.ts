import { apply } from '../autodiff/tape.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { runBackward } from './backward.js';
import { prepareCall } from './call.js';
import { runForward } from './forward.js';
import { backwardInPieces, forwardInPieces } from './in-pieces.js';
import type { AttentionResult } from './merge.js';
import type { AttentionOptions } from './options.js';
import { pieceProblem } from './pieces.js';

/**
 * Softmax attention: out = softmax(scale q k^T, with what the options add) v. Differentiable in q, k, v, sinks, keyBias and
 * captured arrays; gradients are deterministic.
 * @param q [batch, queries, heads, headDim], f32 or f16, head dimensions 1 to 256; views with outer strides are read as they lie
 * @param k [batch, keys, kvHeads, headDim]; kvHeads divides heads (grouped heads): query head h reads head floor(h kvHeads / heads)
 * @param v [batch, keys, kvHeads, valueDim]; where products run on f16 operands, an inf or NaN in v may reach rows that see other keys of
 *   its tile (0 times NaN), as in other flash kernels; keys past `lengths` never do
 * @returns [batch, queries, heads, valueDim] in the dtype of q; rows that see no key are 0
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT when arguments do not fit together, LIMIT_EXCEEDED when a
 *   tensor is larger than a binding of the device and a mask or selection keeps it from being cut by tokens
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor {
  return scope(() => attentionWithLse(q, k, v, options).out);
}

/** As `attention`, with the natural logsumexp of each row's scores; differentiable in both results. */
export function attentionWithLse(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
  return scope(() => {
    const call = prepareCall('attention', q, k, v, options);
    const chosen = call.selection?.tensors ?? [];
    const differentiable = call.arrays.filter((array) => array.differentiable).map((array) => array.tensor);
    const [out, lse] = apply<readonly [Tensor, Tensor]>({
      name: 'attention',
      inputs: [q, k, v, ...differentiable],
      forward: () => {
        const tensors = { q, k, v, arrays: call.arrays.map((array) => array.tensor), selection: chosen };
        const problem = pieceProblem(call, tensors);
        const result = problem ? forwardInPieces(call, tensors, problem) : runForward(call, tensors);
        return [result.out, result.lse];
      },
      saves: (outputs) => [q, k, v, ...outputs, ...chosen, ...call.arrays.map((array) => array.tensor)],
      backward: ([dOut, dLse], { saved, needs }) => {
        const [sq, sk, sv, out, lse, ...rest] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor, ...Tensor[]];
        const [selection, arrays] = [rest.slice(0, chosen.length), rest.slice(chosen.length)];
        let next = 3;
        const wanted = call.arrays.map((array) => array.differentiable && (needs[next++] ?? false));
        const inputs = { q: sq, k: sk, v: sv, arrays, selection, out, lse, dOut: dOut ?? null, dLse: dLse ?? null };
        const which = { q: needs[0] ?? false, k: needs[1] ?? false, v: needs[2] ?? false, arrays: wanted };
        const problem = pieceProblem(call, inputs);
        const grads = problem ? backwardInPieces(call, inputs, which, problem) : runBackward(call, inputs, which);
        return [grads.q, grads.k, grads.v, ...grads.arrays.filter((_, i) => call.arrays[i]?.differentiable)];
      },
    });
    return { out, lse };
  });
}
