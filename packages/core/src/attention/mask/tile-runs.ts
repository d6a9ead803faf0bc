import { HeedError } from '../../errors.js';
import { withOffset } from './mask.js';
import type { AttentionLengths, Mask, Run, TileSizes } from './types.js';

// The runs of a mask packed for kernels: one u32 array, all offsets in words from its start.
//
// word  header
//  0    query tiles of one (batch, head): rows of the forward part
//  1    key tiles: rows of the transposed part
//  2    heads stored: 1 when all share, else the query heads
//  3    batch entries stored: 1 when all share, else the batch
//  4    start of the forward row table
//  5    start of the transposed row table, 0 when absent
//  6    start of the forward runs
//  7    start of the transposed runs, 0 when absent
//  8    edge of a query tile in tokens
//  9    edge of a key tile in tokens
// 10    listed tiles of the longest forward row
// 11    listed tiles of the longest transposed row, 0 when absent
//
// Row r = (min(batch, stored batch - 1) * stored heads + min(head, stored heads - 1)) * tiles of the axis + tile.
// Row table, two words a row and one more at the end: word 2r is the index of the row's first run, word 2r + 1 that of its first
// PARTIAL run; full runs come first, so [2r] .. [2r + 1] are full and [2r + 1] .. [2r + 2] are partial. Both groups ascend.
// Run i, two words at runs + 2i: first tile; end tile (exclusive) with bit 31 set when the run is full.
// Everything between the listed tiles is empty. Rows without runs are legal.

/** Words before the first row table. */
const RUNS_HEADER_WORDS = 12;
const FULL_BIT = 0x80000000;

export interface TileRunsShape extends AttentionLengths {
  /** Query heads and batch entries of the call; used where the mask differs between them. */
  readonly heads: number;
  readonly batch: number;
  readonly tiles: TileSizes;
  /** Also pack the transposed runs, which dk and dv need; default false. */
  readonly transposed?: boolean;
}

/** How much a direction lists, summed over the stored rows. */
export interface RunCounts {
  readonly runs: number;
  readonly fullTiles: number;
  readonly partialTiles: number;
  /** Listed tiles of the longest row. */
  readonly longestRow: number;
}

/** Packed runs with their counts. */
export interface TileRuns {
  /** Header, row tables and runs; see the head of this file. */
  readonly arena: Uint32Array;
  readonly forward: RunCounts;
  readonly transposed: RunCounts | undefined;
  readonly storedHeads: number;
  readonly storedBatch: number;
  /** Tiles listed by the forward rows times the pairs of a tile: the work of a kernel, in pairs, per stored head and batch entry summed. */
  readonly listedPairs: number;
  readonly bytes: number;
}

interface Packed {
  readonly rows: Uint32Array;
  readonly runs: Uint32Array;
  readonly counts: RunCounts;
}

/**
 * All runs of a mask in one array for kernels. O(query tiles) for the static masks, whatever the number of pairs.
 * @throws HeedError INVALID_ARGUMENT when tiles are not positive, LIMIT_EXCEEDED beyond 2^31 words
 */
export function tileRuns(mask: Mask, shape: TileRunsShape): TileRuns {
  const { tiles, transposed = false } = shape;
  const lengths = withOffset(shape);
  for (const [name, edge] of Object.entries(tiles)) {
    if (!Number.isInteger(edge) || edge < 1)
      throw new HeedError('INVALID_ARGUMENT', `tileRuns: the ${name} tile is ${edge}; use at least 1 token`);
  }
  const storedHeads = mask.perHead ? shape.heads : 1;
  const storedBatch = mask.perBatch ? shape.batch : 1;
  const queryTiles = Math.ceil(lengths.queries / tiles.query);
  const keyTiles = Math.ceil(lengths.keys / tiles.key);
  const forward = pack(storedBatch, storedHeads, queryTiles, (batch, head, tile) => mask.runs(head, tile, tiles, lengths, batch));
  const back = transposed
    ? pack(storedBatch, storedHeads, keyTiles, (batch, head, tile) => mask.transposedRuns(head, tile, tiles, lengths, batch))
    : undefined;
  const forwardRows = RUNS_HEADER_WORDS;
  const forwardRuns = forwardRows + forward.rows.length;
  const backRows = forwardRuns + forward.runs.length;
  const backRuns = backRows + (back?.rows.length ?? 0);
  const words = backRuns + (back?.runs.length ?? 0);
  if (words >= 2 ** 31) {
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `tileRuns: the runs take ${words} words; use larger tiles, or a mask that heads and batch entries share`,
    );
  }
  const arena = new Uint32Array(words);
  arena.set([
    queryTiles,
    keyTiles,
    storedHeads,
    storedBatch,
    forwardRows,
    back ? backRows : 0,
    forwardRuns,
    back ? backRuns : 0,
    tiles.query,
    tiles.key,
  ]);
  arena[10] = forward.counts.longestRow;
  arena[11] = back?.counts.longestRow ?? 0;
  arena.set(forward.rows, forwardRows);
  arena.set(forward.runs, forwardRuns);
  if (back !== undefined) {
    arena.set(back.rows, backRows);
    arena.set(back.runs, backRuns);
  }
  return {
    arena,
    forward: forward.counts,
    transposed: back?.counts,
    storedHeads,
    storedBatch,
    listedPairs: (forward.counts.fullTiles + forward.counts.partialTiles) * tiles.query * tiles.key,
    bytes: arena.byteLength,
  };
}

