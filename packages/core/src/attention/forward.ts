import { empty } from '../tensor/create.js';
import { bindCall, type CallTensors, foldedScale, rowLoad } from './bind.js';
import type { AttentionCall } from './call.js';
import { planDecodeCall, runDecode } from './decode.js';
import { runForwardKernel } from './kernels/forward.js';
import { runMatrixForward } from './kernels/matrix-forward.js';
import { runShuffleForward, shuffleSizes, type ShuffleTile } from './kernels/shuffle-forward.js';
import { runMergeParts } from './kernels/merge.js';
import { listedPairs } from './listed.js';
import type { AttentionResult } from './merge.js';
import { type AttentionPlan, type AttentionShape, planAttention } from './plan.js';
import type { ForwardFragmentPlan } from './plan-fragments.js';

/** Windows below it are short against the tallest tiles. */
const shortWindow = 8192;

/** The plan of a call on its device. */
export function planCall(call: AttentionCall): AttentionPlan {
  const { precision } = call.options;
  const shape: AttentionShape = {
    ...call.sizes,
    halves: call.halves || precision === 'f16',
    scoreFunction: call.score !== undefined,
    narrow: call.visibility.band.left < shortWindow,
    ...(call.selection && { blockQueries: call.selection.blockQueries }),
    listed: listedPairs(call),
    sharedList: !(call.visibility.mask?.perHead ?? false) && (call.selection?.heads ?? 1) <= call.sizes.kvHeads,
  };
  return planAttention(shape, call.device.capabilities, { software: call.device.isSoftware });
}

/** Query tiles a head, of `rows` rows; `group` rows a query where rows are packed. Blocks of a selection have tiles of their own. */
export function queryTiles({ sizes, selection }: AttentionCall, rows: number, group = 1): number {
  if (!selection) return Math.ceil((sizes.queries * group) / rows);
  return selection.queryBlocks * Math.ceil((selection.blockQueries * group) / rows);
}

/** Output and natural logsumexp of an attention call; what else it makes is freed by the scope around it. */
export function runForward(call: AttentionCall, tensors: CallTensors, given?: AttentionPlan['forward']): AttentionResult {
  const decode = given ? undefined : planDecodeCall(call, tensors);
  if (decode) return runDecode(call, tensors, decode);
  const plan = given ?? planCall(call).forward;
  const { sizes, device } = call;
  const { batch, queries, heads, kvHeads, valueDim } = sizes;
  if (plan.fragments) return runOnFragments(call, tensors, plan.fragments);
  if (plan.shuffle) return runWithShuffles(call, tensors, plan.shuffle);
  const { tile, splits } = plan;
  const out = empty(device, [batch, queries, heads, valueDim], tensors.q.dtype);
  const lse = empty(device, [batch, queries, heads], 'f32');
  const group = heads / kvHeads;
  const tiles = queryTiles(call, tile.rows, plan.packed ? group : 1);
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

function runOnFragments(call: AttentionCall, tensors: CallTensors, tile: ForwardFragmentPlan): AttentionResult {
  const { sizes, device, scale } = call;
  const { batch, queries, heads, valueDim } = sizes;
  const { q, k, v } = tensors;
  const out = empty(device, [batch, queries, heads, valueDim], q.dtype);
  const lse = empty(device, [batch, queries, heads], 'f32');
  const bound = bindCall(call, tensors, {
    width: call.halves ? 8 : 4,
    tiles: { query: tile.rows, key: tile.columns },
    transposed: false,
    bits: true,
  });
  const { fold, hidden } = foldedScale(bound, scale);
  const tiles = queryTiles(call, tile.rows);
  runMatrixForward(
    device,
    { ...bound.spec, ...tile, load: rowLoad(bound.item), fold, vectorOut: valueDim % 4 === 0 },
    { q, k, v, arena: bound.arena, extras: bound.extras, out, lse },
    { ...bound.uniforms, tiles, hidden },
    [heads, tiles * tile.parts, batch],
  );
  return { out, lse };
}

function runWithShuffles(call: AttentionCall, tensors: CallTensors, tile: ShuffleTile): AttentionResult {
  const { sizes, device } = call;
  const { batch, queries, heads, valueDim } = sizes;
  const { q, k, v } = tensors;
  const out = empty(device, [batch, queries, heads, valueDim], q.dtype);
  const lse = empty(device, [batch, queries, heads], 'f32');
  const { rows, columns } = shuffleSizes(tile);
  const bound = bindCall(call, tensors, { width: 4, tiles: { query: rows, key: columns }, transposed: false });
  const tiles = queryTiles(call, rows);
  runShuffleForward(
    device,
    { ...bound.spec, ...tile, rows, columns, vectorOut: valueDim % 4 === 0 },
    { q, k, v, arena: bound.arena, extras: bound.extras, out, lse },
    { ...bound.uniforms, tiles },
    [heads, tiles, batch],
  );
  return { out, lse };
}
