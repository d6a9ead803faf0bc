import type { Capabilities } from '../../device/capabilities.js';
import type { FloatDType } from '../../dtype.js';
import { hasFragments } from '../../kernel/fragments.js';

/** Register tile of the f32 kernel: `rows x columns` a workgroup, a lane takes `laneRows x laneColumns` of it. */
export interface RegisterTile {
  rows: number;
  columns: number;
  laneRows: number;
  laneColumns: number;
}

/** Tile of the matrix kernel: four subgroups, `subgroupRows x subgroupColumns` each. */
export interface FragmentTile {
  rows: number;
  columns: number;
  subgroupRows: number;
  subgroupColumns: number;
}

/** How a loader takes elements along the contiguous axis: f16 by eight, four of either dtype, or one by one. */
export type Load = 'half8' | 'vec4' | 'scalar';

interface Split {
  /** Parts that K is cut into; more than one are summed by a second kernel, in order. */
  splits: number;
  /** K of a part. */
  splitDepth: number;
  /** Workgroups of the first dispatch. */
  workgroups: number;
}

/** What a product is run by. */
export type MatmulPlan =
  | (Split & { kernel: 'tile'; tile: RegisterTile; a: Load; b: Load })
  | (Split & { kernel: 'matrix'; tile: FragmentTile; a: Load; b: Load })
  | (Split & { kernel: 'vector'; form: 'columns' | 'rows'; swap: boolean; few: 1 | 2 | 4 | 8; few4: boolean; many4: boolean });

/** One operand, as far as a plan depends on it. */
export interface OperandForm {
  dtype: FloatDType;
  transposed: boolean;
  /** Elements that aligned loads may take at once. */
  width: 1 | 4 | 8;
}

export interface MatmulShape {
  M: number;
  N: number;
  K: number;
  matrices: number;
  a: OperandForm;
  b: OperandForm;
}

/** Depth of a tile in workgroup memory. */
export const tileDepth = 16;
export const fragmentDepth = 32;

export const registerTiles: Readonly<Record<'small' | 'tall' | 'wide' | 'medium' | 'large' | 'huge', RegisterTile>> = {
  small: { rows: 32, columns: 32, laneRows: 4, laneColumns: 4 },
  tall: { rows: 128, columns: 32, laneRows: 8, laneColumns: 4 },
  wide: { rows: 32, columns: 128, laneRows: 4, laneColumns: 8 },
  medium: { rows: 64, columns: 64, laneRows: 4, laneColumns: 4 },
  large: { rows: 128, columns: 128, laneRows: 8, laneColumns: 8 },
  huge: { rows: 256, columns: 128, laneRows: 16, laneColumns: 8 },
};

export const fragmentTiles: Readonly<Record<'medium' | 'tall' | 'large', FragmentTile>> = {
  medium: { rows: 64, columns: 64, subgroupRows: 32, subgroupColumns: 32 },
  tall: { rows: 128, columns: 64, subgroupRows: 64, subgroupColumns: 32 },
  large: { rows: 128, columns: 128, subgroupRows: 64, subgroupColumns: 64 },
};

/** Rows (or columns) up to which a product is a bandwidth-bound pass over the other operand. */
export const vectorRows = 8;
/** Workgroups that fill a large GPU (132 multiprocessors, two each), and twice that for passes that only stream. */
const enoughWorkgroups = 264;
const fewestWorkgroups = 120;
const enoughToStream = 528;
const mostSplits = 64;
/** A part of K must pay for its share of partial sums, which go through memory. */
const shallowest = 512;
const lanesOfVector = 256;

/** Lanes along K and columns a workgroup of the vector kernel. */
export const vectorForms: Readonly<Record<'columns' | 'rows', { depthLanes: number; columns: number }>> = {
  columns: { depthLanes: 8, columns: (lanesOfVector / 8) * 4 },
  rows: { depthLanes: 16, columns: (lanesOfVector / 16) * 4 },
};

/**
 * Chooses kernel, tile and split for a product. Pure.
 * - up to 8 rows or columns: the vector kernel, which reads the large operand once
 * - f16 operands, or `precision: 'f16'`, where the device has fragments: the matrix kernel
 * - else the f32 register-tiled kernel
 *
 * The largest tile that still gives enough workgroups wins; few tiles and a long K are split along K.
 */
