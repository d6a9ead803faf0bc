import { tileKeys } from './kernels/attend.js';

/** What an attend plan depends on. `keys` is the most rows that a head may see: it never specialises a kernel. */
export interface AttendShape {
  batch: number;
  queries: number;
  /** Query heads a KV head. */
  group: number;
  kvHeads: number;
  keys: number;
  headDim: number;
  /** A software device: parts cost more than they bring. */
  software: boolean;
}

export interface AttendPlan {
  /** Query rows a tile. */
  rows: number;
  tiles: number;
  /** Parts of the keys, each a workgroup. */
  splits: number;
}

/** Workgroups that fill a large GPU several times over. */
const wantedWorkgroups = 512;
const leastSplitKeys = 256;

/** Tile and parts of an attend call: a pure function of shapes. */
export function planAttend({ batch, queries, group, kvHeads, keys, headDim, software }: AttendShape): AttendPlan {
  // software drivers compile long unrolled text slowly
  const most = software ? 4 : headDim > 128 ? 8 : 16;
  const wantedRows = queries * group;
  const rows = wantedRows === 1 ? 1 : wantedRows <= 4 ? 4 : most;
  const tiles = Math.ceil((queries * group) / rows);
  const workgroups = software ? 1 : Math.max(1, Math.ceil(wantedWorkgroups / Math.max(1, batch * kvHeads * tiles)));
  return { rows, tiles, splits: Math.max(1, Math.min(workgroups, Math.ceil(keys / leastSplitKeys))) };
}

/** Keys of a part, so that `splits` of them cover `keys`: whole tiles. */
export function splitKeysOf(keys: number, splits: number): number {
  return Math.max(1, Math.ceil(keys / splits / tileKeys)) * tileKeys;
}
