import { HeedError } from '@heed/core';
import type { GateForm } from './gated-recurrent.js';
import { gateVectors } from './gated-recurrent.js';
import type { RecurrentTile, ScanTuning } from './plan.js';

/** What a plan of a gated scan depends on. */
export interface GatedShape {
  batch: number;
  tokens: number;
  heads: number;
  keyDim: number;
  valueDim: number;
  /** Tokens a segment; absent: as many segments as fill the device. */
  chunk?: number | undefined;
}

/** Segments of one gated scan, and how the token-by-token kernel cuts a state. */
export interface GatedPlan {
  segments: number;
  segmentTokens: number;
  tile: RecurrentTile;
}

/** Fewer tokens than this a segment are not worth a state written, scanned and read. */
const leastSegment = 128;

/**
 * The plan of a gated scan: a pure function of shape and device.
 * @throws HeedError LIMIT_EXCEEDED when no tile fits the device
 */
export function planGated(shape: GatedShape, form: GateForm, workgroupBytes: number, tuning: ScanTuning): GatedPlan {
  const { batch, tokens, heads, keyDim, valueDim, chunk } = shape;
  const tile = gatedTile(keyDim, valueDim, form, workgroupBytes, tuning, 64);
  const perSegment = Math.max(1, batch * heads * Math.ceil(valueDim / tile.columns));
  const wanted = Math.max(1, Math.min(Math.floor(tuning.fill / perSegment), Math.ceil(tokens / leastSegment)));
  const segmentTokens = Math.max(1, chunk ?? Math.ceil(Math.ceil(tokens / wanted) / tile.tile) * tile.tile);
  return { segments: Math.max(1, Math.ceil(tokens / segmentTokens)), segmentTokens, tile };
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
