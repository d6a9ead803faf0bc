import {
  add,
  broadcastTo,
  cast,
  concat,
  exp,
  full,
  HeedError,
  lt,
  matmul,
  max,
  mul,
  pad,
  permute,
  pointwise,
  reshape,
  scope,
  slice,
  split,
  sub,
  sum,
  tensor,
  type Tensor,
  unsqueeze,
} from '@heed/core';
import { linearScan } from '../scan/linear-scan.js';
import { gateOf } from './forward.js';
import { checkLawcat, type LawcatOptions } from './options.js';

/** Options of `lawcatWindow`. */
export interface LawcatWindowOptions extends LawcatOptions {
  /** Mapped features of queries and keys, f32 [batch, tokens, heads, keyDim]. */
  features: { q: Tensor; k: Tensor };
  /** Keys of the softmax part, the own one included. */
  window: number;
  /** beta = sigmoid(windowFactor) weighs the softmax part, [heads]. */
  windowFactor: Tensor;
  /** The linear part has weight 1 - beta in place of 1. Default false. */
  affine?: boolean;
}

const mixed = pointwise(
  (ev, n, e, z, factor, eps) => {
    const beta = factor.sigmoid();
    return ev.mul(beta).add(n).div(e.mul(beta).add(z).add(eps));
  },
  { name: 'lawcat-window' },
);
const mixedAffine = pointwise(
  (ev, n, e, z, factor, eps) => {
    const beta = factor.sigmoid();
    const rest = beta.neg().add(1);
    return ev
      .mul(beta)
      .add(n.mul(rest))
      .div(e.mul(beta).add(z.mul(rest)).add(eps));
  },
  { name: 'lawcat-window-affine' },
);

/**
 * LAWCAT with a sliding softmax window: out = (beta sum e v + gamma n) / (beta sum e + gamma z + eps) with e = exp(s - max s) over
 * the last `window` keys, s = q.k / sqrt(headDim), and n, z of `lawcat` over all keys, the window's included. The row's maximum is not
 * applied to the linear part, so it counts, and is differentiated.
 * @param q rotated queries of the softmax part, [batch, tokens, heads, headDim]
 * @param k as q, maybe with earlier tokens in front (a stream's), which the linear part does not see
 * @param v as k, [.., valueDim]
 * @param options `scale` is that of the linear part, default 1 / sqrt(keyDim); `initialState` its state; rows behind `lengths` are 0
 * @returns [batch, tokens, heads, valueDim], f32; differentiable in everything
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function lawcatWindow(q: Tensor, k: Tensor, v: Tensor, options: LawcatWindowOptions): Tensor {
  const { features, gate, scale = 1 / Math.sqrt(features.q.dim(3)), chunk, lengths, initialState, windowFactor } = options;
  checkLawcat('lawcatWindow', features.q, v, options);
  if (windowFactor.rank !== 1 || windowFactor.size !== q.dim(2))
    throw new HeedError('SHAPE_MISMATCH', `lawcatWindow: windowFactor is ${windowFactor.describe()}; it must be [${q.dim(2)}], one a head`);
  return scope(() => {
    const own = cast(v.dim(1) === q.dim(1) ? v : slice(v, 1, Math.max(0, v.dim(1) - q.dim(1))), features.q.dtype);
    const [state, keySum] = initialState ? split(initialState, [v.dim(3), 1], 3) : [];
    const scan = {
      gate: gateOf(gate, options),
      scale,
      outDType: 'f32' as const,
      ...(chunk !== undefined && { chunk }),
      ...(lengths && { lengths }),
    };
    const n = linearScan(features.q, features.k, own, { ...scan, ...(state && { initialState: state }) }, 'lawcatWindow');
    const ones = cast(onesFor(own), features.q.dtype);
    const z = linearScan(features.q, features.k, ones, { ...scan, ...(keySum && { initialState: keySum }) }, 'lawcatWindow');
    const out = mixWindow(q, k, v, n, z, options);
    return lengths ? mul(out, validRows(lengths, q.dim(1))) : out;
  });
}

/** 1 for the tokens of each batch entry, 0 for the padding behind them, [batch, tokens, 1, 1]. */
function validRows(lengths: Tensor, tokens: number): Tensor {
  const places = tensor(
    lengths.device,
    Int32Array.from({ length: tokens }, (_, t) => t),
    [1, tokens, 1, 1],
  );
  return cast(lt(places, reshape(lengths, [lengths.size, 1, 1, 1])), 'f32');
}

