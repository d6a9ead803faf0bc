export { lla, llaSolve, type LlaSolution, llaWithSolution } from './forward.js';
export { llaMixer, type LlaMixerConfig, type LlaMixerParams } from './mixer.js';
export type { LlaOptions, LlaSolveOptions, LlaSolver } from './options.js';
export { llaStart, LlaState, llaStep, type LlaStreamOptions } from './stream.js';
