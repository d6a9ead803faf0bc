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

/** Tile of the matrix kernel, `depth` along k; a subgroup computes `subgroupRows x subgroupColumns` of it. */
export interface FragmentTile {
  rows: number;
  columns: number;
  subgroupRows: number;
  subgroupColumns: number;
  depth: 32 | 64;
  /** Subgroups that share one part of the tile, and take k in turns. */
  groups: 1 | 2 | 4;
  /** Tiles along k that are fetched ahead: two where lanes have registers to spare (one where loads are shifted, which takes some). */
  ahead: 1 | 2;
}

/** How the register tiles' loader takes elements along the contiguous axis: four at once, or one by one where they are not aligned. */
type TileLoad = 'vec4' | 'scalar';
/** How the fragment tiles' loader takes them: f16 by eight, either dtype by four; shifted where they are not aligned. */
export type Load = 'half8' | 'vec4' | 'half8Shifted' | 'vec4Shifted';

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
  | (Split & { kernel: 'tile'; tile: RegisterTile; a: TileLoad; b: TileLoad })
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

export const fragmentTiles: Readonly<Record<'medium' | 'thin' | 'flat' | 'deep' | 'tall' | 'large', FragmentTile>> = {
  medium: { rows: 64, columns: 64, subgroupRows: 32, subgroupColumns: 32, depth: 32, groups: 1, ahead: 1 },
  thin: { rows: 16, columns: 64, subgroupRows: 16, subgroupColumns: 32, depth: 64, groups: 2, ahead: 2 },
  flat: { rows: 32, columns: 64, subgroupRows: 32, subgroupColumns: 32, depth: 64, groups: 4, ahead: 2 },
  deep: { rows: 64, columns: 64, subgroupRows: 32, subgroupColumns: 32, depth: 64, groups: 2, ahead: 2 },
  tall: { rows: 128, columns: 64, subgroupRows: 64, subgroupColumns: 32, depth: 32, groups: 1, ahead: 2 },
  large: { rows: 128, columns: 128, subgroupRows: 64, subgroupColumns: 64, depth: 32, groups: 1, ahead: 1 },
};

/** Rows (or columns) up to which a product is a bandwidth-bound pass over the other operand. */
const vectorRows = 8;
/** Rows up to which it is one where fragments are at hand, by whether b is transposed. */
const vectorRowsBesideFragments = { plain: 2, transposed: 4 };
/** Multiprocessors of the GPU that plans are made for. */
const multiprocessors = 132;
/** Nanoseconds of a dispatch, and of a byte of partial sums, written and read. */
const dispatchTime = 4000;
const partialTime = 1 / 1500;
const mostSplits = 64;
/** A part of K is at least this deep, and partial sums take at most so many elements. */
const shallowest = 128;
const mostPartials = 2 ** 24;
/** Workgroups for passes that only stream: two a multiprocessor, four where partial sums are short. */
const enoughToStream = 264;
const lanesOfVector = 256;

/** Lanes along K and columns a workgroup of the vector kernel. */
export const vectorForms: Readonly<Record<'columns' | 'rows', { depthLanes: number; columns: number }>> = {
  columns: { depthLanes: 16, columns: (lanesOfVector / 16) * 4 },
  rows: { depthLanes: 64, columns: (lanesOfVector / 64) * 4 },
};

/** Columns of the rows, padded by 8 against bank conflicts, that a subgroup hands out at a time: whole lines of 128 bytes where it has so many. */
export function fragmentOutColumns(tile: { subgroupColumns: number }): 32 | 64 {
  return tile.subgroupColumns % 64 === 0 ? 64 : 32;
}

