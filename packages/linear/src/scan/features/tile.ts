import type { Capabilities } from '@heed/core';
import { fragmentLanes, fragmentShape, hasFragments } from '@heed/core/~internal';
import { type FeatureMap, paddedFeatures } from './map.js';

/** How the kernels of a feature map on fragments cut a problem. */
export interface FeatureTile {
  /** Columns of values a workgroup; one more holds the ones. */
  columns: number;
  /** Columns of the state: values, ones, padding to whole fragments. */
  width: number;
  fragmentColumns: number;
  /** Blocks of 16 features of a subgroup of states. */
  blocks: number;
  /** Subgroups of a workgroup of outputs, 32 rows each. */
  subgroups: number;
  /** Keys, or features, that its workgroups stage at a time. */
  staged: number;
  /** Lanes of a subgroup meet at barriers. */
  barriers: boolean;
}

/** Elements of 16 bytes from row to row: an odd number, so that rows do not meet bank conflicts. */
export function oddEights(elements: number): number {
  return Math.ceil(elements / 8) | 1;
}

/** From row to row of 16 scores and of 16 weights or features, in elements of 16 bytes; where weights begin in a slice. */
export const scoreStride = 5;
export const weightStride = 3;
export const weightsAt: number = 16 * scoreStride;

/** Parts of the workgroup memory of the two kernels, in elements of 16 bytes. */
export interface FeatureLayout {
  /** Deep products of queries and keys: their coordinates or their features, in sixteens. */
  depth: number;
  /** From row to row of keys (and queries) and of values. */
  keyStride: number;
  valueStride: number;
  /** A subgroup's slice: 16 x 16 scores, then the weights of one block of rows (of both, under barriers); or features; or queries. */
  slice: number;
  statesBytes: number;
  outputsBytes: number;
}

/** The layout of a tile. */
export function featureLayout(map: Pick<FeatureMap, 'dim' | 'count' | 'weight'>, tile: FeatureTile): FeatureLayout {
  const { width, staged, subgroups, barriers, blocks } = tile;
  const padded = paddedFeatures(map);
  const depth = map.weight ? Math.ceil(map.dim / 16) : padded / 16;
  const keyStride = oddEights(16 * depth);
  const valueStride = oddEights(width);
  const slice = Math.max(weightsAt + (barriers ? 32 : 16) * weightStride, 32 * weightStride, map.weight ? 32 * keyStride : 0);
  const queries = barriers ? subgroups * 32 * keyStride : 0;
  return {
    depth,
    keyStride,
    valueStride,
    slice,
    statesBytes: 16 * ((padded / blocks) * 2 * ((2 * blocks) | 1) + 32 * valueStride) + 16,
    outputsBytes: 16 * (subgroups * slice + staged * (valueStride + keyStride) + queries) + 4 * 32 * subgroups + 16,
  };
}

/** Tiles, or undefined where the device has no fragments or nothing fits. */
export function featureTile(
  map: Pick<FeatureMap, 'dim' | 'count' | 'weight'>,
  valueDim: number,
  capabilities: Capabilities,
): FeatureTile | undefined {
  if (!hasFragments(capabilities) || map.dim > (map.weight ? 32 : 64)) return undefined;
  const { matrix, subgroupMinSize, subgroupMaxSize, limits } = capabilities;
  const { N } = fragmentShape(capabilities, { N: matrix === 'hardware' ? 8 : 16 });
  const columns = Math.ceil(Math.min(64, valueDim) / 8) * 8;
  const width = Math.ceil((columns + 1) / N) * N;
  // as in attention: where 32 lanes run as one they need no barriers
  const barriers = matrix !== 'hardware' || subgroupMinSize !== fragmentLanes || subgroupMaxSize !== fragmentLanes;
  const featureBlocks = paddedFeatures(map) / 16;
  // more blocks a subgroup take less workgroup memory, and more registers
  for (const blocks of [2, 5, 4].filter((n) => featureBlocks % n === 0))
    for (const subgroups of matrix === 'hardware' ? [4, 2, 1] : [2, 1]) {
      const tile = { columns, width, fragmentColumns: N, blocks, subgroups, staged: 32, barriers };
      const { statesBytes, outputsBytes } = featureLayout(map, tile);
      const lanes = 32 * Math.max(subgroups, featureBlocks / blocks);
      if (Math.max(statesBytes, outputsBytes) <= limits.maxComputeWorkgroupStorageSize && lanes <= limits.maxComputeInvocationsPerWorkgroup)
        return tile;
    }
  return undefined;
}

/** What the cut into segments depends on. */
export interface SegmentShape {
  batch: number;
  tokens: number;
  heads: number;
  columnTiles: number;
  causal: boolean;
  /** Tokens a segment that the caller wants. */
  chunk?: number | undefined;
  /** Bytes of a state of a segment. */
  stateBytes: number;
  /** Bytes that the device binds. */
  bindingBytes: number;
}

/** Workgroups of states that keep a device busy. */
const fill = 1024;

/**
 * Tokens a segment: every token meets half a segment's keys one by one, and each segment writes a state; without causality only states count.
 * States of all segments fit one binding where that is possible.
 */
export function segmentTokensOf(map: Pick<FeatureMap, 'weight'>, shape: SegmentShape): number {
  const { batch, tokens, heads, columnTiles, causal, chunk, stateBytes, bindingBytes } = shape;
  const sequences = Math.max(1, batch * heads * columnTiles);
  let best = map.weight ? 256 : 128;
  if (!causal) best = Math.min(2048, Math.max(256, Math.ceil((tokens * sequences) / fill / 32) * 32));
  let segment = chunk === undefined ? best : Math.min(chunk, 2 * best);
  while (segment < tokens && Math.ceil(tokens / segment) * sequences * stateBytes > bindingBytes) segment *= 2;
  return Math.max(1, Math.min(segment, tokens));
}
