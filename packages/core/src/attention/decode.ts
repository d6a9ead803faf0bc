import type { Capabilities } from '../device/capabilities.js';
import { empty } from '../tensor/create.js';
import { bindCall, type CallTensors } from './bind.js';
import type { AttentionCall } from './call.js';
import { decodeBytes, type DecodeTile } from './kernels/decode-text.js';
import { runDecodeKernel } from './kernels/decode.js';
import { runDecodeMerge } from './kernels/decode-merge.js';
import type { AttentionResult } from './merge.js';
import { rowItems } from './problem.js';

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
  /** Parts of the keys, each a workgroup, and keys of a part: whole steps. */
  splits: number;
  splitKeys: number;
};

/** Rows (queries x heads of a group) up to which this is decode. */
export const decodeRows = 16;
/** Rows whose queries and sums fit the registers of a lane beside the keys in flight. */
const mostRows = 8;
/** Workgroups that fill a large GPU several times over. */
const wantedWorkgroups = 528;
const leastSplitKeys = 128;
const lanes = 128;
const keysAStep = 4;

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
  const tile = { rows, lanesAKey, keysAStep: software ? 1 : Math.min(keysAStep, lanesAKey), lanes };
  if (decodeBytes(tile) > memory) return undefined;
  const tiles = Math.ceil(wanted / rows);
  const step = (lanes / lanesAKey) * tile.keysAStep;
  const parts = Math.min(Math.ceil(wantedWorkgroups / Math.max(1, batch * kvHeads * tiles)), Math.ceil(keys / leastSplitKeys));
  const splitKeys = Math.max(1, Math.ceil(keys / Math.max(1, parts) / step)) * step;
  return { ...tile, tiles, splits: Math.max(1, Math.ceil(keys / splitKeys)), splitKeys };
}

/** The plan of a call that is decode over keys in closed form; undefined where other kernels serve. */
export function planDecodeCall(call: AttentionCall, { q, k, v }: CallTensors): DecodePlan | undefined {
  const { sizes, visibility, selection, device } = call;
  if (visibility.mask || selection || sizes.keys === 0) return undefined;
  if (rowItems([q, k, v], 8) !== 8) return undefined;
  return planDecode({ ...sizes, group: sizes.heads / sizes.kvHeads }, device.capabilities, { software: device.isSoftware });
}

/** Parts of the keys, then their merge into `result`. */
export function runDecode(call: AttentionCall, tensors: CallTensors, plan: DecodePlan, { out, lse }: AttentionResult): void {
  const { sizes, device } = call;
  const { batch, queries, heads, kvHeads, valueDim } = sizes;
  const { q, k, v } = tensors;
  const { tiles, splits, splitKeys, ...tile } = plan;
  const parts = empty(device, [batch, queries, heads, splits, valueDim + 4]);
  const halves = k.dtype === 'f16';
  const bound = bindCall(call, tensors, {
    width: halves ? 8 : 4,
    tiles: { query: queries, key: splitKeys },
    transposed: false,
  });
  runDecodeKernel(
    device,
    { ...bound.spec, ...tile, halves },
    { q, k, v, extras: bound.extras, parts },
    { ...bound.uniforms, tiles, splits, splitKeys },
    [kvHeads, tiles * splits, batch],
  );
  runDecodeMerge(device, parts, splits, out, lse);
}
