import { forwardAndGradients } from '@heed/core/testing';
import type { GoldenMapping, GoldenOp } from '@heed/core/testing';
import { fnaWithLse } from '../../src/fna/index.js';

/** The contract of `sparse-local/fna`; lists have one entry a spatial axis. */
interface FnaParams {
  kernelSize: number[];
  dilation: number[];
  isCausal: boolean[];
  scale: number | null;
}

const fnaOp: GoldenOp = {
  compare: { out: 'error', lse: 'error' },
  run: (golden, device) => {
    const { kernelSize, dilation, isCausal, scale } = golden.params as unknown as FnaParams;
    return Promise.resolve(
      forwardAndGradients(golden, device, (inputs) => {
        const [bias, additionalKeys, additionalValues] = [
          inputs.find('rpb'),
          inputs.find('additionalKeys'),
          inputs.find('additionalValues'),
        ];
        return {
          ...fnaWithLse(inputs.get('query'), inputs.get('key'), inputs.get('value'), {
            window: kernelSize,
            dilation,
            causal: isCausal,
            ...(scale !== null && { scale }),
            ...(bias && { bias }),
            ...(additionalKeys && { additionalKeys }),
            ...(additionalValues && { additionalValues }),
          }),
        };
      }),
    );
  },
};

/** Neighborhood attention, with and without relative position bias. */
export const fnaGolden: GoldenMapping = { 'sparse-local/fna': fnaOp, 'sparse-local/fna.rpb': fnaOp };
