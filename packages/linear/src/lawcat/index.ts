export { lawcatFeatures } from './features.js';
export { lawcat, lawcatWithState } from './forward.js';
export { type LawcatBranch, type LawcatBranchOptions, lawcatLayer, type LawcatLayerParams, lawcatMix } from './layer.js';
export type { LawcatForm, LawcatOptions } from './options.js';
export { lawcatWindow, type LawcatWindowOptions } from './window.js';
export { initLawcat, lawcatMixer, type LawcatMixerConfig, type LawcatMixerParams } from './mixer.js';
export { LawcatState, lawcatStart, lawcatStep, type LawcatStreamOptions } from './stream.js';
