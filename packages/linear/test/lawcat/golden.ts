import type { Tensor } from '@heed/core';
import { forwardAndGradients, type GoldenCase, type GoldenMapping } from '@heed/core/testing';
import { lawcatLayer, lawcatWindow, lawcatWithState, type LawcatForm } from '../../src/lawcat/index.js';

function formOf({ params }: GoldenCase): LawcatForm {
  return {
    gateNormalizer: Number(params['gateNormalizer'] ?? 16),
    eps: Number(params['eps'] ?? 1e-10),
    ...(params['scale'] !== undefined && params['scale'] !== null && { scale: Number(params['scale']) }),
  };
}

export const lawcatGolden: GoldenMapping = {
  'linear/lawcat': {
    compare: { o: 'error', state: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const initialState = inputs.find('initialState');
        const { out, state } = lawcatWithState(inputs.get('q'), inputs.get('k'), inputs.get('v'), {
          ...formOf(golden),
          gate: inputs.get('gate'),
          ...(initialState && { initialState }),
        });
        return { o: out, state };
      }),
  },
  'linear/lawcat.layer': {
    compare: { y: 'error', o: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const { params } = golden;
        const tied = Boolean(params['tieFeatureMaps'] ?? true);
        const { y, o } = lawcatLayer(
          {
            wq: inputs.get('wq'),
            wk: inputs.get('wk'),
            wv: inputs.get('wv'),
            wo: inputs.get('wo'),
            wGateDown: inputs.find('wGateDown'),
            wGateUp: inputs.get('wGateUp'),
            bGateUp: inputs.find('bGateUp'),
            convQ: inputs.get('convQ'),
            convK: inputs.find('convK'),
            featureQ: inputs.get('featureQ'),
            featureK: tied ? undefined : inputs.get('featureK'),
            windowFactor: inputs.find('windowFactor'),
          },
          inputs.get('x'),
          {
            ...formOf(golden),
            heads: Number(params['numHeads']),
            kvHeads: Number(params['numKvHeads'] ?? params['numHeads']),
            featureEpsilon: Number(params['featureEps'] ?? 1e-12),
            window: Number(params['windowSize'] ?? 0),
            affine: Boolean(params['affine'] ?? false),
          },
        );
        return { y, o };
      }),
  },
  'linear/lawcat.window': {
    compare: { o: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => ({
        o: lawcatWindow(inputs.get('q'), inputs.get('k'), inputs.get('v'), {
          ...formOf(golden),
          features: { q: inputs.get('featQ'), k: inputs.get('featK') },
          gate: inputs.get('gate'),
          windowFactor: inputs.get('windowFactor'),
          window: Number(golden.params['windowSize']),
          affine: Boolean(golden.params['affine'] ?? false),
        }),
      })),
  },
};
