import { isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import type { Tensor } from '../tensor/tensor.js';
import type { AttentionOptions } from './options.js';

/** Lengths of an attention call. */
export interface AttentionSizes {
  batch: number;
  queries: number;
  keys: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
}

/** A bound that no position reaches: no limit on this side. */
export const unbounded: number = 2 ** 29;

/** Visible keys in closed form: q - left <= kv <= q + right, or kv < prefix with kv <= q + right. */
export interface Band {
  left: number;
  right: number;
  prefix: number;
}

const largestHeadDim = 256;

/** @throws HeedError SHAPE_MISMATCH or DTYPE_MISMATCH when q, k and v do not fit together */
export function checkSizes(who: string, q: Tensor, k: Tensor, v: Tensor): AttentionSizes {
  const wrong = (what: string): HeedError => new HeedError('SHAPE_MISMATCH', `${who}: ${what}`);
  for (const [name, t] of [['q', q] as const, ['k', k] as const, ['v', v] as const]) {
    if (t.rank !== 4) throw wrong(`${name} is ${t.describe()}; q, k and v are [batch, tokens, heads, headDim]`);
    if (!isFloat(t.dtype)) throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${t.dtype}; q, k and v are f32 or f16`);
  }
  if (k.dtype !== v.dtype) throw new HeedError('DTYPE_MISMATCH', `${who}: k is ${k.dtype}, v ${v.dtype}; they must be of one dtype`);
  const [batch, queries, heads, headDim] = q.shape as [number, number, number, number];
  const [kBatch, keys, kvHeads, kDim] = k.shape as [number, number, number, number];
  const [vBatch, vKeys, vHeads, valueDim] = v.shape as [number, number, number, number];
  if (kBatch !== batch || vBatch !== batch)
    throw wrong(`q, k and v have ${batch}, ${kBatch} and ${vBatch} batch entries; they must have as many`);
  if (kDim !== headDim) throw wrong(`q has head dimension ${headDim}, k ${kDim}; they must be equal`);
  if (vKeys !== keys || vHeads !== kvHeads)
    throw wrong(`k has ${keys} tokens of ${kvHeads} heads, v ${vKeys} of ${vHeads}; they must be equal`);
  if (kvHeads === 0 || heads % kvHeads !== 0)
    throw wrong(`${heads} query heads over ${kvHeads} key heads; the number of query heads must be a multiple`);
  if (headDim < 1 || headDim > largestHeadDim || valueDim < 1 || valueDim > largestHeadDim)
    throw wrong(`head dimensions ${headDim} and ${valueDim}; they must be 1 to ${largestHeadDim}`);
  return { batch, queries, keys, heads, kvHeads, headDim, valueDim };
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH or INVALID_ARGUMENT when an option does not fit the sizes */
export function checkOptions(who: string, sizes: AttentionSizes, options: AttentionOptions): void {
  const { batch, heads } = sizes;
  const { lengths, queryOffset, sinks, window, sinkTokens, softcap, alibi } = options;
  integerRow(who, 'lengths', lengths, batch);
  if (typeof queryOffset === 'number') {
    if (!Number.isInteger(queryOffset) || Math.abs(queryOffset) >= unbounded)
      throw new HeedError('INVALID_ARGUMENT', `${who}: queryOffset is ${queryOffset}; it must be an integer below 2^29`);
  } else integerRow(who, 'queryOffset', queryOffset, batch);
  floatRow(who, 'sinks', sinks, heads, 'one logit a query head');
  if (alibi !== undefined && typeof alibi !== 'boolean') {
    const count = 'shape' in alibi ? alibi.size : alibi.length;
    if (count !== heads)
      throw new HeedError('SHAPE_MISMATCH', `${who}: ${count} ALiBi slopes for ${heads} query heads; give one a query head`);
  }
  if (window !== undefined && (!Number.isInteger(window) || window < 1))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: window is ${window}; it counts the keys seen, the own one included, so it is an integer of 1 or more`,
    );
  if (sinkTokens !== undefined && (!Number.isInteger(sinkTokens) || sinkTokens < 0))
    throw new HeedError('INVALID_ARGUMENT', `${who}: sinkTokens is ${sinkTokens}; it must be an integer of 0 or more`);
  if (softcap !== undefined && !(softcap > 0)) throw new HeedError('INVALID_ARGUMENT', `${who}: softcap is ${softcap}; it must be above 0`);
}

function integerRow(who: string, name: string, t: Tensor | undefined, batch: number): void {
  if (!t) return;
  if (t.dtype !== 'i32') throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${t.dtype}; it must be i32`);
  if (t.rank !== 1 || t.size !== batch)
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${name} is ${t.describe()}; it must be [${batch}], one number a batch entry`);
}

function floatRow(who: string, name: string, t: Tensor | undefined, count: number, meaning: string): void {
  if (!t) return;
  if (!isFloat(t.dtype)) throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${t.dtype}; it must be f32 or f16`);
  if (t.rank !== 1 || t.size !== count)
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${name} is ${t.describe()}; it must be [${count}], ${meaning}`);
}

/** How `keyBias` is laid out once contiguous: strides of batch and head, and query heads that share a row. */
export interface BiasLayout {
  batch: number;
  head: number;
  group: number;
}

/** @throws HeedError SHAPE_MISMATCH or DTYPE_MISMATCH */
export function checkKeyBias(who: string, { batch, heads, kvHeads, keys }: AttentionSizes, bias: Tensor): BiasLayout {
  if (!isFloat(bias.dtype)) throw new HeedError('DTYPE_MISMATCH', `${who}: keyBias is ${bias.dtype}; it must be f32 or f16`);
  if (bias.rank === 1 && bias.size === keys) return { batch: 0, head: 0, group: heads };
  const [b = 0, h = 0, k = 0] = bias.shape;
  if (bias.rank !== 3 || k !== keys || !(b === batch || b === 1) || !(h === 1 || h === heads || h === kvHeads))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: keyBias is ${bias.describe()}; it must be [${keys}], or [${batch} or 1, ${heads}, ${kvHeads} or 1, ${keys}]`,
    );
  return { batch: b === 1 ? 0 : h * keys, head: h === 1 ? 0 : keys, group: heads / h };
}

/** The band of the options without a mask. */
export function bandOf({ causal, window, sinkTokens }: AttentionOptions): Band {
  const left = window === undefined ? unbounded : causal ? window - 1 : Math.floor(window / 2);
  const right = causal ? 0 : window === undefined ? unbounded : window - 1 - left;
  return { left, right, prefix: sinkTokens ?? 0 };
}

/** Elements that rows of all tensors can be loaded by: strides, offsets and head dimensions are multiples of it. */
export function rowItems(tensors: readonly Tensor[], widest: 1 | 4 | 8): 1 | 4 | 8 {
  const fits = (n: number): boolean =>
    tensors.every(
      (t) => t.dim(-1) % n === 0 && t.offset % n === 0 && t.strides.slice(0, -1).every((s, axis) => s % n === 0 || t.shape[axis] === 1),
    );
  return widest === 8 && fits(8) ? 8 : widest >= 4 && fits(4) ? 4 : 1;
}

/** Strides of batch, row and head in items of a kernel's binding. */
export function itemStrides(t: Tensor, item: number): [number, number, number] {
  const items = (axis: number): number => ((t.shape[axis] ?? 1) === 1 ? 0 : (t.strides[axis] ?? 0) / item);
  return [items(0), items(1), items(2)];
}
