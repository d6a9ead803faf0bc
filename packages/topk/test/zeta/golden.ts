import { argsort } from '@heed/core';
import type { GoldenCase, GoldenMapping } from '@heed/core/testing';
import { forwardAndGradients } from '@heed/core/testing';
import { zetaCodes, zetaWithIndices, type ZetaOptions } from '../../src/zeta/index.js';

/** The options that a case states. */
export function optionsOf({ params }: GoldenCase): ZetaOptions {
  const { bits, rangeLow, rangeHigh, k, ...same } = params as Record<string, number>;
  return { bits, range: [rangeLow, rangeHigh], ...(k === undefined ? {} : { topK: k }), ...same } as unknown as ZetaOptions;
}

export const zetaGolden: GoldenMapping = {
  'topk/zeta.attention': {
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const options = optionsOf(golden);
        const { out, indices, codesQ, codesK } = zetaWithIndices(
          inputs.get('q'),
          inputs.get('k'),
          inputs.get('v'),
          inputs.get('theta'),
          options,
        );
        return { out, indices, code_q: codesQ, code_k: codesK };
      }),
    compare: { out: 'error', indices: 'exact', code_q: 'u32', code_k: 'u32' },
  },
  'topk/zeta.morton': {
    run: (golden, device) =>
      forwardAndGradients(golden, device, (inputs) => {
        const { cells, codes } = zetaCodes(inputs.get('x'), optionsOf(golden));
        return { cells, codes, order: argsort(codes) };
      }),
    compare: { cells: 'exact', codes: 'u32', order: 'exact' },
  },
};
