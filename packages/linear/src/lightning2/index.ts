export { lightning2, lightning2WithState } from './forward.js';
export type { Lightning2Options } from './options.js';
export { decayFromSlopes, lightning2Slopes, type SlopeOptions, type SlopeScheme } from './slopes.js';
