import type { Tensor } from '@heed/core';
import { apply, asContiguous } from '@heed/core/~internal';
import { planFor, runScan } from '../scan/scan.js';
import { checkArguments, decayTensor, type Lightning2Options } from './options.js';

/**
 * Causal linear attention with one exponential decay a head (Lightning Attention-2): S_t = exp(decay) S_(t-1) + k_t v_t^T,
 * out_t = scale q_t S_t. No softmax, no normaliser: follow it by a norm. Time and memory are linear in tokens.
 * @param q [batch, tokens, heads, keyDim], f32 or f16; views with any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @param options `scale` default 1; `decay` log-decay a head, <= 0
 * @returns [batch, tokens, heads, valueDim], dtype of v; states and sums are f32
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED when decay is differentiated
 */
export function lightning2(q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options): Tensor {
  return lightning2Op('lightning2', q, k, v, options, false)[0] as Tensor;
}

/**
 * As `lightning2`, and the state behind the last token, which is `initialState` of what follows.
 * @returns out, and state f32 [batch, heads, keyDim, valueDim]; both differentiable
 */
export function lightning2WithState(q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options): { out: Tensor; state: Tensor } {
  const [out, state] = lightning2Op('lightning2WithState', q, k, v, options, true);
  return { out: out as Tensor, state: state as Tensor };
}

function lightning2Op(who: string, q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options, withState: boolean): readonly Tensor[] {
  checkArguments(who, q, k, v, options);
  const { initialState, lengths, chunk, scale = 1 } = options;
  return apply<readonly Tensor[]>({
    name: 'lightning2',
    inputs: initialState ? [q, k, v, initialState] : [q, k, v],
    forward: () => {
      const scan = { q, k, v, decay: decayTensor(q, options.decay), lengths, queryScale: scale, plan: planFor(k, v, chunk) };
      const { out, final } = runScan(scan, initialState && asContiguous(initialState), { final: withState });
      return final ? [out, final] : [out];
    },
  });
}
