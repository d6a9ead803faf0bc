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

/** Tile of the matrix kernel, `depth` along k: four subgroups, `subgroupRows x subgroupColumns` each. */
export interface FragmentTile {
  rows: number;
  columns: number;
  subgroupRows: number;
  subgroupColumns: number;
  depth: 32 | 64;
}

/** How fast a tile is on a large GPU, as measured on one H100 (docs/benchmarks/tuning.md). */
interface Speed {
  /** Multiply-adds a nanosecond of a multiprocessor that is full of such tiles. */
  rate: number;
  /** Tiles that a multiprocessor begins and ends together: 2 where it holds no more, 1 where many share it. */
  atOnce: 1 | 2;
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

/** Depth of a register tile in workgroup memory. */
export const tileDepth = 16;

export const registerTiles: Readonly<Record<'small' | 'tall' | 'wide' | 'medium' | 'large', RegisterTile>> = {
  small: { rows: 32, columns: 32, laneRows: 4, laneColumns: 4 },
  tall: { rows: 128, columns: 32, laneRows: 8, laneColumns: 4 },
  wide: { rows: 32, columns: 128, laneRows: 4, laneColumns: 8 },
  medium: { rows: 64, columns: 64, laneRows: 8, laneColumns: 4 },
  large: { rows: 128, columns: 128, laneRows: 16, laneColumns: 8 },
};

const registerSpeeds: Readonly<Record<keyof typeof registerTiles, Speed>> = {
  small: { rate: 70, atOnce: 1 },
  tall: { rate: 110, atOnce: 1 },
  wide: { rate: 110, atOnce: 1 },
  medium: { rate: 154, atOnce: 1 },
  large: { rate: 178, atOnce: 2 },
};

export const fragmentTiles: Readonly<Record<'medium' | 'deep' | 'tall' | 'large', FragmentTile>> = {
  medium: { rows: 64, columns: 64, subgroupRows: 32, subgroupColumns: 32, depth: 32 },
  deep: { rows: 64, columns: 64, subgroupRows: 32, subgroupColumns: 32, depth: 64 },
  tall: { rows: 128, columns: 64, subgroupRows: 64, subgroupColumns: 32, depth: 32 },
  large: { rows: 128, columns: 128, subgroupRows: 64, subgroupColumns: 64, depth: 32 },
};

const fragmentSpeeds: Readonly<Record<keyof typeof fragmentTiles, Speed>> = {
  medium: { rate: 640, atOnce: 1 },
  deep: { rate: 690, atOnce: 2 },
  tall: { rate: 720, atOnce: 1 },
  large: { rate: 1180, atOnce: 2 },
};

/** Rows (or columns) up to which a product is a bandwidth-bound pass over the other operand. */
export const vectorRows = 8;
/** Multiprocessors of the GPU that plans are made for. */
const multiprocessors = 132;
/** What a workgroup that has a multiprocessor to itself takes longer than one of two takes of it. */
const alone = 1.3;
/** Nanoseconds of a dispatch, and of a byte of partial sums, written and read. */
const dispatchTime = 4000;
const partialTime = 1 / 1500;
const mostSplits = 64;
/** A part of K is at least this deep. */
const shallowest = 128;
/** Workgroups for passes that only stream: four a multiprocessor. */
const enoughToStream = 528;
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
 * The tile and the number of parts of K that should take least time on a large GPU win (`estimate`).
 */
export function planMatmul(shape: MatmulShape, precision: 'f32' | 'f16', capabilities: Capabilities): MatmulPlan {
  const { M, N, a, b } = shape;
  if (M <= vectorRows || N <= vectorRows) return planVector(shape);
  const halves = precision === 'f16' || (a.dtype === 'f16' && b.dtype === 'f16');
  if (halves && hasFragments(capabilities)) {
    // emulated fragments are there to be tested: the larger tiles take a software driver minutes to compile
    const names = capabilities.matrix === 'emulated' ? (['medium'] as const) : (['medium', 'deep', 'tall', 'large'] as const);
    const candidates = names.map((name) => ({ tile: fragmentTiles[name], speed: fragmentSpeeds[name], step: fragmentTiles[name].depth }));
    const fitting = candidates.filter(({ tile }) => fragmentBytes(tile) <= capabilities.limits.maxComputeWorkgroupStorageSize);
    const best = cheapest(fitting, shape);
    if (best && capabilities.limits.maxComputeInvocationsPerWorkgroup >= 128)
      return { kernel: 'matrix', tile: best.tile, a: loadOf(a), b: loadOf(b), ...best.split };
  }
  const longest = Math.max(M, N);
  const names =
    longest <= 32 ? (['small'] as const) : N <= 32 ? (['small', 'tall'] as const) : M <= 32 ? (['small', 'wide'] as const) : squares;
  const candidates = names.map((name) => ({ tile: registerTiles[name], speed: registerSpeeds[name], step: tileDepth }));
  const best = cheapest(candidates, shape) as { tile: RegisterTile; split: Split };
  const narrow = (form: OperandForm): Load => (form.width === 1 ? 'scalar' : 'vec4');
  return { kernel: 'tile', tile: best.tile, a: narrow(a), b: narrow(b), ...best.split };
}

const squares = ['small', 'medium', 'large'] as const;

/**
 * Workgroup memory of the matrix kernel: two operand tiles in f16, in either layout, rows of whole 16 bytes and padded by as many;
 * the f32 way out takes their place.
 */
export function fragmentBytes(tile: FragmentTile): number {
  const operand = (free: number): number => 16 * Math.max(free * (tile.depth / 8 + 1), tile.depth * (free / 8 + 1));
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

interface Candidate<T> {
  tile: T;
  speed: Speed;
  /** What K is cut in multiples of. */
  step: number;
}

/** Tile and parts of K with the least estimate. */
function cheapest<T extends { rows: number; columns: number }>(
  candidates: readonly Candidate<T>[],
  shape: MatmulShape,
): { tile: T; split: Split } | undefined {
  let best: { tile: T; split: Split } | undefined;
  let least = Infinity;
  const most = Math.max(1, Math.min(mostSplits, Math.floor(shape.K / shallowest)));
  for (const { tile, speed, step } of candidates) {
    const count = tiles(tile, shape);
    for (let parts = 1; parts <= most; parts *= 2) {
      const split = cut(shape.K, count, step, parts);
      const time = estimate(tile, speed, shape, split);
      if (time < least) [best, least] = [{ tile, split }, time];
    }
  }
  return best;
}

/** Nanoseconds on a large GPU: workgroups go to multiprocessors in rounds; parts of K are summed by a second dispatch. */
function estimate(
  tile: { rows: number; columns: number },
  { rate, atOnce }: Speed,
  { M, N, matrices }: MatmulShape,
  { workgroups, splits, splitDepth }: Split,
): number {
  const rounds = workgroups <= multiprocessors ? alone : Math.ceil(workgroups / multiprocessors / atOnce) * atOnce;
  const products = (rounds * tile.rows * tile.columns * splitDepth) / rate;
  return splits === 1 ? products : products + dispatchTime + 4 * M * N * matrices * splits * partialTime;
}

/** K in `parts`, each a multiple of `step` deep; fewer where it ends sooner. */
function cut(K: number, count: number, step: number, parts: number): Split {
  const depth = Math.max(step, Math.ceil(K / parts / step) * step);
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
  const parts = Math.max(1, Math.min(Math.floor(enoughToStream / Math.max(1, blocks)), Math.floor(K / (2 * step)), mostSplits));
  return {
    kernel: 'vector',
    form,
    swap,
    few: few <= 1 ? 1 : few <= 2 ? 2 : few <= 4 ? 4 : 8,
    few4: alongDepth && fewSide.width >= 4,
    many4: many.width >= 4,
    ...cut(K, blocks, step, parts),
  };
}
