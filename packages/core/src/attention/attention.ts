import { apply } from '../autodiff/tape.js';
import { permuteTokens, permuteTokensOf, type TokenOrder } from '../ops/permute-tokens.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { type AttentionGradients, runBackward, type Wanted } from './backward.js';
import type { BackwardInputs } from './backward-queries.js';
import { type AttentionCall, prepareCall } from './call.js';
import { planCall, runForward } from './forward.js';
import { backwardInPieces, forwardInPieces } from './in-pieces.js';
import type { AttentionResult } from './merge.js';
import type { AttentionOptions } from './options.js';
import { backwardInOrder } from './ordered.js';
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

/**
 * As `attention`, with the natural logsumexp of each row's scores; differentiable in both results.
 * @param q [batch, queries, heads, headDim], f32 or f16
 * @param k [batch, keys, kvHeads, headDim]
 * @param v [batch, keys, kvHeads, valueDim]
 * @returns out [batch, queries, heads, valueDim] in the dtype of q, and lse f32 [batch, queries, heads]; minus infinity where a row sees no key
 * @throws HeedError what `attention` throws
 */
export function attentionWithLse(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): AttentionResult {
  return scope(() => {
    return attend(prepareCall('attention', q, k, v, options), q, k, v);
  });
}

/** The op of a checked call on the tensors that it was checked with. */
function attend(call: AttentionCall, q: Tensor, k: Tensor, v: Tensor): AttentionResult {
  const chosen = call.selection?.tensors ?? [];
  const differentiable = call.arrays.filter((array) => array.differentiable).map((array) => array.tensor);
  const [out, lse] = apply<readonly [Tensor, Tensor]>({
    name: 'attention',
    inputs: [q, k, v, ...differentiable],
    forward: () => {
      const tensors = { q, k, v, arrays: call.arrays.map((array) => array.tensor), selection: chosen };
      if (call.order) return both(runForward(call, tensors, { plan: planCall(call).forward }));
      const problem = pieceProblem(call, tensors);
      return both(problem ? forwardInPieces(call, tensors, problem) : runForward(call, tensors));
    },
    saves: (outputs) => [q, k, v, ...outputs, ...chosen, ...call.arrays.map((array) => array.tensor)],
    backward: ([dOut, dLse], { saved, needs }) => {
      const [sq, sk, sv, out, lse, ...rest] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor, ...Tensor[]];
      const [selection, arrays] = [rest.slice(0, chosen.length), rest.slice(chosen.length)];
      let next = 3;
      const wanted = call.arrays.map((array) => array.differentiable && (needs[next++] ?? false));
      const inputs = { q: sq, k: sk, v: sv, arrays, selection, out, lse, dOut: dOut ?? null, dLse: dLse ?? null };
      const which = { q: needs[0] ?? false, k: needs[1] ?? false, v: needs[2] ?? false, arrays: wanted };
      const grads = gradientsOf(call, inputs, which);
      return [grads.q, grads.k, grads.v, ...grads.arrays.filter((_, i) => call.arrays[i]?.differentiable)];
    },
  });
  return { out, lse };
}

function both({ out, lse }: AttentionResult): readonly [Tensor, Tensor] {
  return [out, lse];
}

function gradientsOf(call: AttentionCall, inputs: BackwardInputs, wanted: Wanted): AttentionGradients {
  if (call.order) return backwardInOrder(call, call.order, inputs, wanted);
  const problem = pieceProblem(call, inputs);
  return problem ? backwardInPieces(call, inputs, wanted, problem) : runBackward(call, inputs, wanted);
}

/**
 * As `attentionWithLse` of tokens in another order than they lie in: what permuteTokens before and, inverse, behind it gives. Where a
 * kernel on fragments runs it reads and writes rows where they lie; else rows are moved, and a result that is not asked for is not.
 * @param order of the tokens of q, k and v, as many each; masks and options count in it
 */
export function attentionInOrder(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  order: TokenOrder,
  options: AttentionOptions,
): { out: () => Tensor; lse: () => Tensor } {
  const call = { ...prepareCall('attention', q, k, v, options), order };
  if (planCall(call).forward.fragments && !call.selection && !pieceProblem(call, { q, k, v, arrays: [], selection: [] })) {
    const { out, lse } = attend(call, q, k, v);
    return { out: () => out, lse: () => lse };
  }
  const { out, lse } = attentionWithLse(...(permuteTokensOf([q, k, v], order) as [Tensor, Tensor, Tensor]), options);
  const back = (x: Tensor): Tensor => permuteTokens(x, order, { inverse: true });
  return { out: () => back(out), lse: () => back(lse) };
}
