import type { Device } from '../device/device.js';
import type { DType } from '../dtype.js';
import { empty } from '../tensor/create.js';
import { bindCall, type CallTensors, foldedScale, rowLoad } from './bind.js';
import type { AttentionCall } from './call.js';
import { type DecodePlan, planDecodeCall, runDecode } from './decode.js';
import { runForwardKernel } from './kernels/forward.js';
import { runMatrixForward } from './kernels/matrix-forward.js';
import { runRowForward } from './kernels/row-forward.js';
import { ownedRows, type RowTile } from './kernels/row-lanes.js';
import { runMergeParts } from './kernels/merge.js';
import { listedPairs } from './listed.js';
import type { AttentionResult } from './merge.js';
import { type AttentionPlan, type AttentionShape, planAttention } from './plan.js';
import type { ForwardFragmentPlan } from './plan-fragments.js';

/** Windows below it are short against the tallest tiles. */
const shortWindow = 8192;

/** By device, and mask where there is one: a step asks for the plans of the step before, and choosing one takes longer than a dispatch. */
const plans = new WeakMap<object, WeakMap<object, Map<string, AttentionPlan>>>();
const mostPlans = 64;

/** The plan of a call on its device. */
export function planCall(call: AttentionCall): AttentionPlan {
  const { device, sizes, selection, visibility, queryOffset } = call;
  const shape: AttentionShape = {
    ...sizes,
    halves: call.halves || call.options.precision === 'f16',
    scoreFunction: call.score !== undefined,
    narrow: visibility.band.left < shortWindow,
    sharedList: !(visibility.mask?.perHead ?? false) && (selection?.heads ?? 1) <= sizes.kvHeads,
    ...(selection && { blockQueries: selection.blockQueries, blockKeys: selection.blockKeys }),
  };
  const known = plansOf(device, visibility.mask ?? device);
  const key = [queryOffset, ...Object.values(shape)].join();
  let plan = known.get(key);
  if (!plan) {
    if (known.size >= mostPlans) known.clear();
    plan = planAttention({ ...shape, listed: listedPairs(call) }, device.capabilities, { software: device.isSoftware });
    known.set(key, plan);
  }
  return plan;
}

function plansOf(device: Device, mask: object): Map<string, AttentionPlan> {
  let byMask = plans.get(device);
  if (!byMask) plans.set(device, (byMask = new WeakMap()));
  let known = byMask.get(mask);
  if (!known) byMask.set(mask, (known = new Map()));
  return known;
}

/** Query tiles a head, of `rows` rows; `group` rows a query where rows are packed. Blocks of a selection have tiles of their own. */
export function queryTiles({ sizes, selection }: AttentionCall, rows: number, group = 1): number {
  if (!selection) return Math.ceil((sizes.queries * group) / rows);
  return selection.queryBlocks * Math.ceil((selection.blockQueries * group) / rows);
}

/** Where a forward pass writes, and by which plan: by default tensors of its own, and the plan of `planCall`. */
export interface ForwardOptions {
  plan?: AttentionPlan['forward'] | undefined;
  decode?: DecodePlan | undefined;
  into?: AttentionResult | undefined;
}

/** Room for output and logsumexp. */
export function resultOf({ device, sizes }: AttentionCall, dtype: DType): AttentionResult {
  const { batch, queries, heads, valueDim } = sizes;
  return { out: empty(device, [batch, queries, heads, valueDim], dtype), lse: empty(device, [batch, queries, heads], 'f32') };
}

/** Output and natural logsumexp of an attention call; what else it makes is freed by the scope around it. */
export function runForward(call: AttentionCall, tensors: CallTensors, options: ForwardOptions = {}): AttentionResult {
  const result = options.into ?? resultOf(call, tensors.q.dtype);
  if (result.lse.size === 0) return result;
  const decode = options.decode ?? (options.plan ? undefined : planDecodeCall(call, tensors));
  if (decode) runDecode(call, tensors, decode, result);
  else runTiles(call, tensors, options.plan ?? planCall(call).forward, result);
  return result;
}

function runTiles(call: AttentionCall, tensors: CallTensors, plan: AttentionPlan['forward'], { out, lse }: AttentionResult): void {
  const { sizes, device } = call;
  const { batch, queries, heads, kvHeads, valueDim } = sizes;
  if (plan.fragments) return runOnFragments(call, tensors, plan.fragments, { out, lse });
  if (plan.inRegisters) return runInRegisters(call, tensors, plan.inRegisters, { out, lse });
  const { tile, splits } = plan;
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
    { tiles, splits, outRows, ...bound.uniforms },
    [tiles * splits, plan.packed ? kvHeads : heads, batch],
  );
  if (split) runMergeParts(device, { parts, partLse, out, lse }, splits);
}

function runOnFragments(call: AttentionCall, tensors: CallTensors, tile: ForwardFragmentPlan, { out, lse }: AttentionResult): void {
  const { sizes, device, scale } = call;
  const { batch, heads, valueDim } = sizes;
  const { q, k, v } = tensors;
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
    { load: rowLoad(bound.item), fold, vectorOut: valueDim % 4 === 0, ordered: bound.order !== undefined, ...bound.spec, ...tile },
    { q, k, v, arena: bound.arena, extras: bound.extras, order: bound.order, out, lse },
    { tiles, hidden, ...bound.uniforms },
    [heads, tiles * tile.parts, batch],
  );
}

function runInRegisters(call: AttentionCall, tensors: CallTensors, tile: RowTile, { out, lse }: AttentionResult): void {
  const { sizes, device } = call;
  const { batch, heads, valueDim } = sizes;
  const { q, k, v } = tensors;
  const rows = ownedRows(tile);
  const bound = bindCall(call, tensors, { width: 4, tiles: { query: rows, key: tile.columns }, transposed: false, bits: true });
  const tiles = queryTiles(call, rows);
  runRowForward(
    device,
    { vectorOut: valueDim % 4 === 0, ...bound.spec, ...tile },
    { q, k, v, arena: bound.arena, extras: bound.extras, out, lse },
    { tiles, ...bound.uniforms },
    [heads, tiles, batch],
  );
}
