export { argsort, sort, type SortOptions, sortPairs, topK, type TopKOptions } from './sort/index.js';
export { indirectGrid } from './indirect.js';
export { permuteTokens, tileOrder, type TokenOrder } from './permute-tokens.js';
export { recurrence } from './recurrence.js';
export { searchSorted } from './searchsorted.js';
export { irfft, rfft } from './fft/index.js';
export { cholesky, solveTriangular } from './linalg/index.js';
