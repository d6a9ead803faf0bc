import { type Device, type DType, type MixContext, type RandomStream, scope, type Tensor, type TokenMixer } from '@heed/core';
import { titansLayer } from './layer.js';
import { initTitans, layerParams, resolveTitans, type TitansMixerConfig, type TitansMixerParams } from './mixer-params.js';
import { memoryStep, TitansMixerState } from './mixer-state.js';

/**
 * The neural memory alone as a token mixer (LMM, Behrouz et al. 2024, section 4.4): `titansLayer` with learned starts. Its stream
 * keeps the memory's weights, momentum and one unfinished chunk, whatever the length.
 * @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT
 */
export function titansMixer(config: TitansMixerConfig): TokenMixer<TitansMixerParams, TitansMixerState> {
  const resolved = resolveTitans('titansMixer', config, 4);
  const { options, orders, dim } = resolved;
  return {
    name: 'titans',
    init: (device: Device, random: RandomStream): TitansMixerParams => initTitans(device, random, resolved),
    apply: (params: TitansMixerParams, x: Tensor, _context: MixContext): { out: Tensor } => ({
      out: titansLayer(layerParams(params), x, options),
    }),
    start: (device: Device, { batch }: { batch: number; capacity: number; dtype: DType }): TitansMixerState =>
      new TitansMixerState(device, batch, dim),
    step: (params: TitansMixerParams, x: Tensor, state: TitansMixerState): Tensor =>
      scope(() => {
        const out = memoryStep(layerParams(params), x, state, options, orders);
        state.advance(x.dim(1));
        return out;
      }),
  };
}