function pack(batches: number, heads: number, tiles: number, runsOf: (batch: number, head: number, tile: number) => Run[]): Packed {
  const rows = new Uint32Array(2 * batches * heads * tiles + 1);
  let runs = new Uint32Array(1024);
  let used = 0;
  let fullTiles = 0;
  let partialTiles = 0;
  let longestRow = 0;
  const append = (row: Run[], kind: Run[2]): number => {
    let listed = 0;
    for (const [first, end, own] of row) {
      if (own !== kind) continue;
      if (2 * used + 2 > runs.length) {
        const grown = new Uint32Array(runs.length * 2);
        grown.set(runs);
        runs = grown;
      }
      runs[2 * used] = first;
      runs[2 * used + 1] = (kind === 'full' ? end | FULL_BIT : end) >>> 0;
      used++;
      listed += end - first;
    }
    return listed;
  };
  let r = 0;
  for (let batch = 0; batch < batches; batch++) {
    for (let head = 0; head < heads; head++) {
      for (let tile = 0; tile < tiles; tile++, r++) {
        const row = runsOf(batch, head, tile);
        rows[2 * r] = used;
        const full = append(row, 'full');
        rows[2 * r + 1] = used;
        const partial = append(row, 'partial');
        fullTiles += full;
        partialTiles += partial;
        longestRow = Math.max(longestRow, full + partial);
      }
    }
  }
  rows[2 * r] = used;
  return { rows, runs: runs.slice(0, 2 * used), counts: { runs: used, fullTiles, partialTiles, longestRow } };
}

/** A row of an arena, read back as a kernel reads it: full runs first, then partial ones. */
export function readRow(arena: Uint32Array, direction: 'forward' | 'transposed', batch: number, head: number, tile: number): Run[] {
  const [queryTiles = 0, keyTiles = 0, heads = 1, batches = 1] = arena;
  const forward = direction === 'forward';
  const tiles = forward ? queryTiles : keyTiles;
  const table = arena[forward ? 4 : 5]!;
  const runs = arena[forward ? 6 : 7]!;
  if (table === 0) throw new HeedError('INVALID_ARGUMENT', 'readRow: the arena has no transposed runs; pack it with transposed: true');
  const r = (Math.min(batch, batches - 1) * heads + Math.min(head, heads - 1)) * tiles + tile;
  const out: Run[] = [];
  for (let i = arena[table + 2 * r]!; i < arena[table + 2 * r + 2]!; i++) {
    const end = arena[runs + 2 * i + 1]!;
    out.push([arena[runs + 2 * i]!, (end & ~FULL_BIT) >>> 0, end >= FULL_BIT ? 'full' : 'partial']);
  }
  return out;
}

/** Bytes of an arena in which no two neighbouring tiles are alike: what a mask can need at most. */
export function worstCaseRunBytes(shape: TileRunsShape, perHead: boolean, perBatch: boolean): number {
  const { tiles, heads, batch, transposed = false } = shape;
  const { queries, keys } = withOffset(shape);
  const stored = (perHead ? heads : 1) * (perBatch ? batch : 1);
  const queryTiles = Math.ceil(queries / tiles.query);
  const keyTiles = Math.ceil(keys / tiles.key);
  const direction = (rows: number, columns: number): number => 2 * stored * rows + 1 + 2 * stored * rows * columns;
  return 4 * (RUNS_HEADER_WORDS + direction(queryTiles, keyTiles) + (transposed ? direction(keyTiles, queryTiles) : 0));
}
