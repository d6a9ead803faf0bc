import type { Entry, Family } from '../entry.js';
import { attentionEntry } from './attention.js';

function decode(tokens: number, dtype: 'f16' | 'f32', heads: number, kvHeads: number, headDim: number): Entry {
  const all = Int32Array.from({ length: tokens }, (_, i) => i);
  return attentionEntry({
    id: `decode/${dtype}/hq${heads}hkv${kvHeads}/d${headDim}/${tokens}`,
    tokens,
    queries: 1,
    heads,
    kvHeads,
    headDim,
    dtype,
    pass: 'decode',
    pairs: heads * tokens,
    visible: () => all,
    series: `decode, hq${heads} hkv${kvHeads}, d${headDim}, ${dtype}`,
  });
}

/** One query against many keys, grouped heads: bound by the bytes of the cache. */
export const decoding: Family = ({ suite, software, sizes }) => {
  if (suite !== 'decode' && suite !== 'kernels' && suite !== 'quick') return [];
  if (software) return (sizes ?? (suite === 'decode' ? [512, 2048, 8192] : [2048])).map((t) => decode(t, 'f32', 4, 1, 64));
  const lengths =
    sizes ?? (suite === 'decode' ? [1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144] : suite === 'quick' ? [32768] : [32768, 131072]);
  const grouped = lengths.map((t) => decode(t, 'f16', 32, 8, 128));
  return suite === 'decode' ? [...grouped, ...lengths.filter((t) => t <= 131072).map((t) => decode(t, 'f16', 16, 16, 64))] : grouped;
};
