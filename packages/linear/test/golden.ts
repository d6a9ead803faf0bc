import type { GoldenMapping } from '@heed/core/testing';
import { lightning2Golden } from './lightning2/golden.js';

/** Op names of the golden cases to the functions of this package. */
const mapping: GoldenMapping = { ...lightning2Golden };
export default mapping;
