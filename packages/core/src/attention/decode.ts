import type { Capabilities } from '../device/capabilities.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { bindCall, type CallTensors } from './bind.js';
import type { AttentionCall } from './call.js';
import { decodeBytes, type DecodeTile } from './kernels/decode-text.js';
import { log2e } from './kernels/common.js';
import { runDecodeKernel } from './kernels/decode.js';
import { runEvenDecodeKernel } from './kernels/decode-even.js';
import { runDecodeMerge } from './kernels/decode-merge.js';
import type { AttentionResult } from './merge.js';
import { itemStrides, rowItems } from './problem.js';

/** What a decode plan depends on. Lengths choose split counts; they never specialise a kernel. */
export interface DecodeShape {
  batch: number;
  queries: number;
  /** Most keys that a row may see. */
  keys: number;
  /** Query heads a KV head. */
  group: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
}

export type DecodePlan = DecodeTile & {
  /** Tiles of rows a KV head. */
  tiles: number;
  /** Parts of the keys, each a workgroup, and keys of a part. */
  splits: number;
  splitKeys: number;
};

/** Rows (queries x heads of a group) up to which this is decode. */
const decodeRows = 16;
/** Rows whose queries and sums fit the registers of a lane beside the keys in flight. */
const mostRows = 8;
/** Workgroups that fill a large GPU several times over. */
const wantedWorkgroups = 528;
const leastSplitKeys = 32;
const lanes = 128;
const keysAStep = 4;
/** Parts of so few keys are walked in steps of half the keys, so that loads of a step still hide behind another. */
const shortSplitKeys = 64;

/** Workgroup memory up to which four workgroups share a multiprocessor. */
const sharedBytes = 10_240;

const powerOver = (n: number): number => 2 ** Math.ceil(Math.log2(Math.max(1, n)));

/** The decode kernel's tile and parts, or undefined where it does not serve: too many rows, head dimensions off 8, no subgroups as wide as a key's lanes. */
export function planDecode(shape: DecodeShape, capabilities: Capabilities, options: { software?: boolean } = {}): DecodePlan | undefined {
  const software = options.software ?? false;
  const { batch, queries, keys, group, kvHeads, headDim, valueDim } = shape;
  const wanted = queries * group;
  if (!capabilities.subgroups || wanted > decodeRows || wanted < 1 || headDim % 8 !== 0 || valueDim % 8 !== 0) return undefined;
  // software drivers take seconds to compile shuffles: one token at a time is what gains most
  if (software && queries > 1) return undefined;
  const lanesAKey = powerOver(Math.max(headDim, valueDim) / 8);
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: most } = capabilities.limits;
  if (lanesAKey > capabilities.subgroupMinSize || lanes > most) return undefined;
  const rows = Math.min(powerOver(wanted), software ? 2 : mostRows, lanesAKey);
  const tiles = Math.ceil(wanted / rows);
  const parts = Math.min(Math.ceil(wantedWorkgroups / Math.max(1, batch * kvHeads * tiles)), Math.ceil(keys / leastSplitKeys));
  // even parts, so that all of them end together; their last steps are not whole
  const splitKeys = Math.max(1, Math.ceil(keys / Math.max(1, parts)));
  const step = software ? 1 : Math.min(splitKeys > shortSplitKeys ? keysAStep : keysAStep / 2, lanesAKey);
  const tile = { rows, lanesAKey, keysAStep: step, lanes, joined: joinedRows({ rows, lanesAKey, lanes, keysAStep: step }) };
  if (decodeBytes(tile) > memory) return undefined;
  return { ...tile, tiles, splits: Math.max(1, Math.ceil(keys / splitKeys)), splitKeys };
}

/** Rows that meet at once: each round of them costs two barriers. */
function joinedRows(tile: Omit<DecodeTile, 'joined'>): number {
  let joined = tile.rows;
  while (joined > 1 && decodeBytes({ ...tile, joined }) > sharedBytes) joined /= 2;
  return joined;
}

/** Keys that some row of a call sees: `lead` leading ones, and those from `low` on; `count` in all. */
interface SeenKeys {
  lead: number;
  low: number;
  count: number;
}

