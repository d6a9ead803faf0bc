import { add, matmul, reshape, split, type Tensor, transpose } from '@heed/core';
import { forwardAndGradients, type GoldenMapping } from '@heed/core/testing';
import { baseConv, based, type BasedOptions, basedWithState, slidingWindow, taylorFeatures } from '../../src/based/index.js';

/** The sheet's params as options; weights of a case are [out, in]. */
function optionsOf(params: Readonly<Record<string, unknown>>): BasedOptions {
  if (params['featureMap'] !== undefined && params['featureMap'] !== 'taylor2')
    throw new Error(`based: feature map "${String(params['featureMap'])}"; there is taylor2`);
  return {
    causal: params['causal'] !== false,
    normalize: params['normalize'] !== false,
    ...(typeof params['eps'] === 'number' && { eps: params['eps'] }),
    ...(typeof params['scale'] === 'number' && { scale: params['scale'] }),
  };
}

export const basedGolden: GoldenMapping = {
  'linear/based': {
    compare: { o: 'error', kvState: 'error', kState: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const [q, k, v] = [inputs.get('q'), inputs.get('k'), inputs.get('v')];
        const options = optionsOf(golden.params);
        if (!('kvState' in golden.outputs)) return { o: based(q, k, v, options) };
        const { out, kvState, kState } = basedWithState(q, k, v, options);
        return { o: out, kvState, kState };
      }),
  },
  'linear/based.feature-map': {
    compare: { phi: 'error' },
    run: (golden, device) => forwardAndGradients(golden, device, (inputs) => ({ phi: taylorFeatures(inputs.get('x')) })),
  },
  'linear/based.layer': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const x = inputs.get('x');
        const heads = Number(golden.params['numHeads']);
        const [q, k, v] = ['wq', 'wk', 'wv'].map((name) => {
          const made = matmul(x, inputs.get(name), { transposeB: true });
          return reshape(made, [x.dim(0), x.dim(1), heads, made.dim(2) / heads]);
        }) as [Tensor, Tensor, Tensor];
        const o = based(q, k, v, optionsOf(golden.params));
        return { y: matmul(reshape(o, [x.dim(0), x.dim(1), heads * o.dim(3)]), inputs.get('wo'), { transposeB: true }) };
      }),
  },
  'linear/based.sliding-window': {
    compare: { o: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const { left, right, scale } = golden.params;
        return {
          o: slidingWindow(inputs.get('q'), inputs.get('k'), inputs.get('v'), {
            left: Number(left),
            right: Number(right ?? 0),
            ...(typeof scale === 'number' && { scale }),
          }),
        };
      }),
  },
  'linear/based.base-conv': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const u = add(matmul(inputs.get('x'), inputs.get('wIn'), { transposeB: true }), inputs.get('bIn'));
        const [u1, u2] = split(u, 2, 2) as [Tensor, Tensor];
        // a case has [channels, taps]
        const taps = transpose(inputs.get('wConv'), 0, 1);
        const bias = inputs.find('bConv');
        const mixed = baseConv(u1, u2, reshape(taps, [taps.dim(0), 1, taps.dim(1)]), bias ? { bias } : {});
        return { y: add(matmul(mixed, inputs.get('wOut'), { transposeB: true }), inputs.get('bOut')) };
      }),
  },
};
