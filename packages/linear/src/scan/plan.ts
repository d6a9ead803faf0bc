import { type Capabilities, type DType, HeedError } from '@heed/core';
import { type MatrixTiles, matrixTiles, sharedBytes } from './matrix-tile.js';
import { outputLayout } from './output-layout.js';
import { planRanges, type TokenRanges } from './ranges.js';

/** How the token-by-token kernel cuts a state. */
export interface RecurrentTile {
  /** Columns (of the value dimension) a workgroup. */
  columns: number;
  /** Rows (of the key dimension) a lane, next to 4 columns. */
  rows: number;
  /** Tokens staged in workgroup memory a step. */
  tile: number;
}

/** What a plan depends on. */
export interface ScanShape {
  batch: number;
  tokens: number;
  heads: number;
  keyDim: number;
  valueDim: number;
  dtype: DType;
  /** Tokens a segment; absent: as many segments as fill the device. */
  chunk?: number | undefined;
  /** Log-decay a head, where it is known without the device. */
  decays?: ArrayLike<number> | undefined;
}

/** Tiles and dispatches of one scan. */
export interface ScanPlan {
  /**
   * `serial`: one sweep, one dispatch. `ranges`: one dispatch of runs of tokens, each after a sweep over the tokens before it that still
   * count. `segments`: states of segments, scan over them, sweep of each segment. `chunk-parallel`: the same with segments of one step,
   * so that nothing is serial but the scan.
   */
  form: 'serial' | 'ranges' | 'segments' | 'chunk-parallel';
  /** `recurrent`: token by token, any tier and dtype. `matrix`: chunks as products of f16 fragments. */
  kernel: 'recurrent' | 'matrix';
  segments: number;
  segmentTokens: number;
  /** The runs of `ranges`; states by themselves are then made in segments. */
  ranges: TokenRanges | undefined;
  /** States that each segment adds on fragments: cut further, since heads that forget soon leave the others alone with the device. */
  parts: number;
  recurrent: RecurrentTile;
  matrix: MatrixTiles | undefined;
  dispatches: readonly ('states' | 'segment-scan' | 'outputs')[];
  /** Bytes that the dispatches move: operands, states, outputs; a column tile more reads q and k once more. */
  bytes: number;
}

/** What depends on the kind of device and is no capability of WebGPU. */
export interface ScanTuning {
  /** Workgroups that keep the device busy; of those on fragments a quarter or, where two share a multiprocessor, half. */
  fill: number;
  /** Parts of the device that a workgroup on fragments has for itself or shares with one more. Default a quarter of `fill`. */
  multiprocessors?: number;
  /** Most rows of a state a lane: 16 keep shared loads few; a processor's driver compiles 4 several times faster. */
  laneRows: 4 | 8 | 16;
}

/** Fewer tokens than this a segment are not worth a state written, scanned and read. */
const leastSegment = 128;

/** Runs make states anew: where one would cost more than so many times an even share, states of segments take less. */
const longestRange = 1.2;

/** Time of a token before a run over that of one with an output, of states up to 64 columns wide and of wider ones. */
const leadCost = { narrow: 0.5, wide: 0.35 };

/** Buffers of the sweep of runs with everything that a caller may ask for. */
const rangesBindings = 10;

/** Fewer tokens than this a part of a segment are not worth a state more to sum. */
const leastPart = 512;

/**
 * The plan of a scan: a pure function of shape and capabilities.
 * @throws HeedError LIMIT_EXCEEDED when no tile fits the device
 */
