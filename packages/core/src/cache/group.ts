import type { Device } from '../device/device.js';
import { formatBytes, HeedError } from '../errors.js';
import type { KvGroupView, KvPlacement, KvRowsStage } from '../seams/kv-stage.js';
import type { State } from '../seams/mixer.js';
import { itemBytes, type KvCodec } from '../seams/kv-codec.js';
import { empty, tensor, writeValues } from '../tensor/create.js';
import { sizeOf, type Tensor } from '../tensor/tensor.js';
import type { GroupStages } from './stages.js';

/** Storage of one head group: pools, page table, extra rows. */
export interface KvGroup {
  readonly view: KvGroupView;
  readonly stages: GroupStages;
  /** Extra rows of a rows stage. */
  readonly extra: Tensor | undefined;
  /** What stages keep for this cache. */
  readonly elements: State | undefined;
  readonly placement: KvPlacement | undefined;
}

/** States of a group's stages. */
export function statesOf({ elements, placement }: KvGroup): State[] {
  return [elements, placement].filter((state) => state !== undefined);
}

export interface GroupSizes {
  batch: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
  pageTokens: number;
  capacity: number;
}

/** Floats of an extra row: its bias in a vec4 of its own, key, value, each padded to vec4. */
export function extraRowFloats(headDim: number, valueDim: number): number {
  return 4 + 4 * Math.ceil(headDim / 4) + 4 * Math.ceil(valueDim / 4);
}

/** @throws HeedError LIMIT_EXCEEDED when a pool is larger than one binding of this device */
export function createGroup(device: Device, stages: GroupStages, sizes: GroupSizes, counts: Tensor): KvGroup {
  const { batch, headDim, valueDim, pageTokens, capacity } = sizes;
  const { name, heads } = stages.group;
  const sinks = stages.tokens?.sinks ?? 0;
  const recent = stages.tokens?.recent ?? 0;
  const rows = stages.tokens ? Math.min(capacity, sinks + recent) : capacity;
  const ring = stages.tokens !== undefined && rows === sinks + recent;
  const pages = Math.ceil(rows / pageTokens);
  const pool = (side: string, codec: KvCodec, dim: number): Tensor => {
    const bytes = batch * pages * heads.length * pageTokens * codec.rowItems(dim) * itemBytes(codec);
    const limit = device.limits.maxStorageBufferBindingSize;
    if (bytes > limit)
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `createKvCache: ${side} of ${batch} x ${rows} tokens and ${heads.length} heads need a binding of ${formatBytes(bytes)}, this device binds at most ${formatBytes(limit)}; ` +
          'lower capacity or batch, store f16 or codes, or split the heads into groups by a heads stage',
      );
    return empty(device, [bytes / 4], 'u32', `kv cache ${side}`);
  };
  const keys = pool('keys', stages.keys, headDim);
  const values = pool('values', stages.values, valueDim);
  const index = tensor(device, Uint32Array.from([...heads, ...Array.from({ length: batch * pages }, (_, page) => page)]), undefined, {
    label: 'kv cache index',
  });
  const view: KvGroupView = {
    device,
    name,
    heads,
    batch,
    kvHeads: sizes.kvHeads,
    headDim,
    valueDim,
    pageTokens,
    pages,
    rows,
    sinks: ring ? sinks : 0,
    recent: ring ? recent : 0,
    keys,
    values,
    keyCodec: stages.keys,
    valueCodec: stages.values,
    index,
    counts,
  };
  return {
    view,
    stages,
    extra: ring && stages.rows ? extraRows(device, view, stages.rows) : undefined,
    elements: stages.elements?.start?.(view),
    placement: stages.placement?.start(view),
  };
}

function extraRows(device: Device, view: KvGroupView, stage: KvRowsStage): Tensor {
  const shape = [view.batch, view.heads.length, stage.extraRows, extraRowFloats(view.headDim, view.valueDim)];
  return tensor(device, hiddenRows(shape), shape, { label: 'kv cache extra rows' });
}

/** Rows of zeros with a bias that hides them. */
function hiddenRows(shape: readonly number[]): Float32Array {
  const values = new Float32Array(sizeOf(shape));
  const floats = shape.at(-1) ?? 1;
  for (let at = 0; at < values.length; at += floats) values[at] = -1e30;
  return values;
}

/** Hides the extra rows of a group again: its cache begins anew. */
export function clearExtra({ extra }: KvGroup): void {
  if (extra) writeValues(extra, hiddenRows(extra.shape));
}

/** Layout of a group as its kernels take it. */
export function layoutOf(view: KvGroupView): {
  maxBatch: number;
  kvHeads: number;
  groupHeads: number;
  pages: number;
  pageTokens: number;
  keyRow: number;
  valueRow: number;
  sinks: number;
  recent: number;
} {
  return {
    maxBatch: view.batch,
    kvHeads: view.kvHeads,
    groupHeads: view.heads.length,
    pages: view.pages,
    pageTokens: view.pageTokens,
    keyRow: view.keyCodec.rowItems(view.headDim),
    valueRow: view.valueCodec.rowItems(view.valueDim),
    sinks: view.sinks,
    recent: view.recent,
  };
}