/** A tile, and how fast it is on a large GPU as measured on an H200, whose multiprocessors are those of the H100 (docs/benchmarks/tuning.md). */
interface Candidate<T> {
  tile: T;
  /** Multiply-adds a nanosecond of a multiprocessor that is full of such tiles. */
  rate: number;
  /** Tiles that a multiprocessor begins and ends together: 2 where it holds no more, 1 where many share it; 4 where all only stream. */
  atOnce: 1 | 2 | 4;
  /** What a workgroup that has a multiprocessor to itself takes longer than one of two takes of it. */
  alone: number;
  /** What K is cut in multiples of. */
  step: number;
  /** Workgroup memory. */
  bytes: number;
}

function register(tile: RegisterTile, rate: number, atOnce: 1 | 2 = 1): Candidate<RegisterTile> {
  return { tile, rate, atOnce, alone: 1.3, step: tileDepth, bytes: 4 * tileDepth * (tile.rows + tile.columns) };
}

function fragment(tile: FragmentTile, rate: number, atOnce: 1 | 2 | 4 = 1, alone = 1.3): Candidate<FragmentTile> {
  return { tile, rate, atOnce, alone, step: tile.depth, bytes: fragmentBytes(tile) };
}

const smallTile: Candidate<RegisterTile> = register(registerTiles.small, 70);
const narrowTiles: readonly Candidate<RegisterTile>[] = [smallTile, register(registerTiles.tall, 110)];
const flatTiles: readonly Candidate<RegisterTile>[] = [smallTile, register(registerTiles.wide, 110)];
const squareTiles: readonly Candidate<RegisterTile>[] = [
  smallTile,
  register(registerTiles.medium, 154),
  register(registerTiles.large, 178, 2),
];
// emulated fragments are there to be tested: the larger tiles take a software driver minutes to compile
const emulatedTiles: readonly Candidate<FragmentTile>[] = [fragment(fragmentTiles.medium, 640)];
const thinTiles: readonly Candidate<FragmentTile>[] = [fragment(fragmentTiles.thin, 375, 4, 2)];
const hardwareTiles: readonly Candidate<FragmentTile>[] = [
  fragment(fragmentTiles.flat, 480),
  fragment(fragmentTiles.deep, 670),
  fragment(fragmentTiles.tall, 760),
  fragment(fragmentTiles.large, 1200, 2, 1.6),
];

/**
 * Chooses kernel, tile and split for a product. Pure.
 * - up to 8 rows or columns (2 or 4 rows where the product may run on fragments): the vector kernel, which reads the large operand once
 * - f16 operands, or `precision: 'f16'`, where the device has fragments: the matrix kernel
 * - else the f32 register-tiled kernel
 *
 * The tile and the number of parts of K that should take least time on a large GPU win (`estimate`).
 */
export function planMatmul(shape: MatmulShape, precision: 'f32' | 'f16', capabilities: Capabilities): MatmulPlan {
  const { M, N, a, b } = shape;
  const halves = precision === 'f16' || (a.dtype === 'f16' && b.dtype === 'f16');
  const fragments = halves && hasFragments(capabilities) && capabilities.limits.maxComputeInvocationsPerWorkgroup >= 256;
  const hardware = fragments && capabilities.matrix === 'hardware';
  const most = hardware ? vectorRowsBesideFragments[b.transposed ? 'transposed' : 'plain'] : vectorRows;
  if (M <= most || N <= vectorRows) return planVector(shape);
  if (fragments) {
    const candidates = hardware ? (M <= fragmentTiles.thin.rows ? thinTiles : hardwareTiles) : emulatedTiles;
    const best = cheapest(candidates, shape, capabilities.limits.maxComputeWorkgroupStorageSize);
    if (best) return { kernel: 'matrix', tile: best.tile, a: loadOf(a), b: loadOf(b), ...best.split };
  }
  const candidates = Math.max(M, N) <= 32 ? [smallTile] : N <= 32 ? narrowTiles : M <= 32 ? flatTiles : squareTiles;
  // the small tile fits any device
  const { tile, split } = cheapest(candidates, shape, capabilities.limits.maxComputeWorkgroupStorageSize) as Choice<RegisterTile>;
  const narrow = (form: OperandForm): TileLoad => (form.width === 1 ? 'scalar' : 'vec4');
  return { kernel: 'tile', tile, a: narrow(a), b: narrow(b), ...split };
}