export function planScan(shape: ScanShape, capabilities: Capabilities, tuning: ScanTuning): ScanPlan {
  const { batch, tokens, heads, keyDim, valueDim, dtype } = shape;
  const recurrent = recurrentTile(keyDim, valueDim, capabilities.limits.maxComputeWorkgroupStorageSize, tuning);
  const matrix = dtype === 'f16' ? matrixTiles(keyDim, valueDim, capabilities) : undefined;
  const columns = matrix?.outputs.columns ?? recurrent.columns;
  const step = matrix?.outputs.chunk ?? recurrent.tile;
  const perSegment = batch * heads * Math.ceil(valueDim / columns);
  const resident = matrix && outputLayout(keyDim, matrix.outputs).bytes <= sharedBytes ? 2 : 1;
  const fill = matrix ? (tuning.fill / 4) * resident : tuning.fill;
  const wanted = Math.max(1, Math.min(Math.floor(fill / Math.max(1, perSegment)), Math.ceil(tokens / leastSegment)));
  const segmentTokens = Math.max(1, shape.chunk ?? Math.ceil(Math.ceil(tokens / wanted) / step) * step);
  const segments = Math.max(1, Math.ceil(tokens / segmentTokens));
  const serial = segments === 1;
  const parts =
    matrix && !serial
      ? Math.max(1, Math.min(Math.floor(tuning.fill / Math.max(1, perSegment * segments)), Math.floor(segmentTokens / leastPart)))
      : 1;
  const tiles = Math.ceil(valueDim / columns);
  const workgroups = Math.floor(((tuning.multiprocessors ?? tuning.fill / 4) * resident) / Math.max(1, batch * tiles));
  const ranges =
    matrix && !serial && shape.chunk === undefined && shape.decays && capabilities.limits.maxStorageBuffersPerShaderStage >= rangesBindings
      ? planRanges(
          { tokens, decays: shape.decays, workgroups, step, leadCost: columns > 64 ? leadCost.wide : leadCost.narrow },
          (longestRange * tokens * heads) / workgroups,
        )
      : undefined;
  const size = dtype === 'f16' ? 2 : 4;
  const direct = serial || ranges !== undefined;
  const perToken = tiles * 2 * keyDim + 2 * valueDim + (direct ? 0 : tiles * keyDim + valueDim);
  const states = direct ? 0 : 2 * (parts + 1) * segments * keyDim * valueDim * 4;
  return {
    form: serial ? 'serial' : ranges ? 'ranges' : segmentTokens <= step ? 'chunk-parallel' : 'segments',
    kernel: matrix ? 'matrix' : 'recurrent',
    segments,
    segmentTokens,
    ranges,
    parts,
    recurrent,
    matrix,
    dispatches: direct ? ['outputs'] : ['states', 'segment-scan', 'outputs'],
    bytes:
      batch * (heads * (tokens * perToken * size + states) + (ranges?.lead ?? 0) * tiles * (keyDim + Math.min(columns, valueDim)) * size),
  };
}

/** Tile for a few tokens: the widest columns that still give every part of the device a workgroup. */
export function stepTile(states: number, keyDim: number, valueDim: number, workgroupBytes: number, tuning: ScanTuning): RecurrentTile {
  for (const most of [64, 32]) {
    const tile = recurrentTile(keyDim, valueDim, workgroupBytes, tuning, most);
    if (states * Math.ceil(valueDim / tile.columns) >= tuning.fill) return tile;
  }
  return recurrentTile(keyDim, valueDim, workgroupBytes, tuning, 16);
}

/**
 * Tile of the token-by-token kernel: rows of a lane as many as still fill a subgroup of 32.
 * @param widest most columns
 * @throws HeedError LIMIT_EXCEEDED when a head dimension is too large
 */
export function recurrentTile(keyDim: number, valueDim: number, workgroupBytes: number, tuning: ScanTuning, widest = 64): RecurrentTile {
  for (const most of [64, 32, 16, 8, 4]) {
    if (most > widest) continue;
    const columns = Math.ceil(valueDim / Math.ceil(valueDim / most) / 4) * 4;
    const groups = columns / 4;
    const lanes = (rows: number): number => groups * Math.ceil(keyDim / rows);
    const rows = [16, 8].find((count) => count <= tuning.laneRows && lanes(count) >= 32) ?? 4;
    const slabs = Math.ceil(keyDim / rows);
    if (lanes(rows) > 256) continue;
    const perToken = 16 * ((2 * slabs * rows) / 4 + groups + (slabs > 1 ? slabs * groups : 0));
    // one token a step only where nothing narrower is left
    const tile = (most === 4 ? [16, 8, 4, 1] : [16, 8, 4]).find((tokens) => tokens * perToken <= Math.min(workgroupBytes, 16384));
    if (tile !== undefined) return { columns, rows, tile };
  }
  throw new HeedError(
    'LIMIT_EXCEEDED',
    `linear: key dimension ${keyDim} needs more than the ${workgroupBytes} bytes of workgroup memory of this device; split the heads (at most 1024 fit)`,
  );
}
