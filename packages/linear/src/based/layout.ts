import { HeedError } from '@heed/core';

// The symmetric feature map in blocks of 4 x 4. x is padded to a multiple of 4; block (I, J), I <= J, holds the products of coordinates
// 4I .. 4I+3 with 4J .. 4J+3. The lower half of a diagonal block would repeat its upper half: it holds the four linear features of its
// coordinates instead, block 0 the constant, too. 16 features a block: 160 for 16 coordinates, of which 153 are features.

/** Blocks of four coordinates. */
export function coordinateBlocks(featureDim: number): number {
  return Math.ceil(featureDim / 4);
}

/** Blocks of 16 features. */
export function featureBlocks(featureDim: number): number {
  const n = coordinateBlocks(featureDim);
  return (n * (n + 1)) / 2;
}

/** Features of the symmetric map, 1 + f + f (f + 1) / 2. */
export function symmetricFeatures(featureDim: number): number {
  return 1 + featureDim + (featureDim * (featureDim + 1)) / 2;
}

/** Features of the official map, 1 + f + f^2. */
export function fullFeatures(featureDim: number): number {
  return 1 + featureDim + featureDim * featureDim;
}

/** How the kernels cut a problem. */
export interface BasedPlan {
  /** Value columns of a workgroup of the scan, a multiple of 4. */
  columns: number;
  /** Tokens a step of the scan. */
  tile: number;
  /** Slabs of 16 value rows of a workgroup of the gradients of q and k. */
  slabs: number;
  /** Tokens a step of them; 0 where no tile fits. */
  gradientTile: number;
  segments: number;
  segmentTokens: number;
}

export interface BasedShape {
  batch: number;
  tokens: number;
  heads: number;
  featureDim: number;
  valueDim: number;
  /** Tokens a segment; absent: as many segments as fill the device. */
  chunk?: number | undefined;
}

/** Fewer tokens a segment are not worth a state written, scanned and read. */
const leastSegment = 128;
// a workgroup with more runs alone on a multiprocessor
const mostBytes = 24 * 1024 - 512;

/**
 * Tiles and segments: a pure function of shape, workgroup memory and the number of workgroups that fills the device.
 * @throws HeedError LIMIT_EXCEEDED when no tile fits
 */
export function planBased(shape: BasedShape, workgroupBytes: number, fill: number): BasedPlan {
  const { batch, tokens, heads, featureDim, valueDim } = shape;
  const blocks = featureBlocks(featureDim);
  const memory = Math.min(workgroupBytes, mostBytes) - 16 * Math.ceil(blocks / 4);
  const coordinates = 4 * coordinateBlocks(featureDim);
  // groups of four columns, one more for the normaliser
  const bytesOf = (groups: number): number => 4 * (2 * coordinates + 2 * 16 * blocks + 4 * groups + 4 * groups * blocks);
  let groups = Math.min(Math.ceil(valueDim / 4) + 1, Math.floor(256 / blocks));
  while (groups > 2 && bytesOf(groups) * Math.min(4, groups) > memory) groups--;
  const tile = Math.min(8, Math.floor(memory / bytesOf(Math.max(2, groups))));
  if (groups < 2 || tile < 1)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `based: a feature dimension of ${featureDim} needs ${bytesOf(2)} bytes of workgroup memory and ${2 * blocks} lanes, this device has ${workgroupBytes} bytes and 256 lanes; use at most 40`,
    );
  // column tiles of even width
  const tiles = Math.ceil(valueDim / (4 * (groups - 1)));
  const columns = 4 * Math.ceil(valueDim / 4 / tiles);
  const slabs = Math.max(1, Math.min(Math.ceil(valueDim / 16), Math.floor(256 / (4 * blocks))));
  const gradientBytes = 4 * (2 * coordinates + 16 * blocks + 2 * 16 * slabs + 8 + 16 * blocks * slabs);
  const gradientTile = 4 * blocks * slabs > 256 ? 0 : Math.min(8, Math.floor(memory / gradientBytes));
  const wanted = Math.max(1, Math.min(Math.floor(fill / Math.max(1, batch * heads * tiles)), Math.ceil(tokens / leastSegment)));
  const segmentTokens = Math.max(1, shape.chunk ?? Math.ceil(tokens / wanted));
  return { columns, tile, slabs, gradientTile, segments: Math.max(1, Math.ceil(tokens / segmentTokens)), segmentTokens };
}
