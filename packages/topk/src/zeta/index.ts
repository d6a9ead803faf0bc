export { zeta, zetaCodes, zetaWithIndices, type ZetaWithIndices } from './function.js';
export type { ZetaOptions } from './options.js';
