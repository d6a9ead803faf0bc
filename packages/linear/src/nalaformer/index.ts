export { nalaformer } from './forward.js';
export type { RotaryTable } from './feature-kernels.js';
export {
  nalaformerLayer,
  type NalaformerLayerConfig,
  nalaformerLayerForward,
  type NalaformerLayerParams,
  nalaformerMixer,
  type NalaformerMixerConfig,
  type NalaformerMixerParams,
} from './layer.js';
export type { NalaformerOptions } from './options.js';
export { nalaformerRope } from './rope.js';
export { type NalaformerState, nalaformerStart, nalaformerStep, type NalaformerStreamOptions } from './stream.js';