/** One column of ones beside values: a view without strides. */
export function onesFor(v: Tensor): Tensor {
  return broadcastTo(full(v.device, [1], 1), [...v.shape.slice(0, 3), 1]);
}

/** The softmax part beside numerator and normaliser of the linear one, [batch, tokens, heads, valueDim] and [.., 1]. */
export function mixWindow(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  n: Tensor,
  z: Tensor,
  options: Pick<LawcatWindowOptions, 'window' | 'windowFactor' | 'affine' | 'eps'>,
): Tensor {
  const { window, windowFactor, affine = false, eps = 1e-10 } = options;
  const { values, sums } = windowSums(q, k, v, window);
  const factor = reshape(windowFactor, [1, 1, windowFactor.size, 1]);
  return (affine ? mixedAffine : mixed)(values, n, sums, z, factor, eps);
}

/** Masked scores are so far below the row's maximum that their exponential is 0. */
const NEG = -1e30;

/**
 * sum e v and sum e over the last `window` keys of each query, in blocks of `window` queries by 2 window keys: linear in tokens, and
 * ordinary products, so that the maximum is differentiated like everything else.
 */
function windowSums(q: Tensor, k: Tensor, v: Tensor, window: number): { values: Tensor; sums: Tensor } {
  const [batch, asked, heads, headDim] = q.shape as [number, number, number, number];
  const tokens = k.dim(1);
  if (!Number.isInteger(window) || window < 1)
    throw new HeedError('INVALID_ARGUMENT', `lawcatWindow: window is ${window}; it must be an integer of 1 or more`);
  if (k.dim(2) !== heads || v.dim(2) !== heads || v.dim(1) !== tokens || tokens < asked)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `lawcatWindow: q is ${q.describe()}, k ${k.describe()}, v ${v.describe()}; k and v have the heads of q and at least its tokens`,
    );
  const blocks = Math.ceil(tokens / window);
  const behind = blocks * window - tokens;
  const inBlocks = (x: Tensor): Tensor => permute(reshape(x, [batch, blocks, window, heads, x.dim(3)]), [0, 3, 1, 2, 4]);
  const queries = inBlocks(
    pad(q, [
      [0, 0],
      [tokens - asked, behind],
    ]),
  );
  const pair = (x: Tensor): [Tensor, Tensor] => {
    const padded = pad(x, [
      [0, 0],
      [window, behind],
    ]);
    return [inBlocks(slice(padded, 1, 0, blocks * window)), inBlocks(slice(padded, 1, window))];
  };
  const [[keysBefore, keys], [valuesBefore, values]] = [pair(k), pair(v)];
  const score = (x: Tensor): Tensor => matmul(queries, x, { transposeB: true, outDType: 'f32' });
  const scaled = concat([score(keysBefore), score(keys)], 4);
  const seen = bandOf(q, window, blocks);
  const s = masked(scaled, 1 / Math.sqrt(headDim), seen);
  const e = exp(sub(s, max(s, 4, { keepDims: true })));
  const [before, own] = [slice(e, 4, 0, window), slice(e, 4, window)];
  const weighted = matmul(own, values, { addTo: matmul(before, valuesBefore, { outDType: 'f32' }) });
  const back = (x: Tensor): Tensor =>
    slice(reshape(permute(x, [0, 2, 3, 1, 4]), [batch, blocks * window, heads, x.dim(4)]), 1, tokens - asked, tokens);
  return { values: back(weighted), sums: back(sum(e, 4, { keepDims: true })) };
}

const masked = pointwise((s, scale, bias) => s.mul(scale).add(bias), { name: 'lawcat-band' });

/** 0 where query i of a block sees key c of the block before and its own, NEG elsewhere: [blocks, window, 2 window]. */
function bandOf(like: Tensor, window: number, blocks: number): Tensor {
  const band = new Float32Array(window * 2 * window);
  for (let i = 0; i < window; i++) for (let c = 0; c < 2 * window; c++) band[i * 2 * window + c] = c > i && c <= window + i ? 0 : NEG;
  // the first block has none before it
  const first = new Float32Array(blocks * 2 * window).fill(NEG, 0, window);
  const rows = unsqueeze(tensor(like.device, first, [blocks, 2 * window]), 1);
  return add(tensor(like.device, band, [1, window, 2 * window]), rows);
}
