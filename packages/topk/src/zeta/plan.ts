import { type Capabilities, HeedError } from '@heed/core';
import type { ZetaSettings } from './options.js';
import { cellsOf, lanesOf } from './kernels/attend.js';
import { columnsOf } from './kernels/values.js';
import { runCounts, windowTile } from './kernels/window.js';

/** Tokens and tiles of a call; pure, from shapes and capabilities. */
export interface ZetaPlan {
  /** Tokens that one workgroup sorts; a chunk is a power of two times it. */
  block: number;
  /** Levels of whole sorted runs. */
  levels: number;
  /** The same with the run, perhaps not whole, that holds all tokens. */
  allLevels: number;
  /** Room for the runs of a query's prefix: a power of two of tokens has one level more than any prefix before it has runs. */
  runs: number;
  /** Rows (batch x head) that go through the kernels at once, so that temporaries stay small whatever the batch. */
  slab: number;
  forward: { tile: number; lanes: number };
}

const longestBlock = 1024;
/** Temporaries of a slab, at most (unless one row alone needs more). */
const slabBytes = 288 * 2 ** 20;

/** Tokens a block: the chunk, halved until a workgroup can sort it. @throws HeedError INVALID_ARGUMENT when it cannot be halved */
export function blockOf({ chunk, causal }: Pick<ZetaSettings, 'chunk' | 'causal'>): number {
  if (!causal) return 256;
  let block = chunk;
  while (block > longestBlock && block % 2 === 0) block /= 2;
  if (block > longestBlock)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `zeta: chunk is ${chunk}; use at most ${longestBlock} tokens, or a multiple of ${longestBlock}`,
    );
  return block;
}

/** Levels of runs that `tokens` tokens need. @throws HeedError LIMIT_EXCEEDED beyond 16 */
export function levelsOf(tokens: number, block: number, causal: boolean): number {
  const blocks = causal ? Math.floor(tokens / block) : Math.ceil(tokens / block);
  const levels = blocks <= 1 ? 1 : (causal ? Math.floor(Math.log2(blocks)) : Math.ceil(Math.log2(blocks))) + 1;
  const most = runCounts.at(-1) as number;
  if (levels > most)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `zeta: ${tokens} tokens in blocks of ${block} need ${levels} levels of runs, ${most} are there; use a larger chunk`,
    );
  return levels;
}

/** The plan of a call. @throws HeedError LIMIT_EXCEEDED when window and topK do not fit into workgroup memory */
export function planZeta(
  settings: ZetaSettings,
  shape: { rows: number; tokens: number; valueDim: number; half: boolean },
  capabilities: Pick<Capabilities, 'limits'>,
): ZetaPlan {
  const { window, topK, localWindow, curves, causal } = settings;
  const { rows, tokens, valueDim, half } = shape;
  const block = blockOf(settings);
  const levels = levelsOf(tokens, block, causal);
  const allLevels = 1 + Math.ceil(Math.log2(Math.max(1, Math.ceil(tokens / block))));
  const needed = causal ? Math.ceil(Math.log2(Math.floor(Math.max(0, tokens - 1) / block) + 1)) : 1;
  // 256 bytes for the counts beside them
  const memory = Math.min(capabilities.limits.maxComputeWorkgroupStorageSize, 32 * 1024) - 256;
  // 8 queries, 128 lanes: on an H200 16 with 256 take as long, 8 with 64 twice, and 8 with 256 a sixth more
  const tileOf = (bytes: number): number => [8, 4, 2, 1].find((tile) => tile * bytes + 16 <= memory) ?? 0;
  const queryBytes = 16 * cellsOf({ window, topK, localWindow }) + 4 * Math.ceil((topK + 1) / 32);
  const forwardTile = tileOf(queryBytes);
  if (forwardTile === 0)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `zeta: window ${window}, topK ${topK} and localWindow ${localWindow} need ${queryBytes} bytes of workgroup memory a query, this device has ${memory}; use smaller ones`,
    );
  const bindingBytes = capabilities.limits.maxStorageBufferBindingSize;
  const columns = columnsOf(valueDim) + 1;
  // of a token: runs, window list, packed query and key, running sums, history mean
  const tokenBytes = [8 * curves * allLevels, 4 * window, 16, 16, columns, columns * (half ? 8 : 16)];
  const fitting = (bytes: number, each: number): number => Math.max(1, Math.floor(bytes / Math.max(1, (tokens + windowTile) * each)));
  const most = Math.min(
    fitting(
      slabBytes,
      tokenBytes.reduce((a, b) => a + b),
    ),
    fitting(bindingBytes, Math.max(...tokenBytes)),
  );
  return {
    block,
    levels,
    allLevels,
    runs: runCounts.find((runs) => runs >= needed) ?? levels,
    slab: Math.ceil(rows / Math.ceil(rows / most)) || 1,
    forward: { tile: forwardTile, lanes: lanesOf(window, forwardTile) },
  };
}

/** Rows of the slabs: [first, count] each. */
export function slabsOf(rows: number, slab: number): [number, number][] {
  return Array.from({ length: Math.ceil(rows / slab) }, (_, i) => [i * slab, Math.min(slab, rows - i * slab)]);
}
