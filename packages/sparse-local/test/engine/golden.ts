import { attentionWithLse, causalDocument, document } from '@heed/core/attention';
import type { Mask } from '@heed/core/attention';
import { forwardAndGradients } from '@heed/core/testing';
import type { GoldenCase, GoldenMapping, Values } from '@heed/core/testing';
import type { Tensor } from '@heed/core';

/** The contract of `sparse-local/engine`; a query row stands at position row + queryOffset. */
interface EngineParams {
  mask: 'causal' | 'sliding-window-causal' | 'document' | 'document-causal' | 'length';
  scale: number | null;
  queryOffset?: number;
  softcap?: number;
  alibiSlopes?: number[];
  windowLeft?: number;
  sinkTokens?: number;
}

/** The options that say which keys a query sees. */
interface VisibilityOptions {
  causal?: boolean;
  window?: number;
  sinkTokens?: number;
  mask?: Mask;
}

/** Core's attention engine, which every technique of this package runs on. */
export const engineGolden: GoldenMapping = {
  'sparse-local/engine': {
    compare: { out: 'error', lse: 'error', rowIsLive: 'exact' },
    async run(golden, device) {
      const { scale, softcap, alibiSlopes, queryOffset = 0 } = golden.params as unknown as EngineParams;
      const { lse, ...results } = forwardAndGradients(golden, device, (inputs) => {
        const sinkLogits = inputs.find('sinks');
        const lengths = inputs.find('lengths');
        return {
          ...attentionWithLse(inputs.get('query'), inputs.get('key'), inputs.get('value'), {
            ...visibility(golden),
            queryOffset,
            ...(scale !== null && { scale }),
            ...(softcap !== undefined && { softcap }),
            ...(alibiSlopes && { alibi: alibiSlopes }),
            ...(sinkLogits && { sinks: sinkLogits }),
            ...(lengths && { lengths }),
          }),
        };
      });
      return { ...results, ...(await storedLse(lse as Tensor)) };
    },
  },
};

function visibility({ params, inputs }: GoldenCase): VisibilityOptions {
  const { mask, windowLeft = 0, sinkTokens = 0 } = params as unknown as EngineParams;
  const ids = Int32Array.from(inputs['documentIds']?.values ?? []);
  switch (mask) {
    case 'causal':
      return { causal: true };
    case 'sliding-window-causal':
      // windowLeft counts the keys before the own one.
      return { causal: true, window: windowLeft + 1, sinkTokens };
    case 'document':
      return { mask: document(ids) };
    case 'document-causal':
      return { mask: causalDocument(ids) };
    case 'length':
      // The lengths are an option of their own.
      return {};
  }
}

/** Cases store 0 for the lse of a row that sees nothing, and whether it sees something beside it. */
async function storedLse(lse: Tensor): Promise<{ lse: Values; rowIsLive: Values }> {
  const values = Array.from(await lse.read());
  lse.dispose();
  const { shape } = lse;
  return {
    lse: { shape, values: values.map((x) => (x === -Infinity ? 0 : x)) },
    rowIsLive: { shape, values: values.map((x) => (x === -Infinity ? 0 : 1)) },
  };
}
