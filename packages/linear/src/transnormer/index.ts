export {
  transnormerDiagAttention,
  type TransnormerDiagOptions,
  transnormerNormAttention,
  transnormerNormAttentionWithState,
  type TransnormerNormOptions,
} from './forward.js';
export { transnormerAngles, type TransnormerPositions } from './positions.js';
export { srms } from '../layer/srms.js';
export type { LayerActivation } from '../layer/activation.js';
export type { HeldTensors } from '../scan/held-tensors.js';
export type { StackState } from '../layer/stack.js';
export type { TransnormerMixerConfig } from './options.js';
export type { TransnormerState } from './stream.js';
export { transnormerMixer, type TransnormerMixerParams } from './mixer.js';
export {
  transnormerBlock,
  type TransnormerBlockConfig,
  type TransnormerBlockParams,
  transnormerStack,
  type TransnormerStackConfig,
  type TransnormerStackParams,
} from './block.js';
