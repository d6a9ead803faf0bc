export { formatBytes, HeedError, type HeedErrorCode } from './errors.js';
export { openDevice, withDevice, type DeviceOptions } from './device/open.js';
export type { Device, KernelTime, KernelTrace, MemoryReport } from './device/device.js';
export {
  tierAtLeast,
  tiers,
  type Capabilities,
  type DeviceLimits,
  type DeviceReport,
  type MatrixConfig,
  type Tier,
} from './device/capabilities.js';
export { type RandomPosition, RandomStream } from './random/stream.js';
export { type DType, type FloatDType, type NumericArray } from './dtype.js';
export { Tensor, type Shape, warnOnLeakedTensors } from './tensor/tensor.js';
export { full, tensor, writeValues, zeros } from './tensor/create.js';
export { scope } from './tensor/scope.js';
export {
  checkpoint,
  grad,
  type GradOptions,
  type Gradients,
  type Params,
  stopGradient,
  valueAndGrad,
  type ValueAndGrad,
} from './autodiff/grad.js';
export * from './ops/index.js';
export * from './seams/index.js';
export { createKvCache, f16Codec, f32Codec, type PagedKvCache, rowCodes, type RowCodesOptions } from './cache/index.js';
export {
  attention,
  attentionColumnSums,
  type AttentionOptions,
  type AttentionResult,
  attentionWithLse,
  type BlockSelection,
  mergeAttention,
  type ScoreMod,
  scoreMod,
} from './attention/index.js';
