export type { TitansActivation } from './activation.js';
export { titans, titansRetrieve, titansWithState } from './forward.js';
export { titansLayer, type TitansLayerOptions, type TitansLayerParams } from './layer.js';
export type { TitansMemory } from './memory.js';
export type { TitansForm, TitansMemoryState, TitansOptions } from './options.js';
export { titansSegmentAttention, type TitansSegmentOptions } from './segment-attention.js';
export { TitansState, titansStart, titansStep, type TitansStepRates, type TitansStreamOptions } from './stream.js';
