export { lightning, type LightningOptions, lightningWithState } from './forward.js';
export { lightningDecay } from './decay.js';
export type { SlopeOptions, SlopeScheme } from '../scan/slopes.js';
export { lightningStart, LightningState, lightningStep, type LightningStreamOptions } from './stream.js';
export { lightningMixer, type LightningMixerConfig, type LightningMixerParams } from './mixer.js';
export type { LayerActivation } from '../layer/activation.js';
