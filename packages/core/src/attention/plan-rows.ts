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

/** Lanes of a subgroup from which lanes that share rows lie apart. */
const wideSubgroup = 32;

/**
 * Workgroup memory of GPUs whose lanes are known to have 255 registers. Others, and narrow subgroups, take half of the rows, which was
 * 8 % slower where both were measured: a tile that falls out of registers would be many times as slow.
 */
const largeMemory = 49_152;

/** Workgroups that fill a large GPU. */
const enoughWorkgroups = 128;

type Share = Pick<RowTile, 'share' | 'rowsALane' | 'together'> & { columns: readonly number[] };

/** Slices of q and out, of q, dOut and dq, or of k, v, dk and dv in registers: 128 to 192 numbers at 64 and 128 dimensions. */
function shareOf(owner: 'forward' | 'queries' | 'keys', widest: number): Share {
  const share = widest <= 64 ? 4 : 8;
  if (owner === 'forward')
    return widest <= 32
      ? { share: 2, rowsALane: 2, together: 8, columns: [32, 16] }
      : { share, rowsALane: widest <= 128 ? 4 : 2, together: 4, columns: [32, 16, 8] };
  const columns = [16, 8];
  if (owner === 'queries') return { share, rowsALane: widest <= 64 ? 4 : 2, together: 1, columns };
  return { share, rowsALane: widest <= 128 ? 2 : 1, together: 1, columns };
}

/** The tile of a kernel whose workgroups own rows of queries (`forward`, `queries`) or keys; undefined where subgroups or rows are too few. */
export function planRows(
  owner: 'forward' | 'queries' | 'keys',
  { headDim, valueDim, rows, allRows }: RowNeed,
  { subgroups, subgroupMinSize, limits }: Capabilities,
): RowTile | undefined {
  const { columns: steps, ...base } = shareOf(owner, Math.max(headDim, valueDim));
  if (!subgroups || subgroupMinSize < base.share) return undefined;
  const wide = subgroupMinSize >= wideSubgroup;
  const whole = wide && limits.maxComputeWorkgroupStorageSize >= largeMemory;
  const rowsALane = whole ? base.rowsALane : Math.max(1, base.rowsALane / 2);
  const spread = wide ? wideSubgroup / base.share : 1;
  const statistics = owner === 'keys' ? 8 : 0;
  // half of the memory of a large GPU's workgroup at most, so that several are resident
  const room = Math.min(limits.maxComputeWorkgroupStorageSize, 17_408);
  const fits = (tile: RowTile): boolean =>
    streamedBytes(tile, [headDim, valueDim]) + statistics * tile.columns <= room && ownedRows(tile) <= rows;
  const fitting = [128, 64, 32].flatMap(
    (lanes) => steps.map((columns): RowTile => ({ ...base, rowsALane, spread, lanes, columns })).find(fits) ?? [],
  );
  return fitting.find((t) => allRows >= enoughWorkgroups * ownedRows(t)) ?? fitting.at(-1);
}
