import type { GoldenMapping } from '@heed/core/testing';
import { zetaGolden } from './zeta/golden.js';

/** Op names of the golden cases to the functions of this package. */
const mapping: GoldenMapping = { ...zetaGolden };
export default mapping;
