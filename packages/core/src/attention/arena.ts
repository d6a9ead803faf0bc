import type { Device } from '../device/device.js';
import type { Storage } from '../device/pool.js';
import type { Operand } from '../kernel/bindings.js';
import { type Mask, onHost, tileRuns, type TileSizes } from './mask/index.js';

// What a mask needs on the device, in one buffer of words: its runs for one tile size and the arrays that its predicate reads.
// It is made once for a mask, lengths and tiles, and kept by the device: the last few, as masks are objects that live long.

/** The device's copy of a mask. */
export interface MaskArena {
  operand: Operand;
  /** Rows a head, stored heads and batch entries of the lists. */
  rows: { forward: number; transposed: number };
  heads: number;
  batches: number;
  /** Words at which row tables and runs begin. */
  forward: { rowsAt: number; runsAt: number };
  transposed: { rowsAt: number; runsAt: number };
  /** First word of each captured array of the host. */
  captureAt: Readonly<Record<string, number>>;
}

export interface ArenaShape {
  queries: number;
  keys: number;
  offset: number;
  heads: number;
  batch: number;
  tiles: TileSizes;
  transposed: boolean;
}

interface Kept {
  mask: Mask;
  key: string;
  storage: Storage;
  arena: MaskArena;
}

const kept = new WeakMap<Device, Kept[]>();
const mostKept = 32;

/** @param shape undefined: only the captured arrays (the host does not know where the queries stand) */
export function maskArena(device: Device, mask: Mask, shape: ArenaShape | undefined): MaskArena {
  let list = kept.get(device);
  if (!list) kept.set(device, (list = []));
  const key = shape
    ? [shape.queries, shape.keys, shape.offset, shape.heads, shape.batch, shape.tiles.query, shape.tiles.key, shape.transposed].join()
    : '';
  const found = list.findIndex((entry) => entry.mask === mask && entry.key === key);
  if (found >= 0) {
    const [entry] = list.splice(found, 1);
    list.push(entry!);
    return entry!.arena;
  }
  const { words, ...places } = build(mask, shape);
  const storage = device.allocate(words.byteLength, 'attention mask');
  device.write(storage, 0, new Uint8Array(words.buffer, words.byteOffset, words.byteLength));
  const arena: MaskArena = { operand: { storage, dtype: 'u32', offset: 0, extent: words.length, label: 'attention mask' }, ...places };
  list.push({ mask, key, storage, arena });
  if (list.length > mostKept) device.pool.release(list.shift()!.storage);
  return arena;
}

function build(mask: Mask, shape: ArenaShape | undefined): Omit<MaskArena, 'operand'> & { words: Uint32Array } {
  const runs = shape && tileRuns(mask, { ...shape, transposed: shape.transposed }).arena;
  const pieces: Uint32Array[] = runs ? [runs] : [];
  let length = runs?.length ?? 0;
  const captureAt: Record<string, number> = {};
  for (const [name, source] of Object.entries(mask.captures)) {
    if (!onHost(source)) continue;
    captureAt[name] = length;
    pieces.push(new Uint32Array(source.buffer, source.byteOffset, source.length));
    length += source.length;
  }
  const words = new Uint32Array(Math.max(4, length));
  let at = 0;
  for (const piece of pieces) {
    words.set(piece, at);
    at += piece.length;
  }
  const [queryTiles = 0, keyTiles = 0, heads = 1, batches = 1, forwardRows = 0, backRows = 0, forwardRuns = 0, backRuns = 0] = runs ?? [];
  return {
    words,
    rows: { forward: queryTiles, transposed: keyTiles },
    heads,
    batches,
    forward: { rowsAt: forwardRows, runsAt: forwardRuns },
    transposed: { rowsAt: backRows, runsAt: backRuns },
    captureAt,
  };
}
