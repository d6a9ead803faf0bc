import { empty } from '../tensor/create.js';
import { bindCall, type CallTensors } from './bind.js';
import type { AttentionCall } from './call.js';
import { runForwardKernel } from './kernels/forward.js';
import { runMergeParts } from './kernels/merge.js';
import type { AttentionResult } from './merge.js';
import { type AttentionPlan, type AttentionShape, planAttention } from './plan.js';

/** The plan of a call on its device. */
export function planCall(call: AttentionCall): AttentionPlan {
  const shape: AttentionShape = { ...call.sizes, sharedList: !(call.visibility.mask?.perHead ?? false) };
  return planAttention(shape, call.device.capabilities, { software: call.device.isSoftware });
}

/** Output and natural logsumexp of an attention call; what else it makes is freed by the scope around it. */
export function runForward(call: AttentionCall, tensors: CallTensors): AttentionResult {
  const { sizes, device } = call;
  const { batch, queries, heads, kvHeads, valueDim } = sizes;
  const { forward: plan } = planCall(call);
  const { tile, splits } = plan;
  const out = empty(device, [batch, queries, heads, valueDim], tensors.q.dtype);
  const lse = empty(device, [batch, queries, heads], 'f32');
  const group = heads / kvHeads;
  const tiles = Math.ceil((plan.packed ? queries * group : queries) / tile.rows);
  const outRows = batch * queries * heads;
  const split = splits > 1;
  const parts = split ? empty(device, [splits, ...out.shape], 'f32') : out;
  const partLse = split ? empty(device, [splits, ...lse.shape], 'f32') : lse;
  const bound = bindCall(call, tensors, {
    width: tile.width,
    tiles: { query: plan.packed ? queries : tile.rows, key: tile.columns },
    transposed: false,
  });
  runForwardKernel(
    device,
    {
      ...bound.spec,
      ...tile,
      packed: plan.packed ? group : 0,
      shuffles: plan.shuffles,
      split,
      vectorOut: tile.width === 4 && valueDim % 4 === 0,
    },
    { q: tensors.q, k: tensors.k, v: tensors.v, arena: bound.arena, extras: bound.extras, out: parts, lse: partLse },
    { ...bound.uniforms, tiles, splits, outRows },
    [tiles * splits, plan.packed ? kvHeads : heads, batch],
  );
  if (split) runMergeParts(device, { parts, partLse, out, lse }, splits);
  return { out, lse };
}
