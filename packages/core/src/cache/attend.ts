import { planDecode } from '../attention/decode.js';
import { attentionWithLse } from '../attention/index.js';
import { runDecodeMerge } from '../attention/kernels/decode-merge.js';
import { rowItems } from '../attention/problem.js';
import type { FloatDType } from '../dtype.js';
import type { AttendOptions } from '../seams/kv.js';
import { asContiguous, copyContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { f16Codec } from './codec.js';
import type { GroupSizes, KvGroup } from './group.js';
import { attendGroup, type AttendValues } from './kernels/attend.js';
import { decodeGroup } from './kernels/decode.js';
import { decodeGroupEven, stepsInPages } from './kernels/decode-even.js';
import { gatherRows } from './kernels/gather.js';
import { planAttend, splitKeysOf } from './plan.js';

/** No limit on this side of a query. */
const unbounded = 2 ** 29;

/** What a cache knows of its sequences. */
export interface SeenTokens {
  seen: number;
  /** Entries may hold different numbers of tokens: a padded append came in. */
  uneven: boolean;
  /** The queries are those of a padded append: each entry has its own number of them. */
  padded: boolean;
}

/** Output and logsumexp of the newest tokens' queries over the rows of all groups. */
export function attendStored(
  groups: readonly KvGroup[],
  sizes: GroupSizes,
  state: SeenTokens,
  q: Tensor,
  options: AttendOptions,
): readonly [Tensor, Tensor] {
  const { device } = q;
  const { kvHeads, headDim, valueDim } = sizes;
  const [batch = 0, queries = 0, heads = 0] = q.shape;
  // most rows that the queries see in a group
  const { window, pages } = options;
  const visible = groups.map((group) => {
    const { view } = group;
    const stored = pages ? pages.dim(2) * view.pageTokens : Math.min(state.seen, view.rows);
    return (
      (dropped(group, state) ? (group.stages.rows?.extraRows ?? 0) : 0) +
      (window === undefined || pages ? stored : Math.min(stored, window + queries + (options.sinkTokens ?? 0)))
    );
  });
  const shape = { batch, queries, group: heads / kvHeads, kvHeads, keys: Math.max(...visible), headDim, software: device.isSoftware };
  const plan = planAttend(shape);
  if (plan.dense && !state.uneven && !pages) return attendDense(groups, sizes, state.seen, q, options);
  const out = empty(device, [batch, queries, heads, valueDim], q.dtype);
  const lse = empty(device, [batch, queries, heads]);
  if (out.size === 0) return [out, lse];
  const decode = planDecode({ ...shape, batch, valueDim }, device.capabilities, { software: device.isSoftware });
  const { splits } = decode ?? plan;
  const parts = empty(device, [lse.size * splits, 4 * (Math.ceil(valueDim / 4) + 1)]);
  const rows = decode && rowItems([q], 4) !== 4 ? copyContiguous(q) : q;
  groups.forEach((group, g) => {
    const values: AttendValues = {
      extra: dropped(group, state),
      rows: plan.rows,
      tiles: plan.tiles,
      splits,
      splitKeys: decode ? Math.max(1, Math.ceil((visible[g] ?? 0) / splits)) : splitKeysOf(visible[g] ?? 0, splits),
      padded: state.padded,
      left: window === undefined ? unbounded : window - 1,
      right: (options.causal ?? true) ? 0 : unbounded,
      sinkTokens: options.sinkTokens ?? 0,
      scale: options.scale ?? 1 / Math.sqrt(headDim),
      softcap: options.softcap,
      pages: pages && asContiguous(pages, 1),
    };
    const even = decode && stepsInPages(decode, group.view.pageTokens) && evenGroup(group, state, q, options);
    if (decode && even) decodeGroupEven(device, group, rows, parts, decode, { count: visible[g] ?? 0, scale: values.scale });
    else if (decode) decodeGroup(device, group, rows, parts, decode, values);
    else attendGroup(device, group, rows, parts, values);
  });
  runDecodeMerge(device, parts, splits, out, lse);
  return [out, lse];
}

/** One query of every entry sees all rows of halves, which lie in the order of their tokens. */
function evenGroup({ view, placement }: KvGroup, state: SeenTokens, q: Tensor, options: AttendOptions): boolean {
  const { window, pages, softcap } = options;
  return (
    q.dim(1) === 1 &&
    !state.uneven &&
    !state.padded &&
    state.seen > 0 &&
    state.seen <= view.rows &&
    (window === undefined || window >= state.seen) &&
    pages === undefined &&
    softcap === undefined &&
    placement === undefined &&
    view.keyCodec === f16Codec &&
    view.valueCodec === f16Codec &&
    rowItems([q], 8) === 8
  );
}

/** Rows may have left: before that a group equals a dense one, bit for bit. */
function dropped({ view }: KvGroup, { seen }: SeenTokens): boolean {
  return view.recent > 0 && seen > view.rows;
}

/** Long pieces of queries: stored rows are decoded once and the attention engine runs over them. */
function attendDense(
  groups: readonly KvGroup[],
  sizes: GroupSizes,
  seen: number,
  q: Tensor,
  options: AttendOptions,
): readonly [Tensor, Tensor] {
  const { causal = true, window, sinkTokens = 0, scale, softcap } = options;
  const [batch = 0, queries = 0] = q.shape;
  // rows before the first query's window are not read
  const first = window === undefined || sinkTokens > 0 ? 0 : Math.max(0, seen - queries - window + 1);
  const plain = groups.every(({ view }) => view.keyCodec === f16Codec && view.valueCodec === f16Codec);
  const dtype = plain && sizes.headDim % 4 === 0 && sizes.valueDim % 4 === 0 ? 'f16' : 'f32';
  const { k, v } = denseRows(groups, sizes, { batch, first, rows: seen - first, dtype });
  const { out, lse } = attentionWithLse(q, k, v, {
    causal,
    ...(window !== undefined && { window, sinkTokens }),
    ...(scale !== undefined && { scale }),
    ...(softcap !== undefined && { softcap }),
  });
  return [out, lse];
}

/** Rows `first` .. `first` + `rows` - 1 of every head, [batch, rows, kvHeads, dim]; zeros where a head has fewer. */
export function denseRows(
  groups: readonly KvGroup[],
  { kvHeads, headDim, valueDim }: GroupSizes,
  { batch, first, rows, dtype }: { batch: number; first: number; rows: number; dtype: FloatDType },
): { k: Tensor; v: Tensor } {
  const device = groups[0]?.view.device;
  if (!device) throw new Error('a cache has a head group');
  const k = empty(device, [batch, rows, kvHeads, headDim], dtype);
  const v = empty(device, [batch, rows, kvHeads, valueDim], dtype);
  for (const { view } of groups) gatherRows(device, view, k, v, first);
  return { k, v };
}
