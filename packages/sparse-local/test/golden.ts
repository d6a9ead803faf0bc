import type { GoldenMapping } from '@heed/core/testing';
import { engineGolden } from './engine/golden.js';
import { fnaGolden } from './fna/golden.js';

/** Op names of the golden cases to the functions of this package. */
const mapping: GoldenMapping = { ...engineGolden, ...fnaGolden };
export default mapping;