export function planMatmul(shape: MatmulShape, precision: 'f32' | 'f16', capabilities: Capabilities): MatmulPlan {
  const { M, N, K, matrices, a, b } = shape;
  if (M <= vectorRows || N <= vectorRows) return planVector(shape);
  const halves = precision === 'f16' || (a.dtype === 'f16' && b.dtype === 'f16');
  if (halves && hasFragments(capabilities)) {
    // emulated fragments are there to be tested: the larger tiles take a software driver minutes to compile
    const candidates = capabilities.matrix === 'emulated' ? [fragmentTiles.medium] : Object.values(fragmentTiles);
    const fitting = candidates.filter((tile) => fragmentBytes(tile) <= capabilities.limits.maxComputeWorkgroupStorageSize);
    const tile = chooseTile(fitting, shape);
    if (tile && capabilities.limits.maxComputeInvocationsPerWorkgroup >= 128) {
      const split = splitDepth(K, tiles(tile, shape), fragmentDepth, enoughWorkgroups);
      return { kernel: 'matrix', tile, a: loadOf(a), b: loadOf(b), ...split };
    }
  }
  const { small, tall, wide, medium, large, huge } = registerTiles;
  const few: RegisterTile[] =
    Math.max(M, N) <= 32 ? [small] : N <= 32 ? [small, tall] : M <= 32 ? [small, wide] : [small, medium, large, huge];
  const { maxComputeWorkgroupStorageSize } = capabilities.limits;
  const held = few.filter(
    (tile) =>
      4 * tileDepth * (tile.rows + tile.columns) <= maxComputeWorkgroupStorageSize &&
      (tile !== huge || tiles(huge, shape) >= enoughWorkgroups),
  );
  const tile = chooseTile(held, shape) ?? small;
  const narrow = (form: OperandForm): Load => (form.width === 1 ? 'scalar' : 'vec4');
  return {
    kernel: 'tile',
    tile,
    a: narrow(a),
    b: narrow(b),
    ...splitDepth(K, tiles(tile, { M, N, matrices }), tileDepth, enoughWorkgroups),
  };
}

/**
 * Workgroup memory of the matrix kernel: two operand tiles in f16, in either layout, rows of whole 16 bytes and padded by as many;
 * the f32 way out takes their place.
 */
export function fragmentBytes(tile: FragmentTile): number {
  const operand = (free: number): number => 16 * Math.max(free * (fragmentDepth / 8 + 1), fragmentDepth * (free / 8 + 1));
  const subgroups = (tile.rows / tile.subgroupRows) * (tile.columns / tile.subgroupColumns);
  return Math.max(operand(tile.rows) + operand(tile.columns), subgroups * 16 * (fragmentOutColumns + 4) * 4);
}

/** Rows of 32 columns, padded by 4, that a subgroup hands out at a time. */
export const fragmentOutColumns = 32;

function loadOf(form: OperandForm): Load {
  if (form.width === 1) return 'scalar';
  return form.dtype === 'f16' && form.width === 8 ? 'half8' : 'vec4';
}

function tiles(tile: { rows: number; columns: number }, shape: { M: number; N: number; matrices: number }): number {
  return Math.ceil(shape.M / tile.rows) * Math.ceil(shape.N / tile.columns) * shape.matrices;
}

/** The largest tile (they come in ascending order) that still gives most multiprocessors one, with K split if it is long. */
function chooseTile<T extends { rows: number; columns: number }>(candidates: readonly T[], shape: MatmulShape): T | undefined {
  const { M, N, K } = shape;
  const splits = Math.max(1, Math.min(mostSplits, Math.floor(K / (2 * shallowest))));
  const fills = (tile: T): boolean => M > tile.rows / 2 && N > tile.columns / 2 && tiles(tile, shape) * splits >= fewestWorkgroups;
  return [...candidates].reverse().find(fills) ?? candidates[0];
}

/** Cuts K so that about `enough` workgroups run, each part at least `least` deep and a multiple of `step`. */
function splitDepth(K: number, count: number, step: number, enough: number, least: number = shallowest): Split {
  const wanted = Math.max(1, Math.min(Math.floor(enough / Math.max(1, count)), Math.floor(K / least), mostSplits));
  const depth = Math.max(step, Math.ceil(K / wanted / step) * step);
  const splits = Math.max(1, Math.ceil(K / depth));
  return { splits, splitDepth: depth, workgroups: count * splits };
}

function planVector(shape: MatmulShape): MatmulPlan {
  const { M, N, K, matrices, a, b } = shape;
  const swap = M > N;
  // the few rows are those of a, or the columns of b; `many` is contiguous along its columns or along K
  const many = swap ? a : b;
  const fewSide = swap ? b : a;
  const form = (swap ? many.transposed : !many.transposed) ? 'columns' : 'rows';
  const alongDepth = swap ? fewSide.transposed : !fewSide.transposed;
  const few = swap ? N : M;
  const blocks = Math.ceil((swap ? M : N) / vectorForms[form].columns) * matrices;
  const step = vectorForms[form].depthLanes * 4;
  const split = splitDepth(K, blocks, step, enoughToStream, 2 * step);
  return {
    kernel: 'vector',
    form,
    swap,
    few: few <= 1 ? 1 : few <= 2 ? 2 : few <= 4 ? 4 : 8,
    few4: alongDepth && fewSide.width >= 4,
    many4: many.width >= 4,
    ...split,
  };
}
