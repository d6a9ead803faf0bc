export type { TitansActivation } from './activation.js';
export { titans, titansRetrieve, titansWithState } from './forward.js';
export { titansLayer, type TitansLayerOptions, type TitansLayerParams } from './layer.js';
export type { TitansMemory } from './memory.js';
export type { TitansForm, TitansMemoryState, TitansOptions } from './options.js';
export { titansSegmentAttention, type TitansSegmentOptions } from './segment-attention.js';
export { TitansState, titansStart, titansStep, type TitansStepRates, type TitansStreamOptions } from './stream.js';
export {
  titansMagMixer,
  titansMalMixer,
  type TitansGateParams,
  type TitansHybridConfig,
  type TitansHybridParams,
} from './hybrid-mixers.js';
export { titansMacMixer } from './mac-mixer.js';
export { titansMixer } from './mixer.js';
export type { TitansMixerConfig, TitansMixerParams } from './mixer-params.js';
export { TitansMixerState } from './mixer-state.js';
export type { ShortAttentionConfig, ShortAttentionParams } from './short-attention.js';
