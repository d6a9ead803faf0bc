export { cleanText } from './clean.js';
export { buildCorpus, type Corpus, type CorpusIndex, type CorpusPart } from './corpus.js';
export { type BookSplit, type Chapter, chapters, HELD_OUT_BYTES, heldOut, splitBook } from './moby-dick.js';
