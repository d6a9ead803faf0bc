import { HeedError } from '../errors.js';
import type { Bytes, Snapshot } from '../seams/mixer.js';
import { itemBytes, type KvCodec, rowBytes } from '../seams/kv-codec.js';
import type { Tensor } from '../tensor/tensor.js';
import { type KvGroup, statesOf } from './group.js';

type Manifest = Snapshot['manifest'];

/** Bytes of a cache by kind; their sum is what its buffers take. */
export function bytesOf(groups: readonly KvGroup[], small: readonly Tensor[]): Bytes {
  const sum: Bytes = { payload: 0, metadata: 0, padding: 0, host: 0 };
  const count = (tensor: Tensor, payload: number, metadata: number): void => {
    sum.payload += payload;
    sum.metadata += metadata;
    sum.padding += tensor.storage.bytes - payload - metadata;
  };
  for (const group of groups) {
    const { view, extra } = group;
    const rows = view.batch * view.rows * view.heads.length;
    const pool = (tensor: Tensor, codec: KvCodec, dim: number): void => {
      const metadata = codec.rowMetadataBytes(dim);
      count(tensor, rows * (rowBytes(codec, dim) - metadata), rows * metadata);
    };
    pool(view.keys, view.keyCodec, view.headDim);
    pool(view.values, view.valueCodec, view.valueDim);
    count(view.index, 0, view.index.bytes);
    if (extra) count(extra, extra.bytes, 0);
    for (const state of statesOf(group))
      for (const kind of ['payload', 'metadata', 'padding', 'host'] as const) sum[kind] += state.bytes()[kind];
  }
  for (const tensor of small) count(tensor, 0, tensor.bytes);
  return sum;
}

function pageBytes(pool: Tensor, { view }: KvGroup): number {
  return pool.bytes / (view.batch * view.pages);
}

function usedPages({ view }: KvGroup, tokens: number): number {
  return Math.ceil(Math.min(tokens, view.rows) / view.pageTokens);
}

async function bytesOfTensor(tensor: Tensor): Promise<Uint8Array> {
  return tensor.device.readBytes(tensor.storage, tensor.offset * 4, tensor.bytes);
}

/** The used pages of `batch` sequences in the order of tokens, and all small tensors. */
export async function readCache(
  groups: readonly KvGroup[],
  counts: Tensor,
  state: { batch: number; tokens: number },
): Promise<Record<string, Uint8Array>> {
  const arrays: Record<string, Uint8Array> = { counts: await bytesOfTensor(counts) };
  for (const [g, group] of groups.entries()) {
    const { view, extra } = group;
    const index = new Uint32Array((await bytesOfTensor(view.index)).slice().buffer);
    const used = usedPages(group, state.tokens);
    for (const [side, pool] of [['keys', view.keys] as const, ['values', view.values] as const]) {
      const all = used > 0 ? await bytesOfTensor(pool) : new Uint8Array();
      const size = pageBytes(pool, group);
      const packed = new Uint8Array(state.batch * used * size);
      for (let b = 0; b < state.batch; b++) {
        for (let p = 0; p < used; p++) {
          const page = index[view.heads.length + b * view.pages + p] ?? 0;
          packed.set(all.subarray(page * size, (page + 1) * size), (b * used + p) * size);
        }
      }
      arrays[`${g}.${side}`] = packed;
    }
    if (extra) arrays[`${g}.extra`] = await bytesOfTensor(extra);
  }
  return arrays;
}

