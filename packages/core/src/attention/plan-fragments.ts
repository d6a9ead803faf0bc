// Tiles of the kernels on fragments. Chosen by a sweep on an H100 (docs/benchmarks/tuning.md, attention).
import type { Capabilities } from '../device/capabilities.js';
import { fragmentLanes, fragmentShape, hasFragments } from '../kernel/fragments.js';
import { padded } from './kernels/matrix-memory.js';
import { matrixBackwardBytes } from './kernels/matrix-backward.js';
import { matrixForwardBytes } from './kernels/matrix-forward.js';

/** A dispatch on fragments (matrix units, or their emulation). */
export interface FragmentPlan {
  subgroups: number;
  /** Blocks of 16 rows a subgroup. */
  blocks: number;
  rows: number;
  columns: number;
  /** Columns of scores at a time. */
  chunk: number;
  fragmentColumns: number;
  /** Lanes of a subgroup meet at workgroup barriers. */
  barriers: boolean;
}

/** A forward dispatch on fragments: wide values are cut into parts of `valueColumns`, which workgroups of their own take. */
export interface ForwardFragmentPlan extends FragmentPlan {
  valueColumns: number;
  parts: number;
}

/** What a tile depends on. */
export interface FragmentNeed {
  headDim: number;
  valueDim: number;
  /** Rows that the workgroups own: of a block of a selection where there is one. */
  rows: number;
  /** Owned rows times heads and batch entries. */
  allRows: number;
  /** Pairs that a mask's lists hold for tiles of these sizes: small tiles follow a mask more closely. Absent: all tiles list as many. */
  listed?: ((tiles: { query: number; key: number }) => number) | undefined;
}

interface Tile {
  subgroups: number;
  blocks: number;
  columns: number;
  chunk: number;
}

const tile = (subgroups: number, blocks: number, columns: number, chunk = columns): Tile => ({ subgroups, blocks, columns, chunk });

/** Values wider than this are cut into parts: accumulators of more columns fall out of registers. */
const widestValues = 128;

/**
 * Lanes of a subgroup see one another's writes in program order where 32 of them always run as one: such devices take wide tiles
 * without barriers. Others, and the emulation, meet at barriers.
 */
function needsBarriers({ matrix, subgroupMinSize, subgroupMaxSize }: Capabilities): boolean {
  return matrix !== 'hardware' || subgroupMinSize !== fragmentLanes || subgroupMaxSize !== fragmentLanes;
}

function forwardTiles(need: FragmentNeed, capabilities: Capabilities): Tile[] {
  if (capabilities.matrix !== 'hardware') return [tile(2, 1, 16), tile(1, 1, 16)];
  if (needsBarriers(capabilities)) return [tile(8, 1, 32), tile(4, 1, 32), tile(4, 1, 16), tile(2, 1, 16), tile(1, 1, 16)];
  const widest = Math.max(need.headDim, Math.min(need.valueDim, widestValues));
  const tiles =
    widest <= 64
      ? [tile(12, 2, 64, 16), tile(4, 2, 32), tile(4, 1, 32)]
      : widest <= 128
        ? [...(widest > 96 ? [tile(12, 1, 32, 16)] : []), tile(4, 2, 16), tile(4, 1, 16)]
        : [tile(8, 1, 16), tile(4, 1, 16)];
  return [...tiles, tile(2, 1, 16), tile(1, 1, 16)];
}

/** Workgroups below which a tile leaves a large GPU idle at the end. */
const enoughWorkgroups = 512;

/** The forward tile, where device and call allow fragments. */
export function planForwardFragments(need: FragmentNeed, capabilities: Capabilities): ForwardFragmentPlan | undefined {
  if (!hasFragments(capabilities)) return undefined;
  const parts = Math.ceil(padded(need.valueDim) / widestValues);
  const valueColumns = padded(Math.ceil(need.valueDim / parts));
  const barriers = needsBarriers(capabilities);
  const hardware = capabilities.matrix === 'hardware';
  const found = choose(forwardTiles(need, capabilities), need, capabilities, (t) =>
    matrixForwardBytes({ ...t, barriers }, { headDim: need.headDim, valueColumns }, hardware),
  );
  return found && { ...complete(found, capabilities), valueColumns, parts };
}

