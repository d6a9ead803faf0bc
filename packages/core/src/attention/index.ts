// The attention engine: dense, masked and block-sparse attention, masks, score functions, merging by logsumexp.
export { attention, attentionWithLse } from './attention.js';
export { attentionColumnSums } from './column-sums.js';
export { type AttentionResult, mergeAttention } from './merge.js';
export type { AttentionOptions } from './options.js';
export { type AttentionPlan, type AttentionShape, planAttention } from './plan.js';
export type { BlockSelection } from './selection.js';
export { alibiSlopes, type CapturedValues, type ScoreMod, scoreMod, type ScorePosition } from './score.js';
export * from './mask/index.js';
