export { type NprfFeatureOptions, nprfRandomFeatures } from './features.js';
export { nprf, nprf2d } from './function.js';
export type { NprfOptions } from './options.js';
export { type NprfPath, type NprfProblem, planNprf } from './plan.js';
