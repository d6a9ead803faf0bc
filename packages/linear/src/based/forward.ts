import type { Tensor } from '@heed/core';
import { apply } from '@heed/core/~internal';
import { basedBackward } from './backward.js';
import { expandState } from './kernels/state-layout.js';
import { type BasedOptions, type BasedStates, checkBased } from './options.js';
import { basedForward, problemOf } from './passes.js';

/**
 * Causal linear attention with the second-order Taylor expansion of exp as its feature map (Based): weights 1 + s + s^2 / 2, s = scale q.k,
 * normalised over the keys seen. Positive weights, a state of fixed size; time and memory are linear in tokens.
 * @param q [batch, tokens, heads, featureDim], f32 or f16; views with any outer strides; featureDim at most 40, usually 16
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @param options `scale` default 1 / sqrt(featureDim)
 * @returns [batch, tokens, heads, valueDim], dtype of v; states and sums are f32
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; LIMIT_EXCEEDED for a larger featureDim; UNSUPPORTED when a state
 *   is differentiated
 */
export function based(q: Tensor, k: Tensor, v: Tensor, options: BasedOptions = {}): Tensor {
  return basedOp('based', q, k, v, options, false).out;
}

/**
 * As `based`, and the sums behind the last token, which are `initialState` of what follows.
 * @returns out; kvState f32 [batch, heads, 1 + f + f^2, valueDim] and kState f32 [batch, heads, 1 + f + f^2] in the official order, constants
 * @throws HeedError what `based` throws
 */
export function basedWithState(q: Tensor, k: Tensor, v: Tensor, options: BasedOptions = {}): { out: Tensor } & BasedStates {
  const { out, state } = basedOp('basedWithState', q, k, v, options, true);
  const [kvState, kState] = state.map((x) => {
    // an alias is not tracked: states are constants
    const untracked = x.alias();
    x.dispose();
    const full = apply({ name: 'basedWithState', inputs: [untracked], forward: () => expandState(untracked, q.dim(3)) });
    untracked.dispose();
    return full;
  }) as [Tensor, Tensor];
  return { out, kvState, kState };
}

function basedOp(
  who: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: BasedOptions,
  withState: boolean,
): { out: Tensor; state: Tensor[] } {
  checkBased(who, q, k, v, options);
  const { initialState, lengths } = options;
  const constants = [...(lengths ? [lengths] : []), ...(initialState ? [initialState.kvState, initialState.kState] : [])];
  const made = apply<readonly Tensor[]>({
    name: 'based',
    inputs: [q, k, v],
    forward: () => {
      const { out, norm, state } = basedForward(problemOf(q, k, v, options), { withState, withNorm: true });
      return [out, norm as Tensor, ...(state ? [state.kv, state.z as Tensor] : [])];
    },
    saves: (outputs) => [q, k, v, ...outputs.slice(0, 2), ...constants],
    backward: ([dOut = null], { saved, needs }) => {
      const [savedQ, savedK, savedV, out, norm] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor];
      if (!dOut) return [null, null, null];
      const grads = basedBackward(problemOf(savedQ, savedK, savedV, options), { out, norm, dOut }, needs);
      return [grads.q, grads.k, grads.v];
    },
  });
  const [out, norm, ...state] = made;
  (norm as Tensor).dispose();
  return { out: out as Tensor, state };
}
