import { copyInto, HeedError, type Tensor, zeros } from '@heed/core';
import { forwardAndGradients, type GoldenMapping } from '@heed/core/testing';
import {
  decayFromSlopes,
  lightning2,
  lightning2Slopes,
  lightning2Start,
  lightning2Step,
  lightning2WithState,
} from '../../src/lightning2/index.js';

/** Cases carry slopes (>= 0); `decay` is made of them. */
export const lightning2Golden: GoldenMapping = {
  'linear/lightning2': {
    compare: { o: 'error', finalState: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        if (golden.params['causal'] === false)
          throw new HeedError('UNSUPPORTED', `golden: ${golden.file}: causal is false; lightning2 is causal, linear/lightning takes both`);
        const given = golden.params['decay'] === false ? undefined : golden.inputs['slopes']?.values;
        const slopes = given ?? new Float64Array(golden.inputs['q']?.shape[2] ?? 0);
        const initialState = inputs.find('initialState');
        const options = {
          decay: decayFromSlopes(slopes),
          scale: Number(golden.params['scale'] ?? 1),
          ...(initialState && { initialState }),
        };
        const [q, k, v] = [inputs.get('q'), inputs.get('k'), inputs.get('v')];
        if (!('finalState' in golden.outputs)) return { o: lightning2(q, k, v, options) };
        const { out, state } = lightning2WithState(q, k, v, options);
        return { o: out, finalState: state };
      }),
  },
  'linear/lightning2.slopes': {
    compare: { slopes: 'error' },
    run: ({ params }) => {
      const heads = Number(params['heads']);
      const scheme = params['scheme'] === 'paper' ? 'paper' : 'alibi';
      const slopes = lightning2Slopes({ heads, scheme, layer: Number(params['layerIndex']), layers: Number(params['numLayers']) });
      return { slopes: { shape: [heads], values: slopes } };
    },
  },
  'linear/lightning2.decode': {
    compare: { o: 'error', newState: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const [initialState, q, k, v] = ['state', 'q', 'k', 'v'].map((name) => inputs.get(name)) as [Tensor, Tensor, Tensor, Tensor];
        const [batch, heads, keyDim, valueDim] = initialState.shape as [number, number, number, number];
        const decay = decayFromSlopes(golden.inputs['slopes']?.values ?? []);
        const stream = lightning2Start(device, {
          batch,
          heads,
          keyDim,
          valueDim,
          decay,
          initialState,
          scale: Number(golden.params['scale'] ?? 1),
        });
        const token = (x: Tensor, t: number): Tensor =>
          x.view({ shape: [x.dim(0), 1, x.dim(2), x.dim(3)], offset: x.offset + t * (x.strides[1] ?? 0) });
        const out = zeros(device, v.shape);
        for (let t = 0; t < q.dim(1); t++) {
          copyInto(token(out, t), lightning2Step(token(q, t), token(k, t), token(v, t), stream));
        }
        const newState = stream.values.alias();
        stream.dispose();
        return { o: out, newState };
      }),
  },
};
