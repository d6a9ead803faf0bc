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
  /** Many query rows: the attention engine over decoded rows. Else the kernel that reads rows as they are stored. */
  dense: boolean;
  /** Query rows a tile. */
  rows: number;
  tiles: number;
  /** Parts of the keys, each a workgroup. */
  splits: number;
}

/** Workgroups that fill a large GPU several times over. */
const wantedWorkgroups = 512;
const leastSplitKeys = 256;
/** Query rows of a KV head up to which stored rows are read in place. */
const mostStoredRows = 16;

/** Tile and parts of an attend call: a pure function of shapes. */
export function planAttend({ batch, queries, group, kvHeads, keys, headDim, software }: AttendShape): AttendPlan {
  const wanted = queries * group;
  // software drivers take seconds to compile unrolled rows, and caches of a processor serve rows one by one as well
  const rows = software || wanted === 1 ? 1 : wanted <= 4 ? 4 : headDim > 128 ? 8 : 16;
  const tiles = Math.ceil(wanted / rows);
  const workgroups = software ? 1 : Math.max(1, Math.ceil(wantedWorkgroups / Math.max(1, batch * kvHeads * tiles)));
  const splits = Math.max(1, Math.min(workgroups, Math.ceil(keys / leastSplitKeys)));
  return { dense: queries > 1 && wanted > mostStoredRows, rows, tiles, splits };
}

/** Keys of a part, so that `splits` of them cover `keys`: whole tiles. */
export function splitKeysOf(keys: number, splits: number): number {
  return Math.max(1, Math.ceil(keys / splits / tileKeys)) * tileKeys;
}
