import type { Capabilities } from '../device/capabilities.js';
import { ownedRows, type RowTile } from './kernels/row-lanes.js';
import { tileBytes, type TileSpec } from './kernels/tile.js';
import { type ForwardFragmentPlan, type FragmentPlan, planBackwardFragments, planForwardFragments } from './plan-fragments.js';
import { planRows } from './plan-rows.js';

/** What a plan depends on. Lengths choose between a few tiles and split counts; they never specialise a kernel. */
export interface AttentionShape {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
  /** A selection whose blocks bind the tiles: tokens a block of queries, and of keys. */
  blockQueries?: number;
  blockKeys?: number;
  /** Products may take f16 operands: tensors are f16, or the call says `precision: 'f16'`. Default false. */
  halves?: boolean;
  /** Scores pass through a function: the backward then runs in f32. Default false. */
  scoreFunction?: boolean;
  /** Pairs that a mask's lists hold for tiles of these sizes. Default: as many for all tiles. */
  listed?: ((tiles: { query: number; key: number }) => number) | undefined;
  /** Queries see a short window: tall tiles would meet more of the other keys. Default false. */
  narrow?: boolean;
  /** One list serves all query heads of a group (a mask without heads, a selection a KV head). Default true. */
  sharedList?: boolean;
}

/** A register-tile dispatch. */
export interface TilePlan {
  tile: TileSpec;
  /** Row reductions by subgroup shuffles. */
  shuffles: boolean;
}

export interface ForwardPlan extends TilePlan {
  /** Present: the kernel on fragments runs, in place of the register tile. */
  fragments: ForwardFragmentPlan | undefined;
  /** Present, and no fragments: the kernel that keeps rows in registers runs. */
  inRegisters: RowTile | undefined;
  /** Rows are (query, head of the group) pairs of a KV head: each key is loaded once a group. */
  packed: boolean;
  /** Parts of the key list, merged by a second dispatch. */
  splits: number;
}

export interface AttentionPlan {
  readonly forward: ForwardPlan;
  readonly dq: SweepPlan;
  readonly dkv: SweepPlan & {
    /** Parts of the query tiles of a key tile, summed in order by a second dispatch. */
    splits: number;
  };
}

/** A backward sweep, by the first of these that is present: fragments, rows in registers, the register tile. */
export interface SweepPlan extends TilePlan {
  fragments: FragmentPlan | undefined;
  inRegisters: RowTile | undefined;
}

/** Rows that a workgroup of a sweep owns, and rows of the other side a step. */
export function sweepSizes({ fragments, inRegisters, tile }: SweepPlan): { rows: number; columns: number } {
  const { rows, columns } = fragments ?? (inRegisters ? { rows: ownedRows(inRegisters), columns: inRegisters.columns } : tile);
  return { rows, columns };
}

/** Rows of a tile at most where windows are short. */
const narrowRows = 128;
/** Rows up to which queries and heads of a group share a tile (decode). */
const packedRows = 16;
/** Workgroups that fill a large GPU several times over. */
const wantedWorkgroups = 512;
const tokensASplit = 256;
const queriesASplit = 2048;

/**
 * Chooses tiles, packing and splits: a pure function of shapes and capabilities.
 * A tile is chosen by head dimensions, workgroup memory and whether there are few queries.
 * @param options.software a software device: small tiles of single elements, which it compiles and runs faster
 */
