import { type Device, HeedError, type Tensor } from '@heed/core';
import { type PairMemory, type PairTile, planPairs, type RowLayout, rowLayout } from '../../pairs/plan.js';

/** Sizes and places of a call; all operands f32. Rows of a token are [heads, dim] without gaps; batches of k and v may have gaps. */
export interface Place {
  batch: number;
  heads: number;
  queries: number;
  keys: number;
  dim: number;
  valueDim: number;
  /** Channels a block of Sigma. */
  block: number;
  causal: boolean;
  /** Factor on q.k. */
  scale: number;
}

/** Run-time values that the kernels over pairs share. */
export const placeUniforms = {
  workgroups: 'u32',
  tiles: 'u32',
  heads: 'u32',
  queries: 'u32',
  keys: 'u32',
  kBatch: 'u32',
  vBatch: 'u32',
  shift: 'i32',
  scale2: 'f32',
} as const;

export const log2e: number = Math.LOG2E;

export function placeValues(place: Place, tiles: number, k: Tensor, v?: Tensor): Record<keyof typeof placeUniforms, number> {
  const { batch, heads, queries, keys, causal, scale } = place;
  return {
    workgroups: batch * heads * tiles,
    tiles,
    heads,
    queries,
    keys,
    kBatch: k.strides[0] ?? 0,
    vBatch: v?.strides[0] ?? 0,
    // without a mask every query stands behind all keys
    shift: causal ? keys - queries : keys,
    scale2: scale * log2e,
  };
}

/** Elements of rows, and how many keys a query sees. `Layout`s give the row lengths. */
export function placeText(dim: number, valueDim: number): string {
  return `
    fn qBase(batch: u32, token: u32, head: u32) -> u32 { return ((batch * uniforms.queries + token) * uniforms.heads + head) * ${dim}u; }
    fn gBase(batch: u32, token: u32, head: u32) -> u32 { return ((batch * uniforms.queries + token) * uniforms.heads + head) * ${valueDim}u; }
    fn kBase(batch: u32, token: u32, head: u32) -> u32 { return batch * uniforms.kBatch + (token * uniforms.heads + head) * ${dim}u; }
    fn vBase(batch: u32, token: u32, head: u32) -> u32 { return batch * uniforms.vBatch + (token * uniforms.heads + head) * ${valueDim}u; }
    fn visible(token: u32) -> u32 { return u32(clamp(i32(token) + 1 + uniforms.shift, 0, i32(uniforms.keys))); }`;
}

/** 1 where loops may have literal bounds; see `bound`. */
export const fixedLoops = (device: Pick<Device, 'isSoftware'>): number => (device.isSoftware ? 0 : 1);

export interface Layouts {
  keyRow: RowLayout;
  valueRow: RowLayout;
}

export function layoutsOf({ dim, valueDim, block }: Pick<Place, 'dim' | 'valueDim' | 'block'>): Layouts {
  return { keyRow: rowLayout(dim, block), valueRow: rowLayout(valueDim) };
}

/** The tile of a kernel here. @throws HeedError LIMIT_EXCEEDED where not even the smallest one fits */
export function tileFor(
  who: string,
  memory: PairMemory,
  sizes: { columns: number; dots: number },
  device: Pick<Device, 'limits' | 'isSoftware'>,
): PairTile {
  const { maxComputeWorkgroupStorageSize: most, maxComputeInvocationsPerWorkgroup } = device.limits;
  const problem = { ...sizes, memory, lanes: Math.min(256, maxComputeInvocationsPerWorkgroup), software: device.isSoftware };
  // over 24 KiB one workgroup a multiprocessor runs on NVIDIA's
  const tile = planPairs({ ...problem, bytes: Math.min(most, 24 * 1024) }) ?? planPairs({ ...problem, bytes: most });
  if (!tile)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `lla: ${who} with rows of ${4 * sizes.columns} channels (blocks padded to multiples of 4) does not fit into ${most} bytes of workgroup memory and ${problem.lanes} lanes; use a smaller headDim, or blocks of 4 channels or more`,
    );
  return tile;
}
