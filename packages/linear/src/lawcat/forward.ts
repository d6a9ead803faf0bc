import { cast, concat, pointwise, scope, split, type Tensor } from '@heed/core';
import { normalizedScan, normalizedScanWithState } from '../scan/normalized.js';
import { checkLawcat, type LawcatForm, type LawcatOptions } from './options.js';

const logGate = pointwise((a, inverse) => a.logSigmoid().mul(inverse), { name: 'lawcat-gate', dtype: 'f32' });

/** Log-decays of gate logits: log-sigmoid(a) / normalizer, f32. */
export function gateOf(logits: Tensor, { gateNormalizer = 16 }: LawcatForm): Tensor {
  return logGate(logits, 1 / gateNormalizer);
}

/**
 * Normalised gated linear attention (LAWCAT, Liu et al. 2025, section 3): S_t = diag(exp g_t) S_(t-1) + k_t [v_t, 1]^T,
 * [n_t, z_t] = scale q_t S_t, out_t = n_t / (z_t + eps), g = log-sigmoid(gate) / 16. Rows are averages of values: features are
 * positive, and the normaliser forgets as the values do. Time is linear in tokens, the state a matrix a head.
 * @param q mapped features >= 0, [batch, tokens, heads, keyDim], f32 or f16 (f32 keeps small ones); any outer strides
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], cast to the dtype of q where it differs
 * @returns [batch, tokens, heads, valueDim], dtype of v; differentiable in q, k, v, gate and the initial state
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function lawcat(q: Tensor, k: Tensor, v: Tensor, options: LawcatOptions): Tensor {
  checkLawcat('lawcat', q, v, options);
  return scope(() => cast(normalizedScan(q, k, cast(v, q.dtype), scanOptions(q, v, options), 'lawcat'), v.dtype));
}

/**
 * As `lawcat`, and the state behind the last token, which is `initialState` of what follows.
 * @returns out, and state f32 [batch, heads, keyDim, valueDim + 1], its last column the normaliser; both differentiable
 * @throws HeedError what `lawcat` throws
 */
export function lawcatWithState(q: Tensor, k: Tensor, v: Tensor, options: LawcatOptions): { out: Tensor; state: Tensor } {
  checkLawcat('lawcatWithState', q, v, options);
  return scope(() => {
    const made = normalizedScanWithState(q, k, cast(v, q.dtype), scanOptions(q, v, options), 'lawcatWithState');
    return { out: cast(made.out, v.dtype), state: concat([made.state, made.keySum], 3) };
  });
}

function scanOptions(q: Tensor, v: Tensor, options: LawcatOptions): Parameters<typeof normalizedScan>[3] {
  const { gate, initialState, lengths, chunk, eps = 1e-10, scale = 1 / Math.sqrt(q.dim(3)) } = options;
  const [state, keySum] = initialState ? split(initialState, [v.dim(3), 1], 3) : [];
  return {
    gate: gateOf(gate, options),
    scale,
    eps,
    ...(state && keySum && { initialState: state, initialKeySum: keySum }),
    ...(lengths && { lengths }),
    ...(chunk !== undefined && { chunk }),
  };
}
