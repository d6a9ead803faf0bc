export { fna, fnaWithLse, type FnaPlan, planFna } from './fna.js';
export { neighborhoodMixer, type NeighborhoodMixerConfig, type NeighborhoodMixerParams } from './mixer.js';
export type { FnaOptions } from './options.js';
export { NeighborhoodState, type NeighborhoodStateOptions } from './stream.js';
