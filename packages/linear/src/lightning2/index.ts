export { lightning2, lightning2WithState } from './forward.js';
export type { Lightning2Options } from '../scan/options.js';
export { decayFromSlopes, lightning2Slopes, type SlopeOptions, type SlopeScheme } from '../scan/slopes.js';
export { Lightning2State, lightning2Start, lightning2Step, type Lightning2StreamOptions } from './stream.js';
export { lightning2Mixer, type Lightning2MixerConfig, type Lightning2MixerParams } from './mixer.js';
