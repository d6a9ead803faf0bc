export { lrpeAngles, srmsNorm, transnormerllm, type TransnormerllmOptions, transnormerllmWithState } from './forward.js';
export { lrpe } from '../layer/turns.js';
export type { LayerActivation } from '../layer/activation.js';
export type { SlopeScheme } from '../scan/slopes.js';
export { transnormerllmStart, TransnormerllmState, transnormerllmStep, type TransnormerllmStreamOptions } from './stream.js';
export { transnormerllmMixer, type TransnormerllmMixerConfig, type TransnormerllmMixerParams } from './mixer.js';
export {
  initSglu,
  sglu,
  type SgluOptions,
  type SgluParams,
  transnormerllmBlock,
  type TransnormerllmBlockConfig,
  type TransnormerllmBlockParams,
} from './block.js';
