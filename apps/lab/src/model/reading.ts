import { type Device, logSoftmax, mul, type RandomStream, reshape, scope, takeAlongAxis, type Tensor, tensor, unsqueeze } from '@heed/core';
import type { LanguageModel, LanguageModelParams, ModelState } from './language-model.js';

const bitsPerNat = 1 / Math.LN2;

/**
 * Bits of each target under logits.
 * @param logits f32 [B, T, 256]
 * @param targets u32 [B, T]
 * @returns f32 [B, T]
 */
export function tokenBits(logits: Tensor, targets: Tensor): Tensor {
  return scope(() => {
    const picked = takeAlongAxis(logSoftmax(logits), unsqueeze(targets, 2), 2);
    return mul(reshape(picked, targets.shape), -bitsPerNat);
  });
}

/** A model that reads a text from a state on; bytes in, bits and bytes out. */
export class Reader {
  constructor(
    readonly model: LanguageModel,
    readonly params: LanguageModelParams,
    readonly device: Device,
    readonly state: ModelState,
  ) {}

  /**
   * Reads one piece of a text; the state moves past it.
   * @param following the bytes that come after each byte of the piece
   * @returns bits of each of them
   */
  async read(piece: Uint8Array, following: Uint8Array): Promise<Float32Array> {
    const n = piece.length;
    const bits = scope(() => {
      const logits = this.model.step(this.params, tensor(this.device, Uint32Array.from(piece), [1, n]), this.state);
      return tokenBits(logits, tensor(this.device, Uint32Array.from(following), [1, n]));
    });
    const values = await bits.read();
    bits.dispose();
    return Float32Array.from(values);
  }

  /** Reads one byte. @returns logits of the next one */
  async next(byte: number): Promise<Float32Array> {
    const logits = scope(() => this.model.step(this.params, tensor(this.device, Uint32Array.of(byte), [1, 1]), this.state));
    const values = await logits.read();
    logits.dispose();
    return Float32Array.from(values);
  }

  /**
   * Writes on from a byte, one byte a step.
   * @param options.temperature factor below 1 sharpens. Default 0.8
   */
  async *write(from: number, count: number, random: RandomStream, options: { temperature?: number } = {}): AsyncGenerator<number> {
    let byte = from;
    for (let i = 0; i < count; i++) {
      byte = sample(await this.next(byte), options.temperature ?? 0.8, random.uniform(1)[0] ?? 0);
      yield byte;
    }
  }
}

/** The byte at which the cumulated probabilities of softmax(logits / temperature) pass `u`. */
export function sample(logits: Float32Array, temperature: number, u: number): number {
  const most = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = Float64Array.from(logits, (x) => Math.exp((x - most) / temperature));
  let left = u * weights.reduce((a, b) => a + b, 0);
  for (let byte = 0; byte < weights.length; byte++) {
    left -= weights[byte] ?? 0;
    if (left < 0) return byte;
  }
  return weights.length - 1;
}
