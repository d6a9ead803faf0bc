import { HeedError } from '@heed/core';

/** Which slopes: `alibi` (official code and released weights) or `paper` (also flash-linear-attention's). */
export type SlopeScheme = 'alibi' | 'paper';

export interface SlopeOptions {
  heads: number;
  /** Default `alibi`. */
  scheme?: SlopeScheme;
  /** Index of the layer, from 0; with `layers`. Default: no factor for the layer. */
  layer?: number;
  layers?: number;
}

/**
 * Slopes s_h >= 0 of the paper, [heads]; a state decays by exp(-s_h) a token. `decayFromSlopes` makes `decay` of them.
 *
 * `alibi`: 2^(-8(h+1)/H) for H a power of two; else those of the power of two P below H, then every second one of 2P
 * heads. With `layer`: times 1 - layer/(layers-1) + 1e-5 (one layer alone: 1 + 1e-5), as TransNormerLLM has it.
 * `paper`: (8h/H)(1 - layer/layers), h from 0: head 0 never forgets; without `layer` the factor is 1.
 * @throws HeedError INVALID_ARGUMENT for counts that are no positive integers, or a layer outside of the layers
 */
export function lightning2Slopes(options: SlopeOptions): number[] {
  const { heads, scheme = 'alibi', layer, layers } = options;
  if (!Number.isInteger(heads) || heads < 1)
    throw new HeedError('INVALID_ARGUMENT', `lightning2: slopes for ${heads} heads were asked for; heads is an integer of 1 or more`);
  if ((layer === undefined) !== (layers === undefined))
    throw new HeedError('INVALID_ARGUMENT', 'lightning2: slopes were given only one of layer and layers; give both, or none');
  if (layer !== undefined && layers !== undefined && !(Number.isInteger(layer) && Number.isInteger(layers) && layer >= 0 && layer < layers))
    throw new HeedError('INVALID_ARGUMENT', `lightning2: slopes of layer ${layer} of ${layers}; layer counts from 0 to layers - 1`);
  if (scheme === 'paper') {
    const factor = layer === undefined || layers === undefined ? 1 : 1 - layer / layers;
    return Array.from({ length: heads }, (_, h) => ((8 * h) / heads) * factor);
  }
  if (scheme !== 'alibi') throw new HeedError('INVALID_ARGUMENT', `lightning2: slope scheme "${String(scheme)}"; use "alibi" or "paper"`);
  const power = 2 ** Math.floor(Math.log2(heads));
  const slope = (h: number, of: number): number => 2 ** ((-8 * (h + 1)) / of);
  const factor = layer === undefined || layers === undefined ? 1 : layers === 1 ? 1 + 1e-5 : 1 - layer / (layers - 1) + 1e-5;
  return Array.from({ length: heads }, (_, h) => factor * (h < power ? slope(h, power) : slope(2 * (h - power), 2 * power)));
}

/**
 * The one place that turns slopes of papers and weights (>= 0) into `decay`, the log-decay a head (<= 0): decay = -slope.
 * @throws HeedError INVALID_ARGUMENT for a negative slope or NaN
 */
export function decayFromSlopes(slopes: ArrayLike<number>): number[] {
  return Array.from(slopes, (slope, h) => {
    if (!(slope >= 0))
      throw new HeedError(
        'INVALID_ARGUMENT',
        `lightning2: the slope of head ${h} is ${slope}; slopes are >= 0, a state decays by exp(-slope)`,
      );
    return slope === 0 ? 0 : -slope;
  });
}
