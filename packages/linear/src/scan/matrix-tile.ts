import type { Capabilities } from '@heed/core';
import { fragmentLanes, fragmentShape, hasFragments } from '@heed/core/~internal';
import { outputLayout } from './output-layout.js';

/** How a kernel on fragments cuts tokens and states. */
export interface MatrixTile {
  /** Tokens a step. */
  chunk: number;
  /** Columns (of the value dimension) a workgroup. */
  columns: number;
  /** Subgroups along rows and along columns; each owns the same blocks of the state, the scores and the outputs. */
  rowGroups: number;
  columnGroups: number;
  /** Columns of a result fragment. */
  fragmentColumns: number;
  /** The state passes through the f32 part of workgroup memory in this many slices. */
  slices: number;
}

/** Sizes that follow from a tile. */
export interface MatrixLayout {
  /** The key dimension in whole fragments for every row group. */
  keys: number;
  /** From row to row, in elements of 16 bytes: f16 queries and keys; values and states; scores. f32 states and outputs; scores. */
  keyStride: number;
  valueStride: number;
  scoreStride: number;
  floatStride: number;
  scoreFloatStride: number;
  /** Elements of the parts of workgroup memory. */
  left: number;
  right: number;
  values: number;
  stage: number;
  bytes: number;
}

/** Maxima from which the range of f16 copies is bounded. */
const peakBytes = 16;

/**
 * Workgroup memory of a kernel on fragments.
 * @param outputs false for the sweep that only makes states, which needs neither queries nor, where a state is whole fragments, `stage`
 */
export function matrixLayout(keyDim: number, tile: MatrixTile & { valueDim?: number }, outputs: boolean): MatrixLayout {
  const { chunk, columns, rowGroups, slices } = tile;
  const granule = 16 * rowGroups * slices;
  const keys = Math.ceil(keyDim / granule) * granule;
  // an odd number of 16 bytes a row: no bank conflicts
  const [keyStride, valueStride, scoreStride] = [keys / 8 + 1, columns / 8 + 1, chunk / 8 + 1];
  // 32 bytes more a row: four rows of an f32 fragment lie in different banks
  const [floatStride, scoreFloatStride] = [columns / 4 + 2, chunk / 4 + 2];
  const left = outputs ? chunk * Math.max(keyStride, scoreStride) : 0;
  const right = Math.max(chunk * keyStride, outputs ? (keys / slices) * valueStride : 0);
  const values = chunk * valueStride;
  const direct = !outputs && keys === keyDim && tile.valueDim !== undefined && tile.valueDim % columns === 0;
  // idle subgroups put a fragment of scores aside
  const scores = (chunk + (tile.columnGroups * tile.fragmentColumns > chunk ? 16 : 0)) * scoreFloatStride;
  const staged = Math.max(outputs ? Math.max(scores, chunk * floatStride) : 0, (keys / slices) * floatStride);
  const stage = direct ? 0 : staged;
  const bytes = (left + right + values + stage) * 16 + (outputs ? peakBytes : 0);
  return { keys, keyStride, valueStride, scoreStride, floatStride, scoreFloatStride, left, right, values, stage, bytes };
}

/** Tiles of the two kernels on fragments. */
export interface MatrixTiles {
  outputs: MatrixTile;
  states: MatrixTile;
}

/**
 * Tiles on fragments, or undefined where the device has none or the state does not fit its workgroup memory: all columns up to 128
 * first, since each column tile loads queries and keys and makes scores again, then 64 tokens; fewer where memory is short or keys
 * would mostly be padding. The sweep is in docs/benchmarks/tuning.md.
 */
export function matrixTiles(keyDim: number, valueDim: number, capabilities: Capabilities): MatrixTiles | undefined {
  if (!hasFragments(capabilities) || !hasFragments(capabilities, 'f16')) return undefined;
  let known = found.get(capabilities);
  if (!known) found.set(capabilities, (known = new Map()));
  const key = `${keyDim},${valueDim}`;
  if (!known.has(key)) {
    const outputs = findTile(keyDim, valueDim, capabilities, true);
    const states = findTile(keyDim, valueDim, capabilities, false, outputs?.columns);
    known.set(key, outputs && states && { outputs, states });
  }
  return known.get(key);
}

/** Tiles by head dimensions, of each device: searched once, asked for by each call. */
const found: WeakMap<Capabilities, Map<string, MatrixTiles | undefined>> = new WeakMap();

/** Workgroup memory of which two workgroups share a multiprocessor: while one waits at a barrier the other works. */
export const sharedBytes = 24576;

/** 32 tokens by four subgroups, where that leaves room for a second workgroup. */
function smallTile(keyDim: number, fragmentColumns: number): { tile: MatrixTile; bytes: number } | undefined {
  for (const slices of [1, 2]) {
    const tile = { chunk: 32, columns: 64, rowGroups: 2, columnGroups: 2, fragmentColumns, slices };
    const { keys, bytes } = outputLayout(keyDim, tile);
    if (bytes <= sharedBytes && keys <= Math.max(32, Math.ceil(keyDim / 16) * 20)) return { tile, bytes };
  }
  return undefined;
}

function findTile(keyDim: number, valueDim: number, capabilities: Capabilities, outputs: boolean, only?: number): MatrixTile | undefined {
  const { maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } = capabilities.limits;
  const [{ N }, { N: narrow }] = [fragmentShape(capabilities, { N: 16 }), fragmentShape(capabilities, { N: 8 })];
  const blocks = Math.ceil(keyDim / 16);
  const widths = valueDim <= 32 ? [32, 64] : valueDim <= 64 ? [64, 32] : [128, 64, 32];
  for (const columns of only ? [only] : widths) {
    // wide rows by fragments of 8 columns: every subgroup has scores of its own
    const fragmentColumns = outputs && columns === 128 ? narrow : N;
    const small = outputs && columns === 64 ? smallTile(keyDim, N) : undefined;
    if (small && small.bytes <= maxComputeWorkgroupStorageSize) return small.tile;
    for (const rowGroups of columns === 128 ? [4, 2] : [4, 2, 1]) {
      // states want few keys and values in workgroup memory: two workgroups share a multiprocessor
      const chunk = Math.min(rowGroups * 16, !outputs && columns === 128 ? 32 : 64);
      const columnGroups = Math.min(4, columns / N);
      if (rowGroups * columnGroups * fragmentLanes > maxComputeInvocationsPerWorkgroup) continue;
      for (let slices = 1; slices * rowGroups <= Math.max(blocks, rowGroups); slices++) {
        const tile = { chunk, columns, rowGroups, columnGroups, fragmentColumns, slices };
        const { keys, bytes } = outputs ? outputLayout(keyDim, tile) : matrixLayout(keyDim, { ...tile, valueDim }, false);
        if (bytes <= maxComputeWorkgroupStorageSize && keys <= Math.max(rowGroups * 16, blocks * 20)) return tile;
      }
    }
  }
  return undefined;
}
