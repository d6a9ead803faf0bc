import { decayFromSlopes, lightning2Slopes, type SlopeOptions } from '../scan/slopes.js';

/**
 * Log-decay a head, [heads], <= 0, in both conventions of the paper; `decay` of `lightning`.
 *
 * `alibi` (default; official code and released weights): -2^(-8(h+1)/H) (with the ALiBi list where H is no power of two), times
 * 1 - layer/(layers-1) + 1e-5 where a layer is given. `paper`: -(8h/H)(1 - layer/layers), h from 0: head 0 never forgets.
 * @throws HeedError INVALID_ARGUMENT for counts that are no positive integers, or a layer outside of the layers
 */
export function lightningDecay(options: SlopeOptions): number[] {
  return decayFromSlopes(lightning2Slopes(options));
}
