import { type Device, mean, scope, type Tensor, tensor } from '@heed/core';
import type { LanguageModel, LanguageModelParams } from '../model/language-model.js';
import { tokenBits } from '../model/reading.js';

/** What an evaluation found. */
export interface Evaluation {
  /** Mean bits of a byte, each sequence read from its own start. */
  bitsPerByte: number;
  /** Bytes that were predicted. */
  tokens: number;
}

/**
 * Mean bits a byte on a text that is cut into sequences of `context` tokens, in the parallel form.
 * @param options.tokens at most so many, rounded down to whole sequences (one at least, when the text holds one)
 * @param options.batch sequences at once. Default 8
 * @throws RangeError when the text is shorter than a sequence and its last target
 */
export async function evaluate(
  model: LanguageModel,
  params: LanguageModelParams,
  device: Device,
  text: Uint8Array,
  options: { context: number; tokens?: number; batch?: number },
): Promise<Evaluation> {
  const { context, batch = 8 } = options;
  const most = Math.floor((Math.min(text.length, options.tokens ?? text.length) - 1) / context);
  const sequences = Math.min(Math.max(1, most), Math.floor((text.length - 1) / context));
  if (sequences < 1)
    throw new RangeError(
      `evaluate: the text has ${text.length} bytes; a sequence of ${context} tokens and its last target need ${context + 1}`,
    );
  let sum = 0;
  for (let first = 0; first < sequences; first += batch) {
    const rows = Math.min(batch, sequences - first);
    const at = (shift: number): Uint32Array =>
      Uint32Array.from({ length: rows * context }, (_, i) => text[first * context + i + shift] ?? 0);
    const bits = scope((): Tensor => {
      const inputs = tensor(device, at(0), [rows, context]);
      return mean(tokenBits(model.apply(params, inputs), tensor(device, at(1), [rows, context])));
    });
    sum += ((await bits.read())[0] ?? 0) * rows;
    bits.dispose();
  }
  return { bitsPerByte: sum / sequences, tokens: sequences * context };
}
