import { Carry, concat, type MixContext, slice, type Tensor, transpose } from '@heed/core';
import { forwardAndGradients, type GoldenCase, type GoldenInputs, type GoldenMapping } from '@heed/core/testing';
import { decayFromSlopes } from '../../src/lightning2/index.js';
import {
  type LayerActivation,
  lrpe,
  srmsNorm,
  transnormerllmBlock,
  type TransnormerllmMixerConfig,
  transnormerllmMixer,
  type TransnormerllmMixerParams,
  transnormerllmStart,
} from '../../src/transnormerllm/index.js';

const context: MixContext = { layer: 0, layers: 1, training: false, carry: new Carry() };

/** Cases carry slopes (>= 0) and weights [out, in]. */
function configOf({ params, inputs }: GoldenCase): TransnormerllmMixerConfig {
  const dim = inputs['x']?.shape[2] ?? 0;
  return {
    dim,
    heads: Number(params['heads']),
    lrpe: params['lrpe'] === true,
    decay: decayFromSlopes(inputs['slopes']?.values ?? []),
    normEps: Number(params['normEps'] ?? 1e-6),
    activation: (params['activation'] ?? 'silu') as LayerActivation,
  };
}

function mixerParams(inputs: GoldenInputs): TransnormerllmMixerParams {
  const theta = inputs.find('theta');
  return {
    qkvu: { weight: transpose(inputs.get('wQkvu')) },
    out: { weight: transpose(inputs.get('wo')) },
    ...(theta && { theta }),
  };
}

export const transnormerllmGolden: GoldenMapping = {
  'linear/transnormerllm.srms-norm': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => ({
        y: srmsNorm(inputs.get('x'), { eps: Number(golden.params['eps'] ?? 1e-6) }),
      })),
  },
  'linear/transnormerllm.lrpe': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => ({
        y: lrpe(inputs.get('x'), inputs.get('theta'), { offset: Number(golden.params['offset'] ?? 0) }),
      })),
  },
  'linear/transnormerllm.gla': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => ({
        y: transnormerllmMixer(configOf(golden)).apply(mixerParams(inputs), inputs.get('x'), context).out,
      })),
  },
  'linear/transnormerllm.block': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const weight = (name: string): Tensor => transpose(inputs.get(name));
        const mlp = { factors: { weight: concat([weight('w1'), weight('w2')], 1) }, down: { weight: weight('w3') } };
        const block = transnormerllmBlock({ ...configOf(golden), hidden: inputs.get('w1').dim(0) });
        return { y: block.apply({ mixer: mixerParams(inputs), mlp }, inputs.get('x'), context).out };
      }),
  },
  'linear/transnormerllm.gla-decode': {
    compare: { y: 'error', newState: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const config = configOf(golden);
        const [initialState, x] = [inputs.get('state'), inputs.get('x')];
        const start = {
          batch: x.dim(0),
          heads: config.heads,
          headDim: config.dim / config.heads,
          valueDim: initialState.dim(3),
          lrpe: config.lrpe === true,
          ...(config.decay && { decay: config.decay }),
          initialState,
          position: Number(golden.params['position'] ?? 0),
        };
        const stream = transnormerllmStart(device, start);
        const mixer = transnormerllmMixer(config);
        const params = mixerParams(inputs);
        const rows = Array.from({ length: x.dim(1) }, (_, t) => mixer.step(params, slice(x, 1, t, t + 1), stream, context));
        const newState = stream.values.alias();
        stream.dispose();
        return { y: concat(rows, 1), newState };
      }),
  },
};
