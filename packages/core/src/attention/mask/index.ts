// Masks: which keys a query sees, as a predicate for kernels and as runs of tiles for the host. No device is needed here.
export { blockCausal, causal, full, globalSlidingWindow, leadingQueries, lengths, prefixLm, sinks, slidingWindow } from './basic.js';
export { document } from './documents.js';
export type { DocumentIds } from './documents.js';
export { blockCausalDocument, causalBlockwise, causalDocument, prefixLmDocument, sharedQuestion } from './document-masks.js';
export { blockGrid, uniformBlockSparse, variableBlockSparse } from './block-sparse.js';
export type { BlockGrid, RandomBlocks } from './block-sparse.js';
export { byHead } from './by-head.js';
export { b, h, kv, maskFrom, onHost, q, withOffset } from './mask.js';
export type { MaskDefinition } from './mask.js';
export { axisPattern, bandPattern } from './basic.js';
export { predicatePattern } from './predicate-pattern.js';
export { sizeOfSpans, span } from './spans.js';
export { documentIds, documentLengths } from './document-lengths.js';
export type { DocumentLengthsName } from './document-lengths.js';
export { readRow, tileRuns, worstCaseRunBytes } from './tile-runs.js';
export type { TileRuns, TileRunsShape } from './tile-runs.js';
export type { AttentionLengths, CaptureSource, Coverage, Mask, MaskPattern, Region, Run, Spans, TileSizes } from './types.js';
