import type { FloatDType, Tensor } from '@heed/core';
import { apply, asContiguous } from '@heed/core/~internal';
import { scalarForward } from '../scan/scalar.js';
import { lightning2Backward, type Lightning2Saved } from '../scan/scalar-backward.js';
import { checkArguments, decayTensor, isTensorDecay, type Lightning2Options } from '../scan/options.js';

/**
 * Causal linear attention with one exponential decay a head (Lightning Attention-2): S_t = exp(decay) S_(t-1) + k_t v_t^T,
 * out_t = scale q_t S_t. No softmax, no normaliser: follow it by a norm. Time and memory are linear in tokens.
 * @param q [batch, tokens, heads, keyDim], f32 or f16; views with any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @param options `scale` default 1; `decay` log-decay a head, <= 0; `outDType` default the dtype of v
 * @returns [batch, tokens, heads, valueDim], `outDType`; states and outputs are summed in f32, on fragments what one chunk adds in f16
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED when decay is differentiated
 */
export function lightning2(q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options): Tensor {
  return lightning2Op('lightning2', q, k, v, options, false)[0] as Tensor;
}

/**
 * As `lightning2`, and the state behind the last token, which is `initialState` of what follows.
 * @returns out, and state f32 [batch, heads, keyDim, valueDim]; both differentiable
 * @throws HeedError what `lightning2` throws
 */
export function lightning2WithState(q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options): { out: Tensor; state: Tensor } {
  const [out, state] = lightning2Op('lightning2WithState', q, k, v, options, true);
  return { out: out as Tensor, state: state as Tensor };
}

function lightning2Op(who: string, q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options, withState: boolean): readonly Tensor[] {
  checkArguments(who, q, k, v, options);
  const { initialState, lengths, chunk, scale = 1 } = options;
  const inputs = initialState ? [q, k, v, initialState] : [q, k, v];
  const constants = [...(lengths ? [lengths] : []), ...(isTensorDecay(options.decay) ? [options.decay] : [])];
  return apply<readonly Tensor[]>({
    name: 'lightning2',
    inputs,
    forward: () => {
      const problem = { q, k, v, decay: decayTensor(q.device, options.decay), lengths, scale, chunk, outDType: options.outDType };
      const { out, final } = lightning2Forward(problem, initialState && asContiguous(initialState), withState);
      return final ? [out, final] : [out];
    },
    saves: () => [...inputs, ...constants],
    backward: ([dOut = null, dState = null], { saved, needs }) => {
      const [savedQ, savedK, savedV] = saved as [Tensor, Tensor, Tensor];
      const rest = saved.slice(inputs.length);
      const grads = lightning2Backward(
        {
          q: savedQ,
          k: savedK,
          v: savedV,
          initialState: initialState ? saved[3] : undefined,
          lengths: lengths ? rest.shift() : undefined,
          decay: rest.shift() ?? decayTensor(savedQ.device, options.decay),
          scale,
          chunk,
        },
        dOut,
        dState,
        { q: needs[0] ?? false, k: needs[1] ?? false, v: needs[2] ?? false, initialState: needs[3] ?? false },
      );
      return [grads.q, grads.k, grads.v, grads.initialState].slice(0, inputs.length);
    },
  });
}

/**
 * Outputs, and the final state where it is wanted; operands larger than a binding in pieces.
 * @param initial contiguous f32 [batch, heads, keyDim, valueDim]
 */
export function lightning2Forward(
  problem: Omit<Lightning2Saved, 'initialState'> & { outDType?: FloatDType | undefined },
  initial: Tensor | undefined,
  withState: boolean,
): { out: Tensor; final: Tensor | undefined } {
  return scalarForward(problem, initial, { withState, outDType: problem.outDType ?? (problem.v.dtype as FloatDType) });
}
