// Calls of the attention engine for the compile test: every option that changes a text.
import {
  alibiSlopes,
  attention,
  attentionWithLse,
  document,
  mergeAttention,
  prefixLm,
  scoreMod,
  slidingWindow,
} from '../src/attention/index.js';
import { type Tensor, tensor } from '../src/index.js';
import { capture } from '../src/internal.js';
import type { Operands, Outputs } from './compile-cases.js';

type Engine = (o: Operands, dim: number, tokens: number) => { inputs: Tensor[]; run: () => Outputs };
export const engine: Record<string, Engine> = {
  causal: (o, dim, tokens) => {
    const [q, k, v] = [o.float(1, tokens, 4, dim), o.float(1, tokens, 2, dim), o.float(1, tokens, 2, dim)];
    return {
      inputs: [q, k, v],
      run: () => {
        const { out, lse } = attentionWithLse(q, k, v, { causal: true });
        return [out, lse];
      },
    };
  },
  everything: (o, dim, tokens) => {
    const [q, k, v] = [o.float(2, tokens, 2, dim), o.float(2, tokens, 2, dim), o.float(2, tokens, 2, dim)];
    const [sinks, keyBias, table] = [o.f32(2), o.f32(tokens), o.f32(2 * tokens)];
    const lengths = tensor(o.device, Int32Array.of(tokens, 1));
    const relative = capture('table', 'f32', { differentiable: true });
    return {
      inputs: [q, k, v, sinks, keyBias, table],
      run: () =>
        attention(q, k, v, {
          causal: true,
          window: 5,
          sinkTokens: 1,
          softcap: 20,
          sinks,
          keyBias,
          lengths,
          alibi: Array.from(alibiSlopes(2)),
          scoreMod: scoreMod((s, { q: row, kv }) => s.add(relative.at(row.sub(kv).abs())), { captures: { table } }),
        }),
    };
  },
  'f16 products of f32 tensors': (o, dim, tokens) => {
    const [q, k, v] = [o.f32(1, tokens, 2, dim), o.f32(1, tokens, 2, dim), o.f32(1, tokens, 2, dim)];
    return { inputs: [q, k, v], run: () => attention(q, k, v, { causal: true, window: 7, precision: 'f16' }) };
  },
  masks: (o, dim, tokens) => {
    const [q, k, v] = [o.float(1, tokens, 2, dim), o.float(1, tokens, 2, dim), o.float(1, tokens, 2, dim)];
    const ids = Int32Array.from({ length: tokens }, (_, i) => i >> 3);
    return {
      inputs: [q, k, v],
      run: () => [document(ids), prefixLm(3), slidingWindow({ window: 4 })].map((mask) => attention(q, k, v, { mask })),
    };
  },
  decode: (o, dim, tokens) => {
    // groups that fill a tile and that do not, and scores that take the kernel of any call
    const [q, odd, k] = [o.float(1, 1, 4, dim), o.float(1, 1, 6, dim), o.float(1, 40 * tokens, 2, dim)];
    return {
      inputs: [],
      run: () => [attention(q, k, k, { causal: true }), attention(odd, k, k), attention(q, k, k, { causal: true, softcap: 5 })],
    };
  },
  merge: (o, dim, tokens) => {
    const [q, k, v] = [o.float(1, tokens, 2, dim), o.float(1, tokens, 2, dim), o.float(1, tokens, 2, dim)];
    return { inputs: [q, k, v], run: () => mergeAttention([attentionWithLse(q, k, v), attentionWithLse(q, k, v, { window: 3 })]).out };
  },
};
