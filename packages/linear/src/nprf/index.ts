export { type NprfFeatureOptions, nprfRandomFeatures } from './features.js';
export { nprf, nprf2d } from './function.js';
export { nprfMixer, type NprfMixerConfig, type NprfMixerParams } from './mixer.js';
export type { NprfOptions } from './options.js';
export { type NprfPath, type NprfProblem, planNprf } from './plan.js';
export { nprfStart, NprfState, nprfStep, type NprfStreamOptions } from './stream.js';
