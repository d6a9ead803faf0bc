export { lla, llaSolve, type LlaSolution, llaWithSolution } from './forward.js';
export type { LlaOptions, LlaSolveOptions, LlaSolver } from './options.js';
