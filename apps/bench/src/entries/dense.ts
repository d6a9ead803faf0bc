import type { Entry, Family, Pass } from '../entry.js';
import { causalKeys } from '../reference.js';
import { attentionEntry } from './attention.js';

const HEADS = 16;
const triangle = (tokens: number): number => (tokens * (tokens + 1)) / 2;

/** Pairs of a causal window of `window` keys. */
export const bandPairs = (tokens: number, window: number): number => triangle(tokens) - triangle(Math.max(0, tokens - window));

interface Setting {
  readonly dtype: 'f16' | 'f32';
  readonly headDim: number;
  readonly heads: number;
  readonly pass: Pass;
}

function causal(tokens: number, { dtype, headDim, heads, pass }: Setting): Entry {
  return attentionEntry({
    id: `attention/causal/${dtype}/d${headDim}/${tokens}/${pass}`,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    dtype,
    pass,
    pairs: heads * triangle(tokens),
    visible: causalKeys(),
    options: { causal: true },
    series: `attention, causal, d${headDim}, ${dtype}, ${pass}`,
  });
}

function full(tokens: number, { dtype, headDim, heads, pass }: Setting): Entry {
  const everything = Int32Array.from({ length: tokens }, (_, key) => key);
  return attentionEntry({
    id: `attention/full/${dtype}/d${headDim}/${tokens}/${pass}`,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    dtype,
    pass,
    pairs: heads * tokens ** 2,
    visible: () => everything,
  });
}

function window(tokens: number, { dtype, headDim, heads, pass }: Setting, width: number): Entry {
  return attentionEntry({
    id: `window${width}/${dtype}/d${headDim}/${tokens}/${pass}`,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    dtype,
    pass,
    pairs: heads * bandPairs(tokens, width),
    visible: causalKeys((query) => Math.max(0, query - width + 1)),
    options: { causal: true, window: width },
    shape: { window: width },
    series: `attention, window ${width}, d${headDim}, ${dtype}, ${pass}`,
  });
}

/** Dense causal attention and the causal window, forward and backward. */
export const dense: Family = ({ suite, software, sizes }) => {
  const f16 = (headDim: number, pass: Pass): Setting => ({ dtype: 'f16', headDim, heads: HEADS, pass });
  const f32 = (headDim: number, pass: Pass): Setting => ({ dtype: 'f32', headDim, heads: HEADS, pass });
  const small = (pass: Pass): Setting => ({ dtype: 'f32', headDim: 64, heads: 2, pass });
  if (software) {
    if (suite !== 'quick' && suite !== 'kernels' && suite !== 'scaling') return [];
    const lengths = sizes ?? (suite === 'scaling' ? [256, 512, 1024, 2048] : [512, 1024]);
    return lengths.flatMap((tokens) => [
      causal(tokens, small('forward')),
      ...(suite === 'kernels' || (suite === 'quick' && tokens <= 512) ? [causal(tokens, small('backward'))] : []),
      window(tokens, small('forward'), Math.min(128, tokens)),
      ...(suite === 'kernels' ? [full(tokens, small('forward'))] : []),
    ]);
  }
  if (suite === 'quick') {
    const lengths = sizes ?? [4096];
    return lengths.flatMap((t) => [
      causal(t, f16(64, 'forward')),
      causal(t, f16(64, 'backward')),
      window(t, f16(64, 'forward'), Math.min(1024, t)),
    ]);
  }
  if (suite === 'kernels') {
    const lengths = sizes ?? [4096, 16384, 65536];
    return [
      ...[64, 128].flatMap((d) => lengths.map((t) => causal(t, f16(d, 'forward')))),
      ...[64, 128].flatMap((d) => lengths.filter((t) => t <= 16384).map((t) => causal(t, f16(d, 'backward')))),
      ...(sizes ?? [4096]).map((t) => causal(t, f32(64, 'forward'))),
      ...(sizes ?? [4096]).map((t) => causal(t, f32(64, 'backward'))),
      ...(sizes ?? [4096]).map((t) => full(t, f32(64, 'forward'))),
      ...lengths.filter((t) => t >= 16384 || sizes).map((t) => window(t, f16(64, 'forward'), Math.min(1024, t))),
      ...lengths.filter((t) => t === 16384 || sizes).map((t) => window(t, f16(64, 'backward'), Math.min(1024, t))),
    ];
  }
  if (suite === 'scaling') {
    const lengths = sizes ?? Array.from({ length: 11 }, (_, i) => 2 ** (10 + i));
    return [
      ...lengths.filter((t) => t <= 131072).map((t) => causal(t, f16(64, 'forward'))),
      ...lengths.map((t) => window(t, f16(64, 'forward'), Math.min(1024, t))),
    ];
  }
  return [];
};
