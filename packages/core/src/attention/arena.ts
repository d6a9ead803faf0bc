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
  /** Visibility of the partial tiles as bits, where asked for and not too many: of the transposed part where there is one. */
  bits: ArenaBits | undefined;
}

/** Where the bits of partial tiles lie: tile n has its rows (of keys, in the transposed part) from word `bitsAt` + n x rows x words on. */
export interface ArenaBits {
  /** A word a run: the number of a partial tile is this plus its tile of the other side, wrapping around. */
  tilesAt: number;
  bitsAt: number;
  /** Words a row. */
  words: number;
  tiles: number;
  /** Row of the lists and tile of the other side of each partial tile, until the device has made the bits. */
  pending: Uint32Array | undefined;
}

export interface ArenaShape {
  queries: number;
  keys: number;
  offset: number;
  heads: number;
  batch: number;
  tiles: TileSizes;
  transposed: boolean;
  /** Make room for the bits of partial tiles. */
  bits: boolean;
}

interface Kept {
  mask: Mask;
  key: string;
  storage: Storage;
  arena: MaskArena;
}

const kept = new WeakMap<Device, Kept[]>();
const mostKept = 32;
/** Bytes of all that are kept, unless the newest alone needs more. */
const mostKeptBytes = 512 * 2 ** 20;

/** @param shape undefined: only the captured arrays (the host does not know where the queries stand) */
export function maskArena(device: Device, mask: Mask, shape: ArenaShape | undefined): MaskArena {
  let list = kept.get(device);
  if (!list) kept.set(device, (list = []));
  const key = shape
    ? [
        shape.queries,
        shape.keys,
        shape.offset,
        shape.heads,
        shape.batch,
        shape.tiles.query,
        shape.tiles.key,
        shape.transposed,
        shape.bits,
      ].join()
    : '';
  const found = list.findIndex((entry) => entry.mask === mask && entry.key === key);
  if (found >= 0) {
    const [entry] = list.splice(found, 1);
    list.push(entry!);
    return entry!.arena;
  }
  const { words, extent, ...places } = build(mask, shape);
  const storage = device.allocate(4 * extent, 'attention mask');
  device.write(storage, 0, new Uint8Array(words.buffer, words.byteOffset, words.byteLength));
  const arena: MaskArena = { operand: { storage, dtype: 'u32', offset: 0, extent, label: 'attention mask' }, ...places };
  list.push({ mask, key, storage, arena });
  let bytes = list.reduce((sum, entry) => sum + entry.storage.bytes, 0);
  while (list.length > mostKept || (bytes > mostKeptBytes && list.length > 1)) {
    const [oldest] = list.splice(0, 1);
    bytes -= oldest!.storage.bytes;
    device.pool.release(oldest!.storage);
  }
  return arena;
}

function build(mask: Mask, shape: ArenaShape | undefined): Omit<MaskArena, 'operand'> & { words: Uint32Array; extent: number } {
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
  const partial = shape?.bits && runs && Object.values(mask.captures).every(onHost) ? partialTiles(runs, shape) : undefined;
  const bitTilesAt = length;
  if (partial) {
    pieces.push(partial.firstTiles);
    length += partial.firstTiles.length;
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
    extent: words.length + (partial?.words ?? 0),
    bits: partial && {
      tilesAt: bitTilesAt,
      bitsAt: words.length,
      words: partial.rowWords,
      tiles: partial.list.length / 2,
      pending: partial.list,
    },
    rows: { forward: queryTiles, transposed: keyTiles },
    heads,
    batches,
    forward: { rowsAt: forwardRows, runsAt: forwardRuns },
    transposed: { rowsAt: backRows, runsAt: backRuns },
    captureAt,
  };
}

/** Bits of partial tiles take at most this many bytes a row and stored head. */
const mostBitBytes = 512;

/** Numbers the partial tiles of a part of the lists; undefined where there are none, or too many for their bits. */
export function partialTiles(
  runs: Uint32Array,
  { tiles, queries, keys, transposed }: Pick<ArenaShape, 'tiles' | 'queries' | 'keys' | 'transposed'>,
): { firstTiles: Uint32Array<ArrayBuffer>; list: Uint32Array<ArrayBuffer>; rowWords: number; words: number } | undefined {
  const [queryTiles = 0, keyTiles = 0, heads = 1, batches = 1, forwardRows = 0, backRows = 0, forwardRuns = 0, backRuns = 0] = runs;
  const own = transposed
    ? { rows: keys, edge: tiles.key, tiles: keyTiles, columns: tiles.query, rowsAt: backRows, runsAt: backRuns }
    : { rows: queries, edge: tiles.query, tiles: queryTiles, columns: tiles.key, rowsAt: forwardRows, runsAt: forwardRuns };
  const { rowsAt, runsAt } = own;
  const rows = own.tiles * heads * batches;
  const firstTiles = new Uint32Array(runs[rowsAt + 2 * rows] ?? 0);
  const rowWords = Math.ceil(own.columns / 32);
  const most = (mostBitBytes / 4 / own.edge / rowWords) * own.rows * heads * batches;
  const list: number[] = [];
  for (let row = 0; row < rows; row++) {
    const end = runs[rowsAt + 2 * row + 2] ?? 0;
    for (let run = runs[rowsAt + 2 * row + 1] ?? 0; run < end; run++) {
      const [first = 0, stop = 0] = [runs[runsAt + 2 * run], runs[runsAt + 2 * run + 1]];
      firstTiles[run] = list.length / 2 - first;
      if (list.length / 2 + stop - first > most) return undefined;
      for (let tile = first; tile < stop; tile++) list.push(row, tile);
    }
  }
  if (list.length === 0) return undefined;
  return { firstTiles, list: Uint32Array.from(list), rowWords, words: (list.length / 2) * own.edge * rowWords };
}
