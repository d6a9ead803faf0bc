import type { Tensor } from '@heed/core';
import { forwardAndGradients, type GoldenCase, type GoldenInputs, type GoldenMapping } from '@heed/core/testing';
import {
  type TitansActivation,
  type TitansForm,
  titansLayer,
  type TitansMemory,
  titansSegmentAttention,
  titansWithState,
} from '../../src/titans/index.js';

const flag = (golden: GoldenCase, name: string, fallback: boolean): boolean => Boolean(golden.params[name] ?? fallback);
const finals = ['gamma', ...Array.from({ length: 8 }, (_, i) => `w${i + 1}`)].flatMap((name) => [`final_${name}`, `finalMomentum_${name}`]);

/** The settings that both ops name alike. */
function formOf({ params }: GoldenCase): TitansForm {
  const period = params['gradientPeriod'];
  return {
    chunkSize: Number(params['chunkSize']),
    gradientPeriod: period === null || period === undefined ? null : Number(period),
    activation: String(params['activation'] ?? 'gelu') as TitansActivation,
    lossReduction: String(params['loss'] ?? 'mean').startsWith('sum') ? 'sum' : 'mean',
    lnEpsilon: Number(params['lnEps'] ?? 1e-5),
  };
}

function memoryFrom(golden: GoldenCase, inputs: GoldenInputs): TitansMemory {
  const weights: Tensor[] = [];
  for (let i = 1; `w${i}` in golden.inputs; i++) weights.push(inputs.get(`w${i}`));
  const gamma = flag(golden, 'residualNorm', true) ? inputs.find('gamma') : undefined;
  return { weights, ...(gamma && { gamma }) };
}

export const titansGolden: GoldenMapping = {
  'linear/titans': {
    compare: { o: 'error', ...Object.fromEntries(finals.map((name) => [name, 'error' as const])) },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs): Record<string, Tensor> => {
        const memory = memoryFrom(golden, inputs);
        const momentum = flag(golden, 'useMomentum', true) ? inputs.find('momentum') : undefined;
        const { out, state } = titansWithState(inputs.get('q'), inputs.get('k'), inputs.get('v'), {
          ...formOf(golden),
          memory,
          learningRate: inputs.get('lr'),
          forget: inputs.get('decay'),
          ...(momentum && { momentum }),
        });
        const named = (list: readonly Tensor[], prefix: string): [string, Tensor][] =>
          list.map((t, i) => [`${prefix}_${i < memory.weights.length ? `w${i + 1}` : 'gamma'}`, t]);
        const all = (m: TitansMemory): Tensor[] => [...m.weights, ...(m.gamma ? [m.gamma] : [])];
        return {
          o: out,
          ...Object.fromEntries([
            ...named(all(state.memory), 'final'),
            ...state.momentum.slice(0, 1).flatMap((list) => named(list, 'finalMomentum')),
          ]),
        };
      }),
  },
  'linear/titans.layer': {
    compare: { y: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const qkNorm = flag(golden, 'qkRmsNorm', true);
        const params = {
          storeNorm: inputs.get('storeNorm'),
          retrieveNorm: inputs.get('retrieveNorm'),
          wq: inputs.get('wq'),
          wk: inputs.get('wk'),
          wv: inputs.get('wv'),
          wRate: inputs.get('wLr'),
          bRate: inputs.get('bLr'),
          wMomentum: inputs.find('wMomentum'),
          bMomentum: inputs.find('bMomentum'),
          wForget: inputs.get('wDecay'),
          bForget: inputs.get('bDecay'),
          qGain: qkNorm ? inputs.find('qNormGamma') : undefined,
          kGain: qkNorm ? inputs.find('kNormGamma') : undefined,
          wGate: inputs.find('wRetrieveGate'),
          wOut: inputs.find('wCombine'),
          memory: memoryFrom(golden, inputs),
        };
        const { numHeads, maxLr, rmsEps } = golden.params;
        const options = { ...formOf(golden), heads: Number(numHeads), maxRate: Number(maxLr ?? 1), rmsEpsilon: Number(rmsEps ?? 2 ** -23) };
        return { y: titansLayer(params, inputs.get('x'), options) };
      }),
  },
  'linear/titans.segment-attention': {
    compare: { o: 'error' },
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const k = inputs.find('persistentK');
        const v = inputs.find('persistentV');
        const options = { segment: Number(golden.params['segmentLength']), sliding: flag(golden, 'sliding', false) };
        return {
          o: titansSegmentAttention(inputs.get('q'), inputs.get('k'), inputs.get('v'), {
            ...options,
            ...(k && v && { persistent: { k, v } }),
          }),
        };
      }),
  },
};
