// Tiles of the kernels that keep rows in registers. Chosen by a sweep on an H100 (docs/benchmarks/tuning.md, attention).
import type { Capabilities } from '../device/capabilities.js';
import { ownedRows, type RowTile, streamedBytes } from './kernels/row-lanes.js';

/** What a tile depends on. */
export interface RowNeed {
  headDim: number;
  valueDim: number;
  /** Rows that the workgroups own: of a block of a selection where there is one. */
  rows: number;
  /** Owned rows times heads and batch entries. */
  allRows: number;
}

/** Lanes whose subgroups hold the most rows; narrower ones have fewer registers a lane. */
const wideSubgroup = 32;

/** Workgroups that fill a large GPU. */
const enoughWorkgroups = 256;

type Share = Pick<RowTile, 'share' | 'rowsALane' | 'together'>;

/** Slices of q and out (of q, dOut, dq; of k, v, dk, dv) in registers: 128 to 192 of them at 64 and 128 dimensions. */
function shareOf(owner: 'forward' | 'queries' | 'keys', widest: number): Share {
  const share = widest <= 64 ? 4 : 8;
  if (owner === 'forward') return { share, rowsALane: widest <= 128 ? 4 : 2, together: 4 };
  if (owner === 'queries') return { share, rowsALane: widest <= 64 ? 4 : 2, together: 1 };
  return { share, rowsALane: widest <= 128 ? 2 : 1, together: 1 };
}

/** The tile of a kernel whose workgroups own rows of queries (`forward`, `queries`) or keys; undefined where subgroups or rows are too few. */
export function planRows(
  owner: 'forward' | 'queries' | 'keys',
  { headDim, valueDim, rows, allRows }: RowNeed,
  { subgroups, subgroupMinSize, limits }: Capabilities,
): RowTile | undefined {
  const base = shareOf(owner, Math.max(headDim, valueDim));
  if (!subgroups || subgroupMinSize < base.share) return undefined;
  const wide = subgroupMinSize >= wideSubgroup;
  const rowsALane = wide ? base.rowsALane : Math.max(1, base.rowsALane / 2);
  const spread = wide ? wideSubgroup / base.share : 1;
  const statistics = owner === 'keys' ? 8 : 0;
  const bytes = (tile: RowTile): number => streamedBytes(tile, [headDim, valueDim]) + statistics * tile.columns;
  const tiles = [128, 64, 32].flatMap((lanes) => [32, 16, 8].map((columns): RowTile => ({ ...base, rowsALane, spread, lanes, columns })));
  // half of the memory of a workgroup, so that several are resident
  const room = Math.min(limits.maxComputeWorkgroupStorageSize, 17408);
  const fitting = tiles.filter((t) => bytes(t) <= room && ownedRows(t) <= rows);
  return fitting.find((t) => allRows >= enoughWorkgroups * ownedRows(t)) ?? fitting.at(-1);
}
