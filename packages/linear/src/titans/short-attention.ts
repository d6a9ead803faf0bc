import { concat, type Device, type RandomStream, reshape, rope, slice, split, type Tensor } from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { zeros } from '@heed/core';
import { titansSegmentAttention } from './segment-attention.js';

/** Settings of the short attention beside a memory. */
export interface ShortAttentionConfig {
  /** Distance to the furthest key that a query sees; tokens a segment in `titansMacMixer`. Default 256. */
  segment?: number;
  /** Learned keys and values a head that every query sees. Default 16. */
  persistent?: number;
  /** Rotary positions; `base` default 10,000. Default: none. */
  rope?: { base?: number };
}

/** Sizes of a layer's attention. */
export interface ShortAttentionShape {
  heads: number;
  headDim: number;
  segment: number;
  persistent: number;
  rope: { base?: number } | undefined;
  precision: 'f32' | 'f16';
}

/** Parameters of the short attention. */
export interface ShortAttentionParams {
  [name: string]: LinearParams | Tensor;
  /** [dim, 3 heads headDim] */
  qkv: LinearParams;
  /** [heads headDim, dim] */
  out: LinearParams;
}

export function initShortAttention(device: Device, random: RandomStream, dim: number, shape: ShortAttentionShape): ShortAttentionParams {
  const width = shape.heads * shape.headDim;
  const learned = (): Tensor => zeros(device, [shape.persistent, shape.heads, shape.headDim]);
  return {
    qkv: initLinear(device, random.stream('qkv'), { inputs: dim, outputs: 3 * width }),
    out: initLinear(device, random.stream('out'), { inputs: width, outputs: dim, std: 1 / Math.sqrt(width * 8) }),
    ...(shape.persistent > 0 && { persistentK: learned(), persistentV: learned() }),
  };
}

/** Queries, keys and values of tokens, [batch, tokens, heads, headDim]. */
export function projectShort(
  params: ShortAttentionParams,
  x: Tensor,
  shape: ShortAttentionShape,
  offset: number,
): [Tensor, Tensor, Tensor] {
  const { heads, headDim, precision } = shape;
  const fused = reshape(linear(params.qkv, x, { precision, outDType: 'f32' }), [x.dim(0), x.dim(1), 3 * heads, headDim]);
  const [q, k, v] = split(fused, 3, 2) as [Tensor, Tensor, Tensor];
  const turned = (t: Tensor): Tensor => (shape.rope ? rope(t, { base: shape.rope.base ?? 10_000, offset }) : t);
  return [turned(q), turned(k), v];
}

/** The learned keys and values, as `titansSegmentAttention` takes them. */
export function persistentOf(params: ShortAttentionParams): { k: Tensor; v: Tensor } | undefined {
  const [k, v] = [params['persistentK'], params['persistentV']] as [Tensor | undefined, Tensor | undefined];
  return k && v ? { k, v } : undefined;
}

export function mergeHeads(params: ShortAttentionParams, mixed: Tensor, precision: 'f32' | 'f16'): Tensor {
  const [batch, tokens] = [mixed.dim(0), mixed.dim(1)];
  return linear(params.out, reshape(mixed, [batch, tokens, mixed.dim(2) * mixed.dim(3)]), { precision, outDType: 'f32' });
}

/**
 * Sliding attention over x, and over the keys and values before it.
 * @param before the last `segment` keys and values of a stream; none at the start
 * @returns out, and what the next piece looks back at
 */
export function slide(
  params: ShortAttentionParams,
  x: Tensor,
  shape: ShortAttentionShape,
  offset = 0,
  before?: { k: Tensor; v: Tensor },
): { out: Tensor; rows: { k: Tensor; v: Tensor } } {
  const [q, ownK, ownV] = projectShort(params, x, shape, offset);
  const k = before ? concat([before.k, ownK], 1) : ownK;
  const v = before ? concat([before.v, ownV], 1) : ownV;
  const persistent = persistentOf(params);
  const { segment, precision } = shape;
  const mixed = titansSegmentAttention(q, k, v, { segment, sliding: true, precision, ...(persistent && { persistent }) });
  const last = Math.max(0, k.dim(1) - segment);
  return { out: mergeHeads(params, mixed, precision), rows: { k: slice(k, 1, last), v: slice(v, 1, last) } };
}
