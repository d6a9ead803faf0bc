import type { Capabilities } from '@heed/core';
import { fragmentShape, hasFragments } from '@heed/core/~internal';

/** How the kernels on fragments cut tokens and states. */
export interface MatrixTile {
  /** Tokens a step of the output sweep. */
  chunk: number;
  /** Tokens a step of the sweep that only makes states. */
  stateChunk: number;
  /** Columns (of the value dimension) a workgroup. */
  columns: number;
  /** Rows of a state or an output that go through the f32 part of workgroup memory at a time. */
  stage: number;
}

/** Subgroups of a workgroup; each owns a quarter of the columns. */
export const matrixSubgroups = 4;

/** Halves that rows of f16 tiles are padded by, and floats that rows of f32 tiles are: no bank conflicts. */
export const halfPad = 8;
export const floatPad = 4;

/** The key dimension in whole fragments. */
export function paddedKeys(keyDim: number): number {
  return Math.ceil(keyDim / 16) * 16;
}

/** Floats of the f32 part: scores of a chunk, a spare fragment for idle subgroups, or `stage` rows of a state. */
export function stageFloats(chunk: number, columns: number, stage: number): number {
  return Math.max(chunk * (chunk + floatPad) + (chunk < 32 ? 16 * (chunk + floatPad) : 0), stage * (columns + floatPad));
}

/** Bytes of workgroup memory of the output sweep. */
export function outputBytes(keyDim: number, { chunk, columns, stage }: Omit<MatrixTile, 'stateChunk'>): number {
  const keys = paddedKeys(keyDim);
  const halves = 2 * chunk * (keys + halfPad) + chunk * (columns + halfPad) + chunk * (chunk + halfPad) + keys * (columns + halfPad);
  return halves * 2 + stageFloats(chunk, columns, stage) * 4 + (chunk + 4) * 4;
}

/** Bytes of workgroup memory of the state sweep. */
export function stateBytes(keyDim: number, { stateChunk, columns, stage }: Omit<MatrixTile, 'chunk'>): number {
  const halves = stateChunk * (paddedKeys(keyDim) + halfPad) + stateChunk * (columns + halfPad);
  return halves * 2 + stage * (columns + floatPad) * 4 + (stateChunk + 4) * 4;
}

/**
 * Tile of the kernels on fragments, or undefined where the device has none or the state does not fit its workgroup memory:
 * 32 tokens x 64 columns first, fewer where memory is short, and as many rows at a time through the f32 part as are left.
 */
export function matrixTile(keyDim: number, valueDim: number, capabilities: Capabilities): MatrixTile | undefined {
  if (!hasFragments(capabilities) || capabilities.limits.maxComputeInvocationsPerWorkgroup < matrixSubgroups * 32) return undefined;
  const limit = capabilities.limits.maxComputeWorkgroupStorageSize;
  const least = fragmentShape(capabilities).N * matrixSubgroups;
  const keys = paddedKeys(keyDim);
  for (const chunk of [32, 16]) {
    for (const columns of [64, 32]) {
      if (columns < least || (columns === 64 && valueDim <= 32 && least <= 32)) continue;
      for (let passes = 1; passes * 16 <= keys; passes++) {
        const stage = Math.ceil(keys / passes / 16) * 16;
        if (outputBytes(keyDim, { chunk, columns, stage }) > limit) continue;
        const stateChunk = [64, 32, 16].find((tokens) => stateBytes(keyDim, { stateChunk: tokens, columns, stage }) <= limit) ?? chunk;
        return { chunk, stateChunk, columns, stage };
      }
    }
  }
  return undefined;
}
