import { RandomStream } from '@heed/core';
import type { Corpus, CorpusPart } from './text/corpus.js';

/** What determines a batch beside its step. */
export interface BatchOptions {
  /** Sequences a batch. */
  readonly batch: number;
  /** Tokens a sequence. */
  readonly context: number;
  readonly seed: number;
  /** Share of the sequences drawn from each part; parts not named share the rest by their length. Default: by length. */
  readonly shares?: Readonly<Record<string, number>>;
}

/** Inputs and the bytes that follow them, both [batch, context] in row-major order, one token an element. */
export interface Batch {
  readonly inputs: Uint32Array<ArrayBuffer>;
  readonly targets: Uint32Array<ArrayBuffer>;
}

interface WeighedPart extends CorpusPart {
  /** Upper end of the part's interval in [0, 1]. */
  readonly upTo: number;
}

/**
 * Where the sequences of a step begin, in bytes from the start of the corpus. A pure function of its arguments: a resumed run and
 * a run on another machine see the same sequences, and step n needs no steps before it. Each sequence lies within one part.
 * @throws RangeError when a part is shorter than a sequence and its target, a share names no part, or the shares make no whole
 */
export function batchStarts(corpus: Corpus, options: BatchOptions, step: number): Uint32Array<ArrayBuffer> {
  const parts = weigh(corpus.parts, options);
  const random = new RandomStream(options.seed, 'batches').at({ step });
  const picks = random.uniform(options.batch);
  const starts = new Uint32Array(options.batch);
  for (let row = 0; row < options.batch; row++) {
    const pick = picks[row] ?? 0;
    const part = parts.find(({ upTo }) => pick < upTo);
    if (part === undefined) throw new RangeError(`batches: no part for ${pick}; the last part must reach 1`);
    const [offset] = random.integers(1, part.end - part.start - options.context);
    starts[row] = part.start + (offset ?? 0);
  }
  return starts;
}

/** The batch of a step: see {@link batchStarts}. */
export function batchAt(corpus: Corpus, options: BatchOptions, step: number): Batch {
  const { batch, context } = options;
  const inputs = new Uint32Array(batch * context);
  const targets = new Uint32Array(batch * context);
  batchStarts(corpus, options, step).forEach((start, row) => {
    inputs.set(corpus.bytes.subarray(start, start + context), row * context);
    targets.set(corpus.bytes.subarray(start + 1, start + 1 + context), row * context);
  });
  return { inputs, targets };
}

function weigh(parts: readonly CorpusPart[], { context, shares = {} }: BatchOptions): WeighedPart[] {
  for (const name of Object.keys(shares)) {
    if (!parts.some((part) => part.name === name)) {
      throw new RangeError(`batches: shares name "${name}", the corpus has ${parts.map((part) => part.name).join(', ')}; use one of these`);
    }
  }
  const named = Object.values(shares).reduce((sum, share) => sum + share, 0);
  const unnamedBytes = parts.filter(({ name }) => shares[name] === undefined).reduce((sum, part) => sum + part.end - part.start, 0);
  if (named > 1 || (unnamedBytes === 0 && Math.abs(named - 1) > 1e-9)) {
    throw new RangeError(`batches: shares sum to ${named}; the shares of all parts must sum to 1`);
  }
  let upTo = 0;
  const weighed: WeighedPart[] = [];
  for (const part of parts) {
    const bytes = part.end - part.start;
    const share = shares[part.name] ?? ((1 - named) * bytes) / unnamedBytes;
    if (share === 0) continue;
    if (bytes <= context) {
      throw new RangeError(
        `batches: part "${part.name}" has ${bytes} bytes; a sequence of ${context} tokens and its last target need ${context + 1}`,
      );
    }
    upTo += share;
    weighed.push({ ...part, upTo });
  }
  // Rounding must not leave a gap below 1.
  return weighed.map((part, index) => (index === weighed.length - 1 ? { ...part, upTo: 1 } : part));
}
