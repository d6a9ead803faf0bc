import {
  blockCausalDocument,
  causal,
  causalBlockwise,
  causalDocument,
  document,
  documentIds,
  documentLengths,
  type DocumentLengthsName,
  full,
  globalSlidingWindow,
  type Mask,
  prefixLm,
  prefixLmDocument,
  sharedQuestion,
  slidingWindow,
  uniformBlockSparse,
  variableBlockSparse,
} from '@heed/core/attention';
import { RandomStream } from '@heed/core';

// The 14 masks of LongCA-bench (arXiv 2510.17896), numbered as there; all random choices come from seeds.

/** A mask by name, with how it was made. */
export interface NamedMask {
  readonly name: string;
  readonly number: number;
  /** Known only at run time in what it stands for: the block-sparse ones. */
  readonly dynamic: boolean;
  /** What defines it beside the tokens, for peers: `documents` are lengths, separated by spaces. */
  readonly parameters: Readonly<Record<string, number | string>>;
  readonly mask: Mask;
}

const SEED = 42;

/** Corpus of document lengths for a sequence, as the benchmark chooses it. */
export function corpusOf(tokens: number): DocumentLengthsName {
  return tokens <= 12 * 1024 ? 'pile' : tokens < 64 * 1024 ? 'prolong-64k' : 'prolong-512k';
}

/** Documents of 1 to 8 blocks that fill a sequence: mask 12. */
function blockDocuments(tokens: number, block: number): number[] {
  const draws = new RandomStream(SEED, 'block documents').integers(Math.ceil(tokens / block), 8);
  const lengths: number[] = [];
  for (let left = tokens, i = 0; left > 0; i++) {
    const length = Math.min(left, ((draws[i] as number) + 1) * block);
    lengths.push(length);
    left -= length;
  }
  return lengths;
}

/**
 * The 14 masks for a number of tokens.
 * @param heads of the random block masks, which differ between heads
 */
export function namedMasks(tokens: number, heads: number): NamedMask[] {
  const window = Math.min(1024, Math.max(1, tokens >> 2));
  const block = Math.min(1024, Math.max(1, tokens >> 4));
  const corpus = corpusOf(tokens);
  const lengths = documentLengths(corpus, tokens, SEED);
  const ids = documentIds(lengths);
  const draw = (name: string, most: number): number => 1 + (new RandomStream(SEED, name).integers(1, Math.max(1, most))[0] as number);
  const distance = draw('global window', Math.floor(tokens / 3) - 1);
  const prefix = draw('prefix', tokens);
  const ownPrefix = draw('document prefix', lengths[0] as number);
  const random = { queries: tokens, keys: tokens, seed: SEED, heads };
  const blockSize = Math.min(64, Math.max(1, tokens >> 4));
  const meanBlock = Math.min(256, Math.max(2, tokens >> 3));
  const blocks = blockDocuments(tokens, block);
  const documents = { documents: lengths.join(' '), corpus };
  const list: [string, Mask, Record<string, number | string>][] = [
    ['full', full(), {}],
    ['causal', causal(), {}],
    ['full-sliding-window', slidingWindow({ window: 2 * window + 1 }), { window }],
    ['causal-sliding-window', slidingWindow({ window: window + 1, causal: true }), { window }],
    ['full-document', document(ids), documents],
    ['causal-document', causalDocument(ids), documents],
    ['shared-question', sharedQuestion(ids), documents],
    ['global-sliding-window', globalSlidingWindow(distance), { window: distance }],
    ['causal-blockwise', causalBlockwise(ids), documents],
    ['prefix-lm-causal', prefixLm(prefix), { prefix }],
    ['prefix-lm-document', prefixLmDocument(ids, ownPrefix), { ...documents, prefix: ownPrefix }],
    ['block-causal-document', blockCausalDocument(documentIds(blocks), block), { documents: blocks.join(' '), block }],
    ['uniform-block-sparse', uniformBlockSparse({ ...random, blockSize, ratio: 0.2 }), { blockSize, ratio: 0.2 }],
    ['variable-block-sparse', variableBlockSparse({ ...random, meanBlock, ratio: 0.2 }), { meanBlock, ratio: 0.2 }],
  ];
  return list.map(([name, mask, parameters], i) => ({ name, number: i + 1, dynamic: i >= 12, parameters, mask }));
}