/** The tile of a backward sweep; head dimensions up to 128. */
export function planBackwardFragments(owner: 'queries' | 'keys', need: FragmentNeed, capabilities: Capabilities): FragmentPlan | undefined {
  const widest = Math.max(need.headDim, need.valueDim);
  if (!hasFragments(capabilities) || widest > 128) return undefined;
  const hardware = capabilities.matrix === 'hardware';
  const barriers = needsBarriers(capabilities);
  const tiles = backwardTiles(owner, widest, capabilities);
  // the lists are asked for tiles of queries by keys, whoever owns the rows
  const { listed } = need;
  const own =
    owner === 'keys' && listed ? { ...need, listed: (t: { query: number; key: number }) => listed({ query: t.key, key: t.query }) } : need;
  const found = choose(tiles, own, capabilities, (t) => matrixBackwardBytes({ ...t, barriers }, need, hardware));
  return found && complete(found, capabilities);
}

function backwardTiles(owner: 'queries' | 'keys', widest: number, capabilities: Capabilities): Tile[] {
  const small = [tile(4, 1, 16), tile(2, 1, 16), tile(1, 1, 16)];
  if (capabilities.matrix !== 'hardware') return small.slice(1);
  if (needsBarriers(capabilities)) return [widest <= 64 ? tile(6, 1, 16) : tile(8, 1, 16), ...small];
  if (widest > 64) return [tile(8, 1, 32, 16), ...small];
  return owner === 'queries' ? [tile(4, 2, 32, 16), tile(4, 2, 16), ...small] : [tile(12, 1, 48, 16), tile(4, 2, 32, 16), ...small];
}

/** Pairs a second against the largest tile's, by rows: 152, 208 and 241 TFLOP/s at 64, 128 and 384 rows (H100, causal, 64 dimensions). */
function speed(rows: number): number {
  return rows >= 192 ? 1 : rows >= 128 ? 0.87 : 0.63 * Math.min(1, rows / 64);
}

/**
 * The first tile that fits the device, whose rows are not idle, and that fills the GPU; the last that fits otherwise. Of those that
 * fill it, under a mask with lists, the one that has least to do for its speed.
 */
function choose(tiles: readonly Tile[], need: FragmentNeed, capabilities: Capabilities, bytes: (t: Tile) => number): Tile | undefined {
  const { maxComputeWorkgroupStorageSize: memory, maxComputeInvocationsPerWorkgroup: lanes } = capabilities.limits;
  const fitting = tiles.filter((t) => t.subgroups * fragmentLanes <= lanes && bytes(t) <= memory);
  const rows = (t: Tile): number => t.subgroups * t.blocks * 16;
  const whole = fitting.filter((t) => rows(t) <= Math.max(16, need.rows));
  const filling = whole.filter((t) => need.allRows >= enoughWorkgroups * rows(t));
  const [large] = filling;
  if (need.listed && large && capabilities.matrix === 'hardware') {
    const { listed } = need;
    const cost = (t: Tile): number => listed({ query: rows(t), key: t.columns }) / speed(rows(t));
    return filling.reduce((best, t) => (cost(t) < cost(best) ? t : best));
  }
  return large ?? whole.find((t) => rows(t) <= 64) ?? whole.at(-1) ?? fitting.at(-1);
}

function complete(t: Tile, capabilities: Capabilities): FragmentPlan {
  const hardware = capabilities.matrix === 'hardware';
  const fragmentColumns = fragmentShape(capabilities, { N: hardware ? 8 : 16 }).N;
  return { ...t, rows: t.subgroups * t.blocks * 16, fragmentColumns, barriers: needsBarriers(capabilities) };
}
