import { Carry, concat, type MixContext, type Tensor, transpose } from '@heed/core';
import { forwardAndGradients, type GoldenCase, type GoldenInputs, type GoldenMapping } from '@heed/core/testing';
import {
  type LayerActivation,
  transnormerBlock,
  type TransnormerMixerConfig,
  transnormerMixer,
  type TransnormerMixerParams,
} from '../../src/transnormer/index.js';

const context: MixContext = { layer: 0, layers: 1, training: false, carry: new Carry() };

/** Cases carry weights [out, in]; householder is a constant. */
function configOf({ params, inputs }: GoldenCase, kind: 'norm' | 'diag'): TransnormerMixerConfig {
  const householder = inputs['householder']?.values;
  return {
    dim: inputs['x']?.shape[2] ?? 0,
    heads: Number(params['heads']),
    kind,
    causal: params['causal'] !== false,
    lrpe: params['lrpe'] === true,
    normEps: Number(params['normEps'] ?? 1e-8),
    ...(typeof params['activation'] === 'string' && { activation: params['activation'] as LayerActivation }),
    ...(householder && { householder: Array.from(householder, Number) }),
    ...(typeof params['chunkSize'] === 'number' && { block: params['chunkSize'] }),
    ...(typeof params['useSoftmax'] === 'boolean' && { softmax: params['useSoftmax'] }),
    ...(typeof params['scale'] === 'number' && { scale: params['scale'] }),
  };
}

function affine(inputs: GoldenInputs, weights: readonly string[], biases: readonly string[]): { weight: Tensor; bias: Tensor } {
  const [weight, bias] = [weights.map((name) => transpose(inputs.get(name))), biases.map((name) => inputs.get(name))];
  return { weight: concat(weight, 1), bias: concat(bias, 0) };
}

function mixerParams(inputs: GoldenInputs): TransnormerMixerParams {
  const theta = inputs.find('theta');
  return {
    qkv: affine(inputs, ['wq', 'wk', 'wv'], ['bq', 'bk', 'bv']),
    out: affine(inputs, ['wo'], ['bo']),
    ...(theta && { theta }),
  };
}

const attention = (kind: 'norm' | 'diag'): GoldenMapping[string] => ({
  compare: { y: 'error' },
  run: (golden, device) =>
    forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => ({
      y: transnormerMixer(configOf(golden, kind)).apply(mixerParams(inputs), inputs.get('x'), context).out,
    })),
});

export const transnormerGolden: GoldenMapping = {
  'linear/transnormer.norm-attention': attention('norm'),
  'linear/transnormer.diag-attention': attention('diag'),
  'linear/transnormer.block': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const kind = golden.params['kind'] === 'norm-attention' ? 'norm' : 'diag';
        const block = transnormerBlock({
          ...configOf(golden, kind),
          hidden: inputs.get('w1').dim(0),
          gluActivation: golden.params['gluActivation'] === 'silu' ? 'silu' : 'none',
        });
        const glu = { factors: affine(inputs, ['w1', 'w2'], ['b1', 'b2']), down: affine(inputs, ['w3'], ['b3']) };
        return { y: block.apply({ mixer: mixerParams(inputs), glu }, inputs.get('x'), context).out };
      }),
  },
};
