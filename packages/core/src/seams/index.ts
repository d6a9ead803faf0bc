export type { AttentionFn, AttentionWithLseFn, BlockSelector, ModelSurgery, OptionsOf } from './attention-function.js';
export { Carry, carrySlot, type CarrySlot } from './carry.js';
export type { AppendContext, AttendOptions, KvCache, KvCacheOptions } from './kv.js';
export { itemBytes, type KvCodec, rowBytes } from './kv-codec.js';
export {
  type KvCodesStage,
  type KvElementsStage,
  type KvGroupView,
  type KvHeadGroup,
  type KvHeadsStage,
  type KvLeavingRows,
  type KvNeed,
  type KvPlacement,
  type KvPlacementStage,
  type KvRowsStage,
  type KvStage,
  type KvStageKind,
  kvStageKinds,
  type KvTokensStage,
} from './kv-stage.js';
export { type Bytes, deviceBytes, type Layer, type MixContext, type Snapshot, type State, type TokenMixer } from './mixer.js';
