// What the kernels that read a cache for queries share: their run-time values, declared and filled in one place.
import type { Tensor } from '../../tensor/tensor.js';
import { type KvGroup, layoutOf } from '../group.js';
import type { AttendValues } from './attend.js';
import { layoutUniforms } from './rows.js';

const ownUniforms = {
  queries: 'u32',
  heads: 'u32',
  /** Query heads a KV head. */
  group: 'u32',
  tiles: 'u32',
  splits: 'u32',
  splitKeys: 'u32',
  extraRows: 'u32',
  qBatch: 'u32',
  qToken: 'u32',
  qHead: 'u32',
  /** 1 where batch entries took different numbers of tokens in the last append. */
  padded: 'u32',
  left: 'i32',
  right: 'i32',
  sinkTokens: 'u32',
  scale: 'f32',
  softcap: 'f32',
  /** Entries of a head's list of chosen pages. */
  chosenPages: 'u32',
} as const;

export const queryUniforms: typeof layoutUniforms & typeof ownUniforms = { ...layoutUniforms, ...ownUniforms };

/**
 * The values of `queryUniforms`.
 * @param q [batch, queries, heads, headDim]
 * @param width elements an item of q, which its strides are counted in
 */
export function queryValues(
  { view, stages }: KvGroup,
  q: Tensor,
  values: AttendValues,
  { tiles, bound, width }: { tiles: number; bound: boolean; width: 1 | 4 },
): Record<keyof typeof queryUniforms, number> {
  const [, queries = 0, heads = 0] = q.shape;
  return {
    ...layoutOf(view),
    queries,
    heads,
    group: heads / view.kvHeads,
    tiles,
    splits: values.splits,
    splitKeys: values.splitKeys,
    extraRows: bound ? (stages.rows?.extraRows ?? 0) : 0,
    qBatch: (q.strides[0] ?? 0) / width,
    qToken: (q.strides[1] ?? 0) / width,
    qHead: (q.strides[2] ?? 0) / width,
    padded: values.padded ? 1 : 0,
    left: values.left,
    right: values.right,
    sinkTokens: values.sinkTokens,
    scale: values.scale,
    softcap: values.softcap ?? 1,
    chosenPages: values.pages?.dim(2) ?? 0,
  };
}