/** Writes what `readCache` gave; pages lie in order afterwards. @throws HeedError INVALID_FILE when an array is absent or of another size */
export function writeCache(
  groups: readonly KvGroup[],
  counts: Tensor,
  state: { batch: number; tokens: number },
  arrays: Readonly<Record<string, Uint8Array>>,
): void {
  const array = (name: string, size: number): Uint8Array => {
    const found = arrays[name];
    if (found?.byteLength !== size)
      throw new HeedError(
        'INVALID_FILE',
        `kvCache.restore: array "${name}" has ${found?.byteLength ?? 'no'} bytes, ${size} were expected; the snapshot is damaged`,
      );
    return found;
  };
  const writes: (() => void)[] = [];
  const put = (tensor: Tensor, byteOffset: number, bytes: Uint8Array): void => {
    if (bytes.byteLength > 0) writes.push(() => tensor.device.write(tensor.storage, byteOffset, bytes));
  };
  put(counts, 0, array('counts', counts.bytes));
  for (const [g, group] of groups.entries()) {
    const { view, extra } = group;
    const used = usedPages(group, state.tokens);
    const table = Uint32Array.from([...view.heads, ...Array.from({ length: view.batch * view.pages }, (_, page) => page)]);
    put(view.index, 0, new Uint8Array(table.buffer));
    for (const [side, pool] of [['keys', view.keys] as const, ['values', view.values] as const]) {
      const size = pageBytes(pool, group);
      const packed = array(`${g}.${side}`, state.batch * used * size);
      for (let b = 0; b < state.batch; b++) put(pool, b * view.pages * size, packed.subarray(b * used * size, (b + 1) * used * size));
    }
    if (extra) put(extra, 0, array(`${g}.extra`, extra.bytes));
  }
  for (const write of writes) write();
}

/** What a cache must have in common with one whose snapshot it takes. */
export function manifestOf(groups: readonly KvGroup[], capacity: number): Manifest {
  const [first] = groups;
  return {
    kind: 'kv-cache',
    maxBatch: first?.view.batch ?? 0,
    kvHeads: first?.view.kvHeads ?? 0,
    headDim: first?.view.headDim ?? 0,
    valueDim: first?.view.valueDim ?? 0,
    pageTokens: first?.view.pageTokens ?? 0,
    capacity,
    groups: JSON.stringify(
      groups.map(({ view, stages }) => ({
        heads: view.heads,
        keys: `${view.keyCodec.name} ${itemBytes(view.keyCodec)}`,
        values: `${view.valueCodec.name} ${itemBytes(view.valueCodec)}`,
        stages: [stages.tokens, stages.rows, stages.elements, stages.codes, stages.placement].map((s) => s && [s.name, s.settings]),
      })),
    ),
  };
}

/** @throws HeedError INVALID_FILE when a setting differs */
export function checkManifest(own: Manifest, given: Manifest): void {
  for (const [name, value] of Object.entries(own)) {
    if (given[name] !== value)
      throw new HeedError(
        'INVALID_FILE',
        `kvCache.restore: the snapshot's ${name} is ${JSON.stringify(given[name])}, this cache's ${JSON.stringify(value)}; restore into a cache made with the same options`,
      );
  }
}

/** A whole number of the manifest. @throws HeedError INVALID_FILE */
export function manifestCount(manifest: Manifest, name: string, most: number): number {
  const value = manifest[name];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > most)
    throw new HeedError(
      'INVALID_FILE',
      `kvCache.restore: the snapshot's ${name} is ${JSON.stringify(value)}; it must be an integer of at most ${most}`,
    );
  return value;
}

/** Snapshots of what stages keep, by group and stage. */
export async function snapshotStates(groups: readonly KvGroup[]): Promise<Snapshot> {
  const manifest: Record<string, Manifest[string]> = {};
  const arrays: Record<string, Uint8Array> = {};
  for (const [g, group] of groups.entries()) {
    for (const [i, state] of statesOf(group).entries()) {
      const own = await state.snapshot();
      for (const [name, value] of Object.entries(own.manifest)) manifest[`${g}.${i}.${name}`] = value;
      for (const [name, bytes] of Object.entries(own.arrays)) arrays[`${g}.${i}.${name}`] = bytes;
    }
  }
  return { manifest, arrays };
}

export function restoreStates(groups: readonly KvGroup[], { manifest, arrays }: Snapshot): void {
  const own = <T>(values: Readonly<Record<string, T>>, prefix: string): Record<string, T> =>
    Object.fromEntries(
      Object.entries(values).flatMap(([name, value]) => (name.startsWith(prefix) ? [[name.slice(prefix.length), value]] : [])),
    );
  groups.forEach((group, g) =>
    statesOf(group).forEach((state, i) => state.restore({ manifest: own(manifest, `${g}.${i}.`), arrays: own(arrays, `${g}.${i}.`) })),
  );
}
