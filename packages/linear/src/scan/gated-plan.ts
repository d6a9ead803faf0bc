import { type Capabilities, type DType, HeedError } from '@heed/core';
import { type GatedMatrixTiles, gatedMatrixTiles, gatedResidents } from './gated-matrix-tile.js';
import type { GateForm } from './gated-recurrent.js';
import { gateVectors } from './gated-recurrent.js';
import type { RecurrentTile, ScanTuning } from './plan.js';

/** How the kernel of blocks cuts a state. */
export interface BlockTile {
  /** Columns (of the value dimension) a workgroup. */
  columns: number;
  /** Rows (of the key dimension) a lane, next to 4 columns. */
  rows: number;
  /** Lanes that share a column, a power of two. */
  slabs: number;
  /** Tokens staged in workgroup memory a step, a multiple of 4. */
  tile: number;
  /** Vectors of channels whose scores a lane adds up, and how many such strips a row has. */
  strip: number;
  parts: number;
}

/** What a plan of a gated scan depends on. */
export interface GatedShape {
  batch: number;
  tokens: number;
  heads: number;
  keyDim: number;
  valueDim: number;
  /** Dtype of all operands but the gate; absent where they differ. */
  dtype?: DType | undefined;
  /** Tokens a segment; absent: as many segments as fill the device. */
  chunk?: number | undefined;
}

/** Segments of one gated scan, and how the token-by-token kernel cuts a state. */
export interface GatedPlan {
  segments: number;
  segmentTokens: number;
  tile: RecurrentTile;
  /** Where the device has the subgroups for it. */
  blocks: BlockTile | undefined;
  /** Where the device has fragments and all operands are f16. */
  matrix: GatedMatrixTiles | undefined;
}

/** Fewer tokens than this a segment are not worth a state written, scanned and read. */
const leastSegment = 128;

/**
 * The plan of a gated scan: a pure function of shape and device.
 * @param tuning.blocks take blocks of tokens where the device has subgroups; a processor's driver compiles them ten times as long
 * @throws HeedError LIMIT_EXCEEDED when no tile fits the device
 */
export function planGated(
  shape: GatedShape,
  form: GateForm,
  capabilities: Capabilities,
  tuning: ScanTuning & { blocks: boolean },
): GatedPlan {
  const { batch, tokens, heads, keyDim, valueDim, chunk } = shape;
  const workgroupBytes = capabilities.limits.maxComputeWorkgroupStorageSize;
  const tile = gatedTile(keyDim, valueDim, form, workgroupBytes, tuning, 64);
  const blocks = tuning.blocks ? blockTile(keyDim, valueDim, capabilities, tuning) : undefined;
  const matrix = shape.dtype === 'f16' ? gatedMatrixTiles(keyDim, valueDim, capabilities) : undefined;
  const perSegment = Math.max(1, batch * heads * Math.ceil(valueDim / (matrix?.rows ?? blocks ?? tile).columns));
  const fill = matrix ? (tuning.fill / 4) * gatedResidents(keyDim, matrix.rows) : tuning.fill;
  const wanted = Math.max(1, Math.min(Math.floor(fill / perSegment), Math.ceil(tokens / leastSegment)));
  // whole tiles: those of the other kernels have 16 or 12 tokens, or parts of these
  const step = matrix ? matrix.rows.chunk : 48;
  const segmentTokens = Math.max(1, chunk ?? Math.ceil(Math.ceil(tokens / wanted) / step) * step);
  return { segments: Math.max(1, Math.ceil(tokens / segmentTokens)), segmentTokens, tile, blocks, matrix };
}

/** Tile for a few tokens: the widest columns that still give every part of the device a workgroup. */
export function gatedStepTile(
  states: number,
  dims: { keyDim: number; valueDim: number },
  form: GateForm,
  workgroupBytes: number,
  tuning: ScanTuning,
): RecurrentTile {
  for (const widest of [64, 32]) {
    const tile = gatedTile(dims.keyDim, dims.valueDim, form, workgroupBytes, tuning, widest);
    if (states * Math.ceil(dims.valueDim / tile.columns) >= tuning.fill) return tile;
  }
  return gatedTile(dims.keyDim, dims.valueDim, form, workgroupBytes, tuning, 16);
}

function gatedTile(
  keyDim: number,
  valueDim: number,
  form: GateForm,
  workgroupBytes: number,
  tuning: ScanTuning,
  widest: number,
): RecurrentTile {
  for (const most of [64, 32, 16, 8, 4]) {
    if (most > widest) continue;
    const columns = Math.ceil(valueDim / Math.ceil(valueDim / most) / 4) * 4;
    const groups = columns / 4;
    const lanes = (rows: number): number => groups * Math.ceil(keyDim / rows);
    const rows = [16, 8].find((count) => count <= tuning.laneRows && lanes(count) >= 32) ?? 4;
    const slabs = Math.ceil(keyDim / rows);
    if (lanes(rows) > 256) continue;
    const keyVectors = (slabs * rows) / 4;
    const perToken = 16 * (2 * keyVectors + groups + gateVectors(form, keyVectors, groups) + (slabs > 1 ? slabs * groups : 0));
    // one token a step only where nothing narrower is left
    const tile = (most === 4 ? [16, 8, 4, 1] : [16, 8, 4]).find((tokens) => tokens * perToken <= Math.min(workgroupBytes, 16384));
    if (tile !== undefined) return { columns, rows, tile };
  }
  throw new HeedError(
    'LIMIT_EXCEEDED',
    `linear: key dimension ${keyDim} needs more than the ${workgroupBytes} bytes of workgroup memory of this device; split the heads (at most 1024 fit)`,
  );
}

/** Tile of the kernel of blocks: the fewest padded rows whose lanes lie in one subgroup. */
function blockTile(keyDim: number, valueDim: number, capabilities: Capabilities, tuning: ScanTuning): BlockTile | undefined {
  const { subgroups, subgroupMinSize, limits } = capabilities;
  if (!subgroups) return undefined;
  const columns = Math.ceil(valueDim / Math.ceil(valueDim / 64) / 4) * 4;
  const groups = columns / 4;
  const choices = [16, 12, 8, 4]
    .filter((rows) => rows <= tuning.laneRows)
    .map((rows) => ({ rows, slabs: 2 ** Math.ceil(Math.log2(Math.ceil(keyDim / rows))) }))
    .filter(({ slabs }) => slabs <= subgroupMinSize && slabs * groups <= 256)
    .sort((a, b) => a.rows * a.slabs - b.rows * b.slabs || b.rows - a.rows);
  for (const { rows, slabs } of choices) {
    const keyVectors = (slabs * rows) / 4;
    const strip = 2;
    const parts = Math.ceil(keyVectors / strip);
    // the larger of both sides: gates of rows, and gates of columns with their weighted values
    const perToken = 16 * (2 * keyVectors + parts + 1 + groups + Math.max(keyVectors, 2 * groups + groups / 4));
    const tile = [12, 8, 4].find((tokens) => tokens * perToken <= Math.min(limits.maxComputeWorkgroupStorageSize, 16384));
    if (tile !== undefined) return { columns, rows, slabs, tile, strip, parts };
  }
  return undefined;
}
