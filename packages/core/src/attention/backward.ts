import { asContiguous } from '../tensor/copy.js';
import { empty, zeros } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { gradientsOfKeys } from './backward-keys.js';
import { type BackwardInputs, capturedGradients, gradientOfQ } from './backward-queries.js';
import type { AttentionCall } from './call.js';
import { planCall } from './forward.js';
import { runSinkGradient, runStats, runUnit } from './kernels/stats.js';
import type { AttentionPlan } from './plan.js';

/** Which gradients are wanted: of q, k, v, and of each of the call's arrays. */
export interface Wanted {
  q: boolean;
  k: boolean;
  v: boolean;
  arrays: readonly boolean[];
}

export interface AttentionGradients {
  q: Tensor | null;
  k: Tensor | null;
  v: Tensor | null;
  /** In the order of the call's arrays. */
  arrays: (Tensor | null)[];
}

/** Gradients of an attention call. Deterministic: every sum has a fixed order. */
export function runBackward(
  call: AttentionCall,
  inputs: BackwardInputs,
  wanted: Wanted,
  plan: AttentionPlan = planCall(call),
): AttentionGradients {
  const { device, sizes } = call;
  const { out, lse } = inputs;
  const dOut = inputs.dOut ? asContiguous(inputs.dOut) : undefined;
  const dLse = inputs.dLse ? asContiguous(inputs.dLse, 1) : undefined;
  const stats = empty(device, [lse.size + 1, 2], 'f32', 'attention statistics');
  runStats(device, { out, lse, dOut, dLse, stats });
  const prepared = { inputs, dOut: dOut ?? zeros(device, out.shape, { dtype: out.dtype }), stats };
  if (plan.dq.fragments) runUnit(device, prepared.dOut, asContiguous(inputs.v), stats, lse.size);
  const arrays: (Tensor | null)[] = call.arrays.map(() => null);
  const indexOf = (name: string): number => call.arrays.findIndex((array) => array.name === name);
  const wants = (name: string): boolean => wanted.arrays[indexOf(name)] ?? false;
  if (wants('sinks')) {
    const sinks = inputs.arrays[indexOf('sinks')] as Tensor;
    const dSinks = empty(device, sinks.shape, sinks.dtype);
    runSinkGradient(device, { stats, sinks: asContiguous(sinks, 1), dSinks }, sizes.batch * sizes.queries);
    arrays[indexOf('sinks')] = dSinks;
  }
  capturedGradients(call, prepared, plan.dq, wanted.arrays).forEach((gradient, i) => {
    if (gradient) arrays[i] = gradient;
  });
  const q = wanted.q ? gradientOfQ(call, prepared, plan.dq) : null;
  const biasGradient = wants('keyBias');
  if (!wanted.k && !wanted.v && !biasGradient) return { q, k: null, v: null, arrays };
  const bias = biasGradient ? (inputs.arrays[indexOf('keyBias')] as Tensor) : undefined;
  const { k, v, keyBias } = gradientsOfKeys(call, prepared, plan.dkv, bias);
  if (keyBias) arrays[indexOf('keyBias')] = keyBias;
  return { q, k, v, arrays };
}
