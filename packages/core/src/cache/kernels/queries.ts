// What the kernels that read a cache for queries share: their run-time values, and text that says which rows queries see.
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
  // the layout comes last: on the host an object of many properties grows slowly behind a spread
  return {
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
    ...layoutOf(view),
  };
}

/** Position of rows that are no tokens: no window reaches it, and sums with one stay within i32. */
export const hiddenQuery: number = -(2 ** 30);

/** The token that a row holds. */
export const positionFunction: string = `
    fn positionOf(row: u32, seen: u32) -> i32 {
      if (uniforms.recent == 0u || row < uniforms.sinks) { return i32(row); }
      let newest = seen - uniforms.sinks - 1u;
      let back = (newest % uniforms.recent + uniforms.recent - (row - uniforms.sinks)) % uniforms.recent;
      return i32(uniforms.sinks + newest - back);
    }`;

/** Of batch entry `b` and KV head `i` of the group: `head`, tokens `seen`, rows stored (`length`), `valid` queries, `first` position, `rowCount`. */
export const queryTokens: string = `
      let head = headAt(i);
      let seen = seenOf(b);
      let length = lengthOf(b, head);
      // queries are the newest tokens: of a padded entry only the first valid ones are tokens
      let valid = select(uniforms.queries, min(uniforms.queries, freshOf(b)), uniforms.padded == 1u);
      let first = i32(seen) - i32(valid);
      let rowCount = uniforms.queries * uniforms.group;`;

/** Stored rows that a tile of `rows` query rows from `firstRow` on can see, `count` in all: the extra ones, `lead` sinks, and [low, high). */
export const seenRows = (rows: number, chosen: boolean): string => `
      let lastToken = min((firstRow + ${rows - 1}u) / uniforms.group, uniforms.queries - 1u);
      let wrapped = uniforms.recent != 0u && seen > uniforms.sinks + uniforms.recent;
      var low = u32(max(first + i32(firstRow / uniforms.group) - uniforms.left, 0));
      var high = u32(clamp(first + i32(min(lastToken, max(valid, 1u) - 1u)) + 1 + uniforms.right, 0, i32(length)));
      if (wrapped) { low = 0u; high = length; }
      low = min(max(low, min(uniforms.sinkTokens, high)), high);
      let lead = min(uniforms.sinkTokens, low);
      let count = uniforms.extraRows + ${chosen ? 'uniforms.chosenPages * uniforms.pageTokens' : 'lead + high - low'};`;