export function planAttention(shape: AttentionShape, capabilities: Capabilities, options: { software?: boolean } = {}): AttentionPlan {
  const software = options.software ?? false;
  const { headDim, valueDim } = shape;
  const widest = Math.max(headDim, valueDim);
  const { listed } = shape;
  // rows that a workgroup may own: of one block where a selection binds the tiles
  const queries = {
    rows: Math.min(shape.queries, shape.blockQueries ?? shape.queries),
    allRows: shape.queries * shape.heads * shape.batch,
  };
  const keys = { rows: Math.min(shape.keys, shape.blockKeys ?? shape.keys), allRows: shape.keys * shape.kvHeads * shape.batch };
  const onFragments = shape.halves && !shape.scoreFunction;
  const backward = (owner: 'queries' | 'keys', own: typeof queries): Pick<SweepPlan, 'fragments' | 'inRegisters'> => ({
    fragments: onFragments ? planBackwardFragments(owner, { headDim, valueDim, ...own, listed }, capabilities) : undefined,
    inRegisters: software ? undefined : planRows(owner, { headDim, valueDim, ...own }, capabilities),
  });
  let dq: AttentionPlan['dq'] | undefined;
  let dkv: AttentionPlan['dkv'] | undefined;
  return {
    forward: planForward(shape, capabilities, software),
    // a decode step plans anew at each length, and never goes back
    get dq() {
      return (dq ??= {
        ...planTile(capabilities, { rows: shape.queries, contract: widest, accumulate: headDim, software }),
        ...backward('queries', queries),
      });
    },
    get dkv() {
      return (dkv ??= planDkv(shape, {
        ...planTile(capabilities, { rows: shape.keys, contract: widest, accumulate: widest, outputs: 2, software }),
        ...backward('keys', keys),
      }));
    },
  };
}

function planForward(shape: AttentionShape, capabilities: Capabilities, software: boolean): ForwardPlan {
  const { headDim, valueDim, heads, kvHeads, batch, keys } = shape;
  const group = heads / kvHeads;
  const queries = Math.min(shape.queries, shape.blockQueries ?? shape.queries);
  const packed = (shape.sharedList ?? true) && queries * group <= packedRows;
  const rows = packed ? queries * group : queries;
  const plan = planTile(capabilities, { rows, contract: headDim, accumulate: valueDim, reduces: true, software });
  const fragments =
    packed || !shape.halves
      ? undefined
      : planForwardFragments(
          {
            headDim,
            valueDim,
            rows: shape.narrow ? Math.min(queries, narrowRows) : queries,
            allRows: shape.queries * heads * batch,
            listed: shape.listed,
          },
          capabilities,
        );
  const inRegisters =
    packed || software
      ? undefined
      : planRows('forward', { headDim, valueDim, rows: queries, allRows: shape.queries * heads * batch }, capabilities);
  if (!packed || shape.queries > packedRows) return { ...plan, packed, splits: 1, fragments, inRegisters };
  const splits = Math.min(Math.ceil(wantedWorkgroups / Math.max(1, batch * kvHeads)), Math.ceil(keys / tokensASplit));
  return { ...plan, packed, splits: Math.max(1, splits), fragments, inRegisters };
}

/** Few key tiles under many queries (a sink block, cross attention) are cut, so that the GPU fills. */
function planDkv(shape: AttentionShape, plan: SweepPlan): AttentionPlan['dkv'] {
  const { batch, kvHeads, keys, queries } = shape;
  const workgroups = batch * kvHeads * Math.ceil(keys / sweepSizes(plan).rows);
  const splits = Math.min(Math.ceil(wantedWorkgroups / 2 / Math.max(1, workgroups)), partsOfQueries(queries));
  return { ...plan, splits: Math.max(1, splits) };
}

/** Parts that a walk over many queries is cut into. */
export function partsOfQueries(queries: number): number {
  return Math.max(1, Math.min(64, Math.ceil(queries / queriesASplit)));
}

/**
 * Leading key tiles that every query sees (sinks) while the others are seen through a window: their walk is many times as long, so
 * it is cut. 0 where walks are of a kind.
 */
export function leadingKeyTiles(
  shape: Pick<AttentionShape, 'queries' | 'keys'>,
  band: { left: number; prefix: number },
  rows: number,
): number {
  const others = band.left + rows;
  return band.prefix > 0 && band.prefix < shape.keys && partsOfQueries(shape.queries) > 1 && 4 * others < shape.queries
    ? Math.ceil(band.prefix / rows)
    : 0;
}

