import type { Capabilities } from '@heed/core';
import { fragmentLanes, fragmentShape, hasFragments } from '@heed/core/~internal';
import { type MatrixLayout, matrixLayout, type MatrixTile } from './matrix-tile.js';

/** Which dimension gates decay: rows of the state (the key dimension) or, with roles swapped, its columns. */
export type GatedSide = 'rows' | 'columns';

/** Sizes of a gated kernel on fragments beside those of the ungated one. */
export interface GatedLayout extends MatrixLayout {
  /** Gated channels of a workgroup. */
  channels: number;
  /** Channels a lane, a power of two; a subgroup holds all channels of its tokens. */
  perLane: number;
  /** Tokens a subgroup. */
  tokens: number;
  subgroups: number;
  /** Elements of 16 bytes of the sums of gates. */
  sums: number;
}

/** Reference and whole decay of each channel, 8 bytes; maxima and the vote on how many tokens a step takes. */
const smallBytes = 64;

/** Workgroup memory of a gated kernel on fragments; without `outputs` that of the sweep that only makes states. */
export function gatedLayout(keyDim: number, tile: MatrixTile & { valueDim?: number }, outputs: boolean, side: GatedSide): GatedLayout {
  const whole = matrixLayout(keyDim, tile, outputs);
  const { keys, keyStride, valueStride, floatStride } = whole;
  // nothing reads what pads the last row; that of values holds normalisers
  const right = Math.max(tile.chunk * keyStride, outputs ? (keys / tile.slices) * valueStride : 0) - 1;
  const pad = floatStride - tile.columns / 4;
  const layout = outputs ? { ...whole, left: whole.left - 1, right, stage: whole.stage - pad } : whole;
  const channels = side === 'rows' ? keys : tile.columns;
  const subgroups = tile.rowGroups * tile.columnGroups;
  const perLane = [2, 4, 8].find((count) => count * fragmentLanes >= channels) ?? 16;
  const sums = (subgroups * channels) / 4;
  const bytes = (layout.left + layout.right + layout.values + layout.stage + sums) * 16 + (outputs ? channels * 8 : 0) + smallBytes;
  return { ...layout, sums, bytes, channels, perLane, tokens: tile.chunk / subgroups, subgroups };
}

/** Tiles of the gated kernels on fragments. */
export interface GatedMatrixTiles {
  rows: MatrixTile;
  columns: MatrixTile;
  states: MatrixTile;
}

/** Two workgroups share a multiprocessor of the largest GPUs below this, and hide each other's barriers. */
const sharedBytes = 24576;

/** State elements a lane holds, twice (with what a step adds): with 64 an H100's driver spills fragments, and results were wrong. */
const mostStatePerLane = 48;

/**
 * Tiles on fragments, or undefined where the device has none or a state does not fit: 32 tokens by 64 columns, in as few slices as leave
 * room for a second workgroup if any do. The sweep is in docs/benchmarks/tuning.md.
 */
export function gatedMatrixTiles(keyDim: number, valueDim: number, capabilities: Capabilities): GatedMatrixTiles | undefined {
  if (!hasFragments(capabilities)) return undefined;
  const find = (outputs: boolean, side: GatedSide): MatrixTile | undefined =>
    findTile(keyDim, valueDim, capabilities, { outputs, side, shared: true }) ??
    findTile(keyDim, valueDim, capabilities, { outputs, side, shared: false });
  const [rows, columns, states] = [find(true, 'rows'), find(true, 'columns'), find(false, 'rows')];
  return rows && columns && states && { rows, columns, states };
}

/** Workgroups of a tile that share a multiprocessor. */
export function gatedResidents(keyDim: number, tile: MatrixTile): number {
  return gatedLayout(keyDim, tile, true, 'rows').bytes <= sharedBytes ? 2 : 1;
}

function findTile(
  keyDim: number,
  valueDim: number,
  capabilities: Capabilities,
  { outputs, side, shared }: { outputs: boolean; side: GatedSide; shared: boolean },
): MatrixTile | undefined {
  const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = capabilities.limits;
  const { N } = fragmentShape(capabilities, { N: 16 });
  const blocks = Math.ceil(keyDim / 16);
  const most = Math.min(maxComputeWorkgroupStorageSize, shared ? sharedBytes : Infinity);
  for (const columns of valueDim <= 32 ? [32, 64] : [64, 32]) {
    for (const rowGroups of outputs ? (shared ? [2] : [2, 1]) : [4, 2, 1]) {
      for (const columnGroups of outputs && shared ? [2] : [4, 2]) {
        const lanes = rowGroups * columnGroups * fragmentLanes;
        if (columnGroups * N > columns || lanes > maxComputeInvocationsPerWorkgroup) continue;
        for (let slices = 1; slices <= (shared ? 2 : 8) && slices * rowGroups <= Math.max(blocks, rowGroups); slices++) {
          const tile = { chunk: rowGroups * 16, columns, rowGroups, columnGroups, fragmentColumns: N, slices };
          const { keys, bytes, perLane } = gatedLayout(keyDim, { ...tile, valueDim }, outputs, side);
          if (outputs && keys * columns > mostStatePerLane * lanes) continue;
          if (bytes <= most && perLane <= 8 && keys <= Math.max(rowGroups * 16, blocks * 20)) return tile;
        }
      }
    }
  }
  return undefined;
}
