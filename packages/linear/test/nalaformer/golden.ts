import { permute, reshape, type Tensor, transpose } from '@heed/core';
import { forwardAndGradients, type GoldenInputs, type GoldenMapping, type GoldenOp } from '@heed/core/testing';
import { nalaformer, nalaformerLayerForward, type NalaformerOptions } from '../../src/nalaformer/index.js';

/** A case's params as options. */
function optionsOf(params: Readonly<Record<string, unknown>>, inputs?: GoldenInputs): NalaformerOptions {
  const number = (name: string): number | undefined => (typeof params[name] === 'number' ? params[name] : undefined);
  const [lambda, tau, keyPower, eps, angleScale] = ['lambda', 'tau', 'keyPower', 'eps', 'angleScale'].map(number);
  const [sin, cos] = [inputs?.find('sin'), inputs?.find('cos')];
  return {
    ...(lambda !== undefined && { lambda }),
    ...(tau !== undefined && { tau }),
    ...(keyPower !== undefined && { keyPower }),
    ...(eps !== undefined && { eps }),
    ...(angleScale !== undefined && { angleScale }),
    ...(typeof params['map'] === 'string' && { map: params['map'] === 'cos' ? 'cos' : 'relu' }),
    ...(params['causal'] === true && { causal: true }),
    ...(sin && cos && { rope: { sin, cos } }),
  };
}

const core: GoldenOp = {
  compare: { o: 'error' },
  run: (golden, device) =>
    forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
      const [q, k, v] = [inputs.get('q'), inputs.get('k'), inputs.get('v')];
      return { o: nalaformer(q, k, v, optionsOf(golden.params, inputs)) };
    }),
};

export const nalaformerGolden: GoldenMapping = {
  'linear/nalaformer': core,
  'linear/nalaformer.causal': core,
  'linear/nalaformer.cosine': core,
  'linear/nalaformer.layer': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const get = (name: string): Tensor => inputs.get(name);
        // weights of a case are [out, in], taps [channel, row, column]
        const taps = permute(get('wLepe'), [1, 2, 0]);
        const params = {
          qkvg: { weight: transpose(get('wQkvg')), bias: get('bQkvg') },
          lepe: reshape(taps, [taps.dim(0), taps.dim(1), 1, taps.dim(2)]),
          lepeBias: get('bLepe'),
          norm: get('lnWeight'),
          normBias: get('lnBias'),
          out: { weight: transpose(get('wOut')), bias: get('bOut') },
        };
        const options = optionsOf(golden.params, inputs);
        const { numHeads, lnEps } = golden.params;
        return {
          y: nalaformerLayerForward(params, get('x'), {
            ...options,
            heads: Number(numHeads),
            ...(typeof lnEps === 'number' && { lnEps }),
          }),
        };
      }),
  },
};