/** They, where the host knows the positions of the queries. */
function seenKeys({ sizes, visibility, queryOffset }: AttentionCall): SeenKeys | undefined {
  if (queryOffset === undefined) return undefined;
  const { left, right, prefix } = visibility.band;
  const high = Math.min(Math.max(queryOffset + sizes.queries + right, 0), sizes.keys);
  const low = Math.min(Math.max(queryOffset - left, 0), high);
  const lead = Math.min(prefix, low);
  return { lead, low, count: lead + high - low };
}

/** The keys of one query, if they are one range and scores stay as they are. */
function evenKeys(call: AttentionCall): SeenKeys | undefined {
  const { sizes, options, score, bias } = call;
  if (sizes.queries !== 1 || score || bias || options.sinks || options.lengths) return undefined;
  const seen = seenKeys(call);
  return seen?.lead === 0 ? seen : undefined;
}

/** The plan of a call that is decode over keys in closed form; undefined where other kernels serve. */
export function planDecodeCall(call: AttentionCall, { q, k, v }: CallTensors): DecodePlan | undefined {
  const { sizes, visibility, selection, device } = call;
  if (visibility.mask || selection || sizes.keys === 0) return undefined;
  if (rowItems([q, k, v], 8) !== 8) return undefined;
  const shape = { ...sizes, keys: seenKeys(call)?.count ?? sizes.keys, group: sizes.heads / sizes.kvHeads };
  return planDecode(shape, device.capabilities, { software: device.isSoftware });
}

/** Parts of the keys, then their merge into `result`. */
export function runDecode(call: AttentionCall, tensors: CallTensors, plan: DecodePlan, { out, lse }: AttentionResult): void {
  const { sizes, device } = call;
  const { batch, queries, heads, kvHeads, valueDim } = sizes;
  const parts = empty(device, [batch, queries, heads, plan.splits, valueDim + 4]);
  const even = evenKeys(call);
  if (even) runEven(call, tensors, plan, even, parts);
  else {
    const { q, k, v } = tensors;
    const { tiles, splits, splitKeys, ...tile } = plan;
    const halves = k.dtype === 'f16';
    const bound = bindCall(call, tensors, { width: halves ? 8 : 4, tiles: { query: queries, key: splitKeys }, transposed: false });
    runDecodeKernel(
      device,
      { halves, ...bound.spec, ...tile },
      { q, k, v, extras: bound.extras, parts },
      { tiles, splits, splitKeys, ...bound.uniforms },
      [kvHeads, tiles * splits, batch],
    );
  }
  runDecodeMerge(device, parts, plan.splits, out, lse);
}

function runEven({ sizes, device, scale }: AttentionCall, { q, k, v }: CallTensors, plan: DecodePlan, keys: SeenKeys, parts: Tensor): void {
  const { batch, heads, kvHeads, headDim, valueDim } = sizes;
  const { tiles, splits, splitKeys: _, ...tile } = plan;
  const { low, count } = keys;
  const group = heads / kvHeads;
  const halves = k.dtype === 'f16';
  const width = halves ? 8 : 4;
  const from = (x: Tensor): Tensor =>
    low === 0 ? x : x.view({ shape: [batch, count, kvHeads, x.dim(3)], offset: x.offset + low * (x.strides[1] ?? 0) });
  const [qBatch, , qHead] = itemStrides(q, width);
  const [kBatch, kRow, kHead] = itemStrides(k, width);
  const [vBatch, vRow, vHead] = itemStrides(v, width);
  runEvenDecodeKernel(
    device,
    { ...tile, headDim, valueDim, halves, full: tiles === 1 && tile.rows === group },
    { q, k: from(k), v: from(v), parts },
    {
      count,
      kBatch,
      kHead,
      kRow,
      qBatch,
      qHead,
      vBatch,
      vHead,
      vRow,
      scale2: scale * log2e,
      group,
      tiles,
      heads,
      splits,
    },
    [kvHeads, splits, batch * tiles],
  );
}
