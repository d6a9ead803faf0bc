import type { Device } from '../device/device.js';
import type { KvCacheOptions } from '../seams/kv.js';
import { scope } from '../tensor/scope.js';
import { checkCacheOptions } from './check.js';
import { f16Codec, f32Codec } from './codec.js';
import { PagedKvCache } from './paged-cache.js';
import { assignStages } from './stages.js';

export { f16Codec, f32Codec } from './codec.js';
export { extraRowFloats, layoutOf } from './group.js';
export { layoutUniforms, loaderText, placeFunctions } from './kernels/rows.js';
export { rowCodes, type RowCodesOptions } from './row-codes.js';
export { PagedKvCache } from './paged-cache.js';
export { type AttendPlan, type AttendShape, planAttend } from './plan.js';

/**
 * An empty KV cache for one attention layer. Its buffers are made once; appending, attending and truncating allocate nothing that stays.
 * @param options.dtype of stored rows, `f32` or `f16`; a codes stage replaces it for its head group
 * @param options.stages what becomes of rows, by kind (heads, tokens, rows, elements, codes, placement); at most one of a kind for a
 *   head group. Stages at a neutral setting are left out: the cache then equals a dense one
 * @param options.pageTokens tokens a page, default 64
 * @throws HeedError INVALID_ARGUMENT for sizes below 1 or stages that do not go together, DTYPE_MISMATCH, SHAPE_MISMATCH for head
 *   dimensions over 256, LIMIT_EXCEEDED when a pool is larger than one binding of the device
 */
export function createKvCache(device: Device, options: KvCacheOptions): PagedKvCache {
  const { batch, kvHeads, headDim, valueDim = headDim, capacity, dtype, pageTokens = 64, stages = [] } = options;
  checkCacheOptions({ batch, kvHeads, headDim, valueDim, capacity, dtype, pageTokens });
  const assigned = assignStages(stages, kvHeads, dtype === 'f16' ? f16Codec : f32Codec);
  return scope(() => new PagedKvCache(device, assigned, { batch, kvHeads, headDim, valueDim, pageTokens, capacity }));
}
