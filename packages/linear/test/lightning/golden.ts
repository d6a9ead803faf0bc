import { Carry, concat, type MixContext, type Tensor, transpose } from '@heed/core';
import { forwardAndGradients, type GoldenMapping } from '@heed/core/testing';
import { decayFromSlopes } from '../../src/lightning2/index.js';
import {
  type LayerActivation,
  lightning,
  lightningMixer,
  type LightningMixerParams,
  lightningWithState,
} from '../../src/lightning/index.js';

const context: MixContext = { layer: 0, layers: 1, training: false, carry: new Carry() };

/** Cases carry slopes (>= 0) and weights [out, in]; `decay` and weights [in, out] are made of them. */
export const lightningGolden: GoldenMapping = {
  'linear/lightning': {
    compare: { o: 'error', finalState: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const slopes = golden.inputs['slopes']?.values;
        const [q, k, v] = [inputs.get('q'), inputs.get('k'), inputs.get('v')];
        const initialState = inputs.find('initialState');
        const causal = golden.params['causal'] !== false;
        const options = {
          scale: Number(golden.params['scale'] ?? 1),
          ...(slopes && golden.params['decay'] !== false && { decay: decayFromSlopes(slopes) }),
          ...(initialState && { initialState }),
        };
        if (!causal || !('finalState' in golden.outputs)) return { o: lightning(q, k, v, { ...options, causal }) };
        const { out, state } = lightningWithState(q, k, v, options);
        return { o: out, finalState: state };
      }),
  },
  'linear/lightning.tnl-attention': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const weight = (name: string): Tensor => transpose(inputs.get(name));
        const x = inputs.get('x');
        const mixer = lightningMixer({
          dim: x.dim(2),
          heads: Number(golden.params['heads']),
          gateRank: inputs.get('wGateDown').dim(0),
          decay: decayFromSlopes(golden.inputs['slopes']?.values ?? []),
          normEps: Number(golden.params['normEps'] ?? 1e-5),
          activation: (golden.params['activation'] ?? 'silu') as LayerActivation,
        });
        const params: LightningMixerParams = {
          qkv: { weight: concat([weight('wq'), weight('wk'), weight('wv')], 1) },
          norm: { weight: inputs.get('normWeight'), bias: inputs.get('normBias') },
          gateDown: { weight: weight('wGateDown') },
          gateUp: { weight: weight('wGateUp') },
          out: { weight: weight('wo') },
        };
        return { y: mixer.apply(params, x, context).out };
      }),
  },
};
