import {
  add,
  attention,
  cast,
  HeedError,
  matmul,
  mul,
  pad,
  permute,
  reshape,
  scope,
  slice,
  softmax as softmaxOf,
  sub,
  tensor,
  type Tensor,
} from '@heed/core';
import { activationOf, type LayerActivation } from '../layer/activation.js';
import { everyToken } from '../scan/every-token.js';
import { decayScan, type DecayScanOptions, decayScanWithState } from '../scan/decay-scan.js';
import { placed, placedForScan, type TransnormerPositions } from './positions.js';

/** Options of `transnormerNormAttention`. */
export interface TransnormerNormOptions {
  /** Token t sees tokens up to t. Default true. */
  causal?: boolean;
  /** Factor on q.k. Default 1: the norm behind takes it out again but for its eps. */
  scale?: number;
  /** LRPE on queries and keys at positions `offset`, `offset` + 1, ... Default: none. */
  positions?: TransnormerPositions;
  /** Position of the first token. Default 0. */
  offset?: number;
  /** State before the first token, f32 [batch, heads, headDim, valueDim]; with `causal`. Default zeros. Differentiable. */
  initialState?: Tensor;
  /** Tokens a segment. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; with `causal`. Default: all. */
  lengths?: Tensor;
}

/**
 * NormAttention before its norm (Qin et al. 2022, arXiv 2210.10340, eq. 8): o_i = scale sum_(j <= i) (q_i.k_j) v_j, without a
 * denominator; the layer divides by the norm of the concatenated heads, which bounds gradients. q and k come activated.
 * @param q [batch, tokens, heads, headDim], f32 or f16
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim], f32 with `causal`, else dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED for states or lengths without `causal`
 */
export function transnormerNormAttention(q: Tensor, k: Tensor, v: Tensor, options: TransnormerNormOptions = {}): Tensor {
  const { causal = true, scale = 1, initialState, lengths } = options;
  if (!causal && (initialState || lengths))
    throw new HeedError(
      'UNSUPPORTED',
      'transnormerNormAttention: initialState or lengths were given with causal: false; cut the padding off, or use causal: true',
    );
  return scope(() => {
    const { positions, offset = 0 } = options;
    if (!causal) {
      const [queries, keys] = positions ? [placed(q, positions, offset), placed(k, positions, offset)] : [q, k];
      return everyToken(queries, keys, v, scale, 'transnormerNormAttention');
    }
    const operands = normPlaced('transnormerNormAttention', q, k, options);
    return decayScan(operands.q, operands.k, v, operands.rest, 'transnormerNormAttention');
  });
}

/**
 * As `transnormerNormAttention` with `causal`, and the state behind the last token, f32 [batch, heads, headDim, valueDim].
 * @returns out as `transnormerNormAttention`, and state, which is `initialState` of what follows
 * @throws HeedError what `transnormerNormAttention` throws
 */
export function transnormerNormAttentionWithState(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: Omit<TransnormerNormOptions, 'causal'> = {},
): { out: Tensor; state: Tensor } {
  return scope(() => {
    const operands = normPlaced('transnormerNormAttentionWithState', q, k, options);
    return decayScanWithState(operands.q, operands.k, v, operands.rest, 'transnormerNormAttentionWithState');
  });
}

/** Operands and options of the scan, which turns queries and keys itself. */
function normPlaced(
  who: string,
  q: Tensor,
  k: Tensor,
  { positions, offset = 0, scale, initialState, chunk, lengths }: TransnormerNormOptions,
): { q: Tensor; k: Tensor; rest: DecayScanOptions } {
  const { turning, ...operands } = positions ? placedForScan(who, q, k, positions, offset) : { q, k, turning: undefined };
  const rest: DecayScanOptions = {
    outDType: 'f32',
    ...(scale !== undefined && { scale }),
    ...(initialState && { initialState }),
    ...(chunk !== undefined && { chunk }),
    ...(lengths && { lengths }),
    ...(turning && { turning }),
  };
  return { ...operands, rest };
}

/** Options of `transnormerDiagAttention`. */
export interface TransnormerDiagOptions {
  /** Factor on q.k. Default 1/sqrt(headDim). */
  scale?: number;
  /** Tokens of a block. Default 64. */
  block?: number;
  /** Inside a block token t sees tokens up to t. Default true. */
  causal?: boolean;
  /** Softmax of the scores (T2). Default true; false applies `activation` to them (T1). */
  softmax?: boolean;
  /** On the scores without softmax. Default `relu`. */
  activation?: LayerActivation;
  /** LRPE on queries and keys, positions from 0 in each block. Default: none. */
  positions?: TransnormerPositions;
}

