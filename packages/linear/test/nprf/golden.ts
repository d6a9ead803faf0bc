import type { GoldenCase, GoldenMapping } from '@heed/core/testing';
import { forwardAndGradients } from '@heed/core/testing';
import { nprf, nprf2d, type NprfOptions } from '../../src/nprf/index.js';

/** null stands for the default. */
const optionsOf = ({ params }: GoldenCase): NprfOptions =>
  Object.fromEntries(Object.entries(params).filter(([, value]) => value !== null)) as NprfOptions;

export const nprfGolden: GoldenMapping = {
  'linear/nprf': {
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => ({
        o: nprf(inputs.get('q'), inputs.get('k'), inputs.get('v'), inputs.get('features'), inputs.get('rpeBias'), optionsOf(golden)),
      })),
    compare: { o: 'error' },
  },
  'linear/nprf.2d': {
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => ({
        o: nprf2d(inputs.get('q'), inputs.get('k'), inputs.get('v'), inputs.get('features'), inputs.get('rpeBias'), optionsOf(golden)),
      })),
    compare: { o: 'error' },
  },
};
