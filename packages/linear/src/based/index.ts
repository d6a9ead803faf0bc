export { based, basedWithState } from './forward.js';
export { taylorFeatures } from './features.js';
export type { BasedOptions, BasedStates } from './options.js';
export { type BasedState, basedStart, basedStep, type BasedStreamOptions } from './stream.js';
export { leftOfWindowSize, slidingWindow, type SlidingWindowOptions } from './window.js';
export { baseConv, type BaseConvConfig, baseConvMixer, type BaseConvParams } from './conv.js';
export type { HeldTensors } from '../scan/held-tensors.js';
export {
  basedKind,
  type BasedKind,
  type BasedLayerConfig,
  basedLayerMixer,
  basedMixer,
  type BasedMixerConfig,
  type BasedMixerParams,
  slidingWindowMixer,
  type SlidingWindowMixerConfig,
} from './mixers.js';
