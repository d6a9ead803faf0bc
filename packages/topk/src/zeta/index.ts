export { zeta, zetaCodes, zetaWithIndices, type ZetaWithIndices } from './function.js';
export { zetaMixer, type ZetaMixerConfig, type ZetaMixerParams } from './mixer.js';
export type { ZetaOptions } from './options.js';
export { zetaStart, ZetaState, zetaStep, zetaStepWithIndices, type ZetaStreamOptions } from './stream.js';
