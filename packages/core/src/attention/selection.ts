import { HeedError } from '../errors.js';
import type { Operand } from '../kernel/bindings.js';
import { asContiguous } from '../tensor/copy.js';
import { zeros } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { packExtras } from './extras.js';
import { runTransposeSelection } from './kernels/selection.js';
import type { AttentionSizes } from './problem.js';

/**
 * Key blocks that each query block sees, chosen on the device: the same kernels take them, no read-back. Rows are shared by all
 * query heads (heads 1), by those of a KV head, or one a query head. Blocks may be rectangular; the last of each axis may be short.
 */
export type BlockSelection = {
  /** Query and key tokens a block. */
  blockQueries: number;
  blockKeys: number;
} & (
  | {
      /** Ids of key blocks, u32 or i32 [batch or 1, heads, query blocks, width], distinct within a row; ids out of range (-1) are unused. */
      ids: Tensor;
      /** Entries of each row that count, u32 or i32 [batch or 1, heads, query blocks]; more than the width count as the width. Default: all. */
      counts?: Tensor;
    }
  | {
      /** Bit i % 32 of word i / 32 says that key block i is seen: u32 [batch or 1, heads, query blocks, ceil(key blocks / 32)]. */
      bits: Tensor;
    }
);

/** How a selection lies, checked against the sizes of a call. */
export interface SelectionLayout {
  kind: 'ids' | 'bits';
  blockQueries: number;
  blockKeys: number;
  queryBlocks: number;
  keyBlocks: number;
  /** Stored batch entries, heads and words a row. */
  batches: number;
  heads: number;
  words: number;
  /** ids and counts, or bits: kept until the backward. */
  tensors: Tensor[];
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT */
export function checkSelection(who: string, selection: BlockSelection, sizes: AttentionSizes): SelectionLayout {
  const { blockQueries, blockKeys } = selection;
  for (const [name, edge] of [['blockQueries', blockQueries] as const, ['blockKeys', blockKeys] as const])
    if (!Number.isInteger(edge) || edge < 1)
      throw new HeedError('INVALID_ARGUMENT', `${who}: ${name} of the selection is ${edge}; blocks have 1 token or more`);
  const queryBlocks = Math.ceil(sizes.queries / blockQueries);
  const keyBlocks = Math.ceil(sizes.keys / blockKeys);
  const list = 'ids' in selection ? selection.ids : selection.bits;
  const name = 'ids' in selection ? 'ids' : 'bits';
  if (list.dtype !== 'u32' && !(name === 'ids' && list.dtype === 'i32'))
    throw new HeedError(
      'DTYPE_MISMATCH',
      `${who}: ${name} of the selection is ${list.dtype}; it must be ${name === 'ids' ? 'u32 or i32' : 'u32'}`,
    );
  const [batches = 0, heads = 0, rows = 0, words = 0] = list.shape;
  const headsFit = heads === 1 || heads === sizes.kvHeads || heads === sizes.heads;
  const wordsFit = name === 'ids' || words === Math.ceil(keyBlocks / 32);
  if (list.rank !== 4 || !(batches === 1 || batches === sizes.batch) || !headsFit || rows !== queryBlocks || !wordsFit)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: ${name} of the selection is ${list.describe()}; it must be [${sizes.batch} or 1, ${sizes.heads}, ${sizes.kvHeads} or 1, ${queryBlocks}, ` +
        `${name === 'ids' ? 'width' : Math.ceil(keyBlocks / 32)}] for ${sizes.queries} queries in blocks of ${blockQueries} and ${sizes.keys} keys in blocks of ${blockKeys}`,
    );
  const counts = 'ids' in selection ? selection.counts : undefined;
  if (counts && counts.dtype !== 'u32' && counts.dtype !== 'i32')
    throw new HeedError('DTYPE_MISMATCH', `${who}: counts of the selection is ${counts.dtype}; it must be u32 or i32`);
  if (counts && counts.shape.join() !== list.shape.slice(0, 3).join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: counts of the selection is ${counts.describe()}; it must be [${list.shape.slice(0, 3).join(', ')}]`,
    );
  return { kind: name, blockQueries, blockKeys, queryBlocks, keyBlocks, batches, heads, words, tensors: counts ? [list, counts] : [list] };
}

/** The words that kernels walk: the buffer, and where counts and rows lie in it. */
export interface SelectionArena {
  operand: Operand;
  rows: number;
  words: number;
  rowsAt: number;
  runsAt: number;
  /** Rows end at a count of their own. */
  counted: boolean;
}

/** Rows of query blocks. Allocates in the current scope where ids and counts are two tensors. */
export function forwardArena(layout: SelectionLayout, [list, counts]: readonly Tensor[]): SelectionArena {
  const rows = { rows: layout.queryBlocks, words: layout.words };
  if (!counts) return { operand: asContiguous(list as Tensor, 1), ...rows, rowsAt: 0, runsAt: 0, counted: false };
  const packed = packExtras(counts.device, [counts, list as Tensor]);
  return { operand: packed.tensor as Tensor, ...rows, rowsAt: packed.at[0] ?? 0, runsAt: packed.at[1] ?? 0, counted: true };
}

/** Rows of key blocks as bits of the query blocks that see them. Allocates in the current scope. */
export function transposedArena(layout: SelectionLayout, tensors: readonly Tensor[]): SelectionArena {
  const { batches, heads, keyBlocks, queryBlocks } = layout;
  const forward = forwardArena(layout, tensors);
  const words = Math.ceil(queryBlocks / 32);
  const device = (tensors[0] as Tensor).device;
  const bits = zeros(device, [batches, heads, keyBlocks, words], { dtype: 'u32' });
  runTransposeSelection(device, layout.kind === 'bits', forward, bits, { rows: batches * heads * queryBlocks, queryBlocks, keyBlocks });
  return { operand: bits, rows: keyBlocks, words, rowsAt: 0, runsAt: 0, counted: false };
}