/**
 * Workgroup memory of the matrix kernel: two operand tiles in f16, in either layout, rows of whole 16 bytes and padded by as many;
 * the f32 way out takes their place.
 */
export function fragmentBytes(tile: FragmentTile): number {
  const operand = (free: number): number => 16 * Math.max(free * (tile.depth / 8 + 1), tile.depth * (free / 8 + 1));
  return Math.max(operand(tile.rows) + operand(tile.columns), subgroupsOf(tile) * 16 * (fragmentOutColumns(tile) + 8) * 4);
}

/** Subgroups a workgroup of the matrix kernel. */
function subgroupsOf(tile: FragmentTile): number {
  return (tile.rows / tile.subgroupRows) * (tile.columns / tile.subgroupColumns) * tile.groups;
}

function loadOf(form: OperandForm): Load {
  if (form.width === 1) return form.dtype === 'f16' ? 'half8Shifted' : 'vec4Shifted';
  return form.dtype === 'f16' && form.width === 8 ? 'half8' : 'vec4';
}

function tiles(tile: { rows: number; columns: number }, shape: { M: number; N: number; matrices: number }): number {
  return Math.ceil(shape.M / tile.rows) * Math.ceil(shape.N / tile.columns) * shape.matrices;
}

interface Choice<T> {
  tile: T;
  split: Split;
}

/** Tile and parts of K with the least estimate, among tiles that fit into `memory` bytes a workgroup. */
function cheapest<T extends { rows: number; columns: number }>(
  candidates: readonly Candidate<T>[],
  shape: MatmulShape,
  memory: number,
): Choice<T> | undefined {
  let best: Candidate<T> | undefined;
  let parts = 1;
  let least = Infinity;
  const outputs = shape.M * shape.N * shape.matrices;
  const most = Math.max(1, Math.min(mostSplits, Math.floor(shape.K / shallowest), Math.floor(mostPartials / outputs)));
  for (const candidate of candidates) {
    if (candidate.bytes > memory) continue;
    const filling = (multiprocessors * candidate.atOnce) / tiles(candidate.tile, shape);
    // as it is, in few parts, or in as many as fill one to three rounds
    for (let i = 0; i < 6; i++) {
      const wanted = i < 3 ? 1 << i : Math.floor(filling * (i - 2));
      const split = Math.max(1, Math.min(wanted, most));
      const time = estimate(candidate, shape, split);
      if (time < least) [best, parts, least] = [candidate, split, time];
    }
  }
  return best && { tile: best.tile, split: cut(shape.K, tiles(best.tile, shape), best.step, parts) };
}

/** Nanoseconds on a large GPU: workgroups go to multiprocessors in rounds; parts of K are summed by a second dispatch. */
function estimate(candidate: Candidate<{ rows: number; columns: number }>, shape: MatmulShape, parts: number): number {
  const { tile, rate, atOnce, alone, step } = candidate;
  const workgroups = tiles(tile, shape) * parts;
  const rounds = workgroups <= multiprocessors ? alone : Math.ceil(workgroups / multiprocessors / atOnce) * atOnce;
  const depth = Math.ceil(shape.K / parts / step) * step;
  const products = (rounds * tile.rows * tile.columns * depth) / rate;
  return parts === 1 ? products : products + dispatchTime + 4 * shape.M * shape.N * shape.matrices * parts * partialTime;
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
  const enough = form === 'columns' && few <= 2 ? 2 * enoughToStream : enoughToStream;
  const parts = Math.max(1, Math.min(Math.floor(enough / Math.max(1, blocks)), Math.floor(K / (2 * step)), mostSplits));
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
