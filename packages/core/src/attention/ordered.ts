import { permuteTokens, permuteTokensOf, type TokenOrder } from '../ops/permute-tokens.js';
import type { Tensor } from '../tensor/tensor.js';
import { type AttentionGradients, runBackward, type Wanted } from './backward.js';
import type { BackwardInputs } from './backward-queries.js';
import type { AttentionCall } from './call.js';
import { planCall } from './forward.js';

/** Gradients of a call whose rows lie in another order: kernels on fragments find them there, for others they are moved. */
export function backwardInOrder(call: AttentionCall, order: TokenOrder, inputs: BackwardInputs, wanted: Wanted): AttentionGradients {
  const plan = planCall(call);
  // small arrays would be a ninth binding
  if (plan.dq.fragments && plan.dkv.fragments && call.arrays.length === 0) return runBackward(call, inputs, wanted, plan);
  const moved = <T extends Tensor | null>(x: T): T => (x && permuteTokens(x, order)) as T;
  const [q, k, v] = permuteTokensOf([inputs.q, inputs.k, inputs.v], order) as [Tensor, Tensor, Tensor];
  const rows = { q, k, v, out: moved(inputs.out), lse: moved(inputs.lse), dOut: moved(inputs.dOut), dLse: moved(inputs.dLse) };
  const grads = runBackward({ ...call, order: undefined }, { ...inputs, ...rows }, wanted);
  const back = (x: Tensor | null): Tensor | null => x && permuteTokens(x, order, { inverse: true });
  return { q: back(grads.q), k: back(grads.k), v: back(grads.v), arrays: grads.arrays };
}
