import { HeedError } from '../../errors.js';
import { below, randomWords } from './random-words.js';

// Lengths of packed documents as LongCA-bench draws them (arXiv 2510.17896 and its code): pick an interval of a corpus histogram by
// weight, then an integer inside it uniformly, until the sequence is full; the last document is cut.

/** Corpora: the bench takes Pile up to 12K tokens, ProLong-64K below 64K, ProLong-512K beyond; `synthetic` is its fallback. */
export type DocumentLengthsName = 'pile' | 'prolong-64k' | 'prolong-512k' | 'synthetic';

/** Upper end (inclusive) of each interval and its weight; an interval begins one above the end before it. */
type Histogram = readonly (readonly [end: number, weight: number])[];

const HISTOGRAMS: Readonly<Record<DocumentLengthsName, Histogram>> = {
  pile: [
    [64, 0.094],
    [128, 0.135],
    [192, 0.142],
    [256, 0.127],
    [384, 0.148],
    [512, 0.074],
    [640, 0.047],
    [832, 0.047],
    [1056, 0.035],
    [1440, 0.035],
    [2016, 0.032],
    [3264, 0.032],
    [4704, 0.02],
    [7584, 0.02],
    [14208, 0.01],
    [9_300_000, 0.002],
  ],
  'prolong-64k': [
    [64, 0.041],
    [128, 0.112],
    [192, 0.108],
    [256, 0.093],
    [384, 0.147],
    [512, 0.112],
    [640, 0.085],
    [832, 0.085],
    [1056, 0.062],
    [1504, 0.061],
    [2016, 0.032],
    [3392, 0.031],
    [4768, 0.01],
    [8928, 0.01],
    [50_272, 0.01],
    [61_920, 0.0015],
  ],
  'prolong-512k': [
    [64, 0.046],
    [128, 0.121],
    [192, 0.117],
    [256, 0.099],
    [384, 0.152],
    [512, 0.112],
    [640, 0.082],
    [832, 0.08],
    [1088, 0.063],
    [1472, 0.047],
    [2080, 0.033],
    [3104, 0.021],
    [4544, 0.01],
    [10_912, 0.01],
    [475_872, 0.007],
  ],
  synthetic: [
    [256, 0.077],
    [512, 0.165],
    [768, 0.125],
    [1024, 0.097],
    [1536, 0.132],
    [2048, 0.093],
    [2560, 0.072],
    [3072, 0.052],
    [3584, 0.038],
    [4096, 0.026],
    [5120, 0.038],
    [6144, 0.025],
    [7168, 0.015],
    [8192, 0.01],
    [10_240, 0.012],
    [15_360, 0.013],
    [20_480, 0.005],
    [65_536, 0.006],
  ],
};

/**
 * Random document lengths that add up to `total` tokens.
 * @param seed Philox seed: the same lengths on every machine
 * @throws HeedError INVALID_ARGUMENT for an unknown name, or a total below 1
 */
export function documentLengths(name: DocumentLengthsName, total: number, seed: number): number[] {
  const histogram = HISTOGRAMS[name];
  if (histogram === undefined) {
    throw new HeedError(
      'INVALID_ARGUMENT',
      `documentLengths: there is no histogram "${String(name)}"; use one of ${Object.keys(HISTOGRAMS).join(', ')}`,
    );
  }
  if (!Number.isInteger(total) || total < 1)
    throw new HeedError('INVALID_ARGUMENT', `documentLengths: total is ${total}; use at least 1 token`);
  const next = randomWords(seed, 0xd0c5);
  // The published weights are rounded and do not add up to 1 exactly.
  const sum = histogram.reduce((a, [, weight]) => a + weight, 0);
  const lengths: number[] = [];
  for (let left = total; left > 0;) {
    let mark = next() * 2 ** -32 * sum;
    let chosen = histogram.findIndex(([, weight]) => (mark -= weight) < 0);
    if (chosen < 0) chosen = histogram.length - 1;
    const start = chosen === 0 ? 0 : histogram[chosen - 1]![0];
    const length = Math.min(left, start + 1 + below(next, histogram[chosen]![0] - start));
    lengths.push(length);
    left -= length;
  }
  return lengths;
}

/** Ids 0, 1, 2, ... of documents of the given lengths, one a token. */
export function documentIds(lengths: readonly number[]): Int32Array {
  const ids = new Int32Array(lengths.reduce((a, length) => a + length, 0));
  let at = 0;
  lengths.forEach((length, id) => {
    ids.fill(id, at, at + length);
    at += length;
  });
  return ids;
}