interface TileNeed {
  rows: number;
  contract: number;
  accumulate: number;
  /** Accumulated outputs held at once. Default 1. */
  outputs?: number;
  /** Rows are reduced at each step. */
  reduces?: boolean;
  software: boolean;
}

/** The tile for a number of rows and dimensions; few rows get flat tiles. */
function planTile(capabilities: Capabilities, need: TileNeed): TilePlan {
  const { maxComputeWorkgroupStorageSize: memory } = capabilities.limits;
  const dims = { contract: need.contract, accumulate: need.accumulate };
  for (const base of need.software ? softwareBases(need, capabilities) : bases(need)) {
    const tile = fit(base, dims, memory);
    if (tile) {
      const shuffles = capabilities.subgroups && capabilities.subgroupMinSize >= tile.lanesX;
      return { tile, shuffles };
    }
  }
  throw new Error(`attention: no tile of ${need.contract} x ${need.accumulate} fits ${memory} bytes of workgroup memory`);
}

type Base = Pick<TileSpec, 'rows' | 'columns' | 'lanesX' | 'lanesY' | 'width'>;

function bases(need: TileNeed): Base[] {
  const wide = need.accumulate * (need.outputs ?? 1) > 128;
  const width = 4;
  if (need.rows <= 1) return [{ rows: 1, columns: 128, lanesX: 32, lanesY: 1, width }];
  if (need.rows <= 2) return [{ rows: 2, columns: 64, lanesX: 16, lanesY: 2, width }];
  if (need.rows <= 4) return [{ rows: 4, columns: 64, lanesX: 16, lanesY: 4, width }];
  if (need.rows <= 8) return [{ rows: 8, columns: 64, lanesX: 16, lanesY: 8, width }];
  if (need.rows <= 16)
    return [
      { rows: 16, columns: 32, lanesX: 8, lanesY: 8, width },
      { rows: 16, columns: 64, lanesX: 16, lanesY: 8, width },
    ];
  if (wide) return [{ rows: 32, columns: 64, lanesX: 16, lanesY: 8, width }];
  if (need.rows <= 32) return [{ rows: 32, columns: 32, lanesX: 8, lanesY: 8, width }];
  return [{ rows: 64, columns: 32, lanesX: 8, lanesY: 16, width }];
}

/** Tiles with few memory accesses in their text: a software driver compiles in the square of those. */
function softwareBases(need: TileNeed, capabilities: Capabilities): Base[] {
  // a row's lanes fit a subgroup of 8, so that the form with shuffles runs where there are subgroups
  const narrow = need.accumulate * (need.outputs ?? 1) <= 64 || (need.reduces && capabilities.subgroups);
  const lanesX = narrow ? 8 : 16;
  if (need.rows <= 1) return [{ rows: 1, columns: 4 * lanesX, lanesX, lanesY: 1, width: 1 }];
  if (need.rows <= 4) return [{ rows: 4, columns: 4 * lanesX, lanesX, lanesY: 4, width: 1 }];
  return [{ rows: 16, columns: 32, lanesX, lanesY: 8, width: 1 }];
}

/** The deepest stages that fit. */
function fit(base: Base, dims: { contract: number; accumulate: number }, memory: number): TileSpec | undefined {
  const need = Math.ceil(dims.contract / base.width) * base.width;
  for (const depth of [256, 128, 64, 32, 16, 8, 4]) {
    if (depth > 4 && depth / 2 >= need) continue;
    for (const slab of [64, 32, 16, 8, 4]) {
      if (slab > base.columns) continue;
      const tile = { ...base, depth, slab };
      // a shallow slab costs barriers, so depth grows only where the slab keeps 8 rows at least
      if (tileBytes(tile, dims) <= memory && (slab >= 8 || depth <= 16)) return tile;
    }
  }
  return undefined;
}