/**
 * DiagAttention (Qin et al. 2022, section 4.2): attention inside blocks of tokens that do not overlap, by softmax (T2) or by an
 * activation of the scores (T1). A short last block is masked, not padded into the softmax.
 * @param q [batch, tokens, heads, headDim], f32 or f16
 * @param k as q
 * @param v [batch, tokens, heads, valueDim]
 * @returns [batch, tokens, heads, valueDim], dtype of v; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function transnormerDiagAttention(q: Tensor, k: Tensor, v: Tensor, options: TransnormerDiagOptions = {}): Tensor {
  const { block = 64, positions } = options;
  if (!(Number.isInteger(block) && block > 0))
    throw new HeedError('INVALID_ARGUMENT', `transnormerDiagAttention: block is ${block}; it must be an integer of 1 or more`);
  for (const [name, x] of [
    ['q', q],
    ['k', k],
    ['v', v],
  ] as const) {
    if (x.rank !== 4 || [0, 1, 2].some((axis) => x.dim(axis) !== q.dim(axis)))
      throw new HeedError(
        'SHAPE_MISMATCH',
        `transnormerDiagAttention: ${name} is ${x.describe()}; q, k, v are [batch, tokens, heads, headDim] with one batch, tokens and heads`,
      );
    if ((x.dtype !== 'f32' && x.dtype !== 'f16') || x.dtype !== q.dtype)
      throw new HeedError(
        'DTYPE_MISMATCH',
        `transnormerDiagAttention: ${name} is ${x.describe()}, q is ${q.describe()}; they must be f32, or f16 all three, cast them first`,
      );
  }
  if (k.dim(3) !== q.dim(3))
    throw new HeedError('SHAPE_MISMATCH', `transnormerDiagAttention: k is ${k.describe()}, q is ${q.describe()}; headDim must agree`);
  if (options.scale !== undefined && !Number.isFinite(options.scale))
    throw new HeedError('INVALID_ARGUMENT', `transnormerDiagAttention: scale is ${options.scale}; it must be finite`);
  const [batch, tokens] = [q.dim(0), q.dim(1)];
  if (tokens === 0) return scope(() => cast(v, v.dtype));
  const width = Math.min(block, tokens);
  const blocks = Math.ceil(tokens / width);
  const last = tokens - (blocks - 1) * width;
  return scope(() => {
    const split = (x: Tensor): Tensor => {
      const whole = last === width ? x : pad(x, [[0, 0], [0, width - last], [0, 0], [0, 0]]); // prettier-ignore
      return reshape(whole, [batch * blocks, width, x.dim(2), x.dim(3)]);
    };
    const [a, b] = [q, k].map((x) => (positions ? placed(split(x), positions, 0) : split(x))) as [Tensor, Tensor];
    const valid = last === width ? undefined : { batch, blocks, last };
    const out = blockAttention(a, b, split(v), options, valid);
    const joined = reshape(out, [batch, blocks * width, v.dim(2), v.dim(3)]);
    return last === width ? joined : slice(joined, 1, 0, tokens);
  });
}

/**
 * Attention of the queries that stand behind (bottom-right aligned) the keys of each block.
 * @param q [blocks, queries, heads, headDim], after LRPE
 * @param k [blocks, keys, heads, headDim]
 * @param padded that every so many blocks only the first `last` keys count
 */
export function blockAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: TransnormerDiagOptions,
  padded?: { batch: number; blocks: number; last: number },
): Tensor {
  const { causal = true, softmax = true, scale = 1 / Math.sqrt(q.dim(3)) } = options;
  const [queries, keys] = [q.dim(1), k.dim(1)];
  // padded keys stand behind all others: a causal mask hides them from every token that counts
  const hidden = !causal && padded;
  // blocks of few tokens side by side are no decoding, which attention would take them for: their scores are small products
  const few = softmax && queries === keys && queries <= fewTokens;
  if (softmax && !few) {
    const lengths = hidden && tensor(q.device, lengthsOf(hidden, keys));
    return attention(q, k, v, { causal, scale, ...(lengths && { lengths }) });
  }
  const [a, b, c] = [q, k, v].map((x) => permute(x, [0, 2, 1, 3])) as [Tensor, Tensor, Tensor];
  const scores = mul(matmul(a, b, { transposeB: true, outDType: 'f32' }), scale);
  const seen = causal
    ? tensor(q.device, triangle(queries, keys), [queries, keys])
    : hidden && tensor(q.device, columns(hidden, keys), [padded.batch * padded.blocks, 1, 1, keys]);
  const weights = few
    ? softmaxOf(seen ? add(scores, mul(sub(seen, 1), 1e30)) : scores)
    : activated(options.activation ?? 'relu', scores, seen || undefined);
  return permute(matmul(weights, c, { outDType: v.dtype === 'f16' ? 'f16' : 'f32' }), [0, 2, 1, 3]);
}

/** Rows of queries that core's attention takes for decoding. */
const fewTokens = 16;

function activated(name: LayerActivation, scores: Tensor, seen: Tensor | undefined): Tensor {
  const weights = activationOf('transnormerDiagAttention', name)(scores);
  return seen ? mul(weights, seen) : weights;
}

function lengthsOf({ batch, blocks, last }: { batch: number; blocks: number; last: number }, keys: number): Int32Array {
  return Int32Array.from({ length: batch * blocks }, (_, i) => (i % blocks === blocks - 1 ? last : keys));
}

function triangle(queries: number, keys: number): Float32Array {
  return Float32Array.from({ length: queries * keys }, (_, i) => (i % keys <= Math.floor(i / keys) + keys - queries ? 1 : 0));
}

function columns(padded: { batch: number; blocks: number; last: number }, keys: number): Float32Array {
  const lengths = lengthsOf(padded, keys);
  return Float32Array.from({ length: lengths.length * keys }, (_, i) => (i % keys < (lengths[Math.floor(i / keys)] ?? 0) ? 1 : 0));
}
