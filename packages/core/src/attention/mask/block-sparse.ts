import { HeedError } from '../../errors.js';
import { capture, uniform } from '../../kernel/expr/index.js';
import type { Expr } from '../../kernel/expr/index.js';
import { expectCount } from './basic.js';
import { h, kv, maskFrom, q } from './mask.js';
import { below, randomWords } from './random-words.js';
import { appendSpan, NOTHING } from './spans.js';
import type { AttentionLengths, Coverage, Mask, Region } from './types.js';

// Block-sparse masks: a grid of query blocks x key blocks of which some are visible, chosen on the host. Selections made on the device
// are another form (BlockSelection), without a host twin.

/** Which blocks of a grid are visible: one bit a block, row by row, key block 32 i + j in bit j of word i. */
export interface BlockGrid {
  /** Ends of the query blocks and of the key blocks, ascending; the first starts at 0. */
  readonly queryEnds: Uint32Array;
  readonly keyEnds: Uint32Array;
  /** Selections; 1 serves all heads. */
  readonly heads: number;
  /** [heads, query blocks, ceil(key blocks / 32)] */
  readonly words: Uint32Array;
  /** Set when all blocks but the last have this edge, so that kernels divide instead of looking blocks up. */
  readonly blockSize?: number;
}

/** Words a row of a grid takes. */
function wordsPerRow(grid: Pick<BlockGrid, 'keyEnds'>): number {
  return Math.ceil(grid.keyEnds.length / 32);
}

/**
 * A mask from a selection of blocks.
 * @throws HeedError SHAPE_MISMATCH when the words do not fit the grid
 */
export function blockGrid(grid: BlockGrid): Mask {
  const rows = grid.queryEnds.length;
  const width = wordsPerRow(grid);
  if (rows === 0 || width === 0 || grid.words.length !== grid.heads * rows * width) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `blockGrid: ${grid.words.length} words for ${grid.heads} heads of ${rows} x ${grid.keyEnds.length} blocks; give heads x rows x ceil(columns / 32)`,
    );
  }
  const names = {
    blockRows: rows,
    blockWords: width,
    blockQueries: grid.queryEnds[rows - 1]!,
    blockKeys: grid.keyEnds[grid.keyEnds.length - 1]!,
  };
  const uniforms: Record<string, number> = grid.blockSize === undefined ? names : { ...names, blockSize: grid.blockSize };
  const captures: Record<string, Uint32Array> = { blockBits: grid.words };
  let row: Expr<'i32'>;
  let column: Expr<'i32'>;
  if (grid.blockSize === undefined) {
    captures['blockOfQuery'] = blockOfToken(grid.queryEnds);
    captures['blockOfKey'] = blockOfToken(grid.keyEnds);
    row = capture('blockOfQuery', 'u32').at(q).i32();
    column = capture('blockOfKey', 'u32').at(kv).i32();
  } else {
    row = q.div(uniform('blockSize', 'i32'));
    column = kv.div(uniform('blockSize', 'i32'));
  }
  if (grid.heads > 1) row = h.mul(uniform('blockRows', 'i32')).add(row);
  const word = capture('blockBits', 'u32').at(row.mul(uniform('blockWords', 'i32')).add(column.shr(5)));
  const inside = q
    .ge(0)
    .and(q.lt(uniform('blockQueries', 'i32')))
    .and(kv.lt(uniform('blockKeys', 'i32')));
  return maskFrom({
    predicate: inside.and(word.shr(column.and(31).u32()).and(1).ne(0)),
    uniforms,
    captures,
    perHead: grid.heads > 1,
    pattern: { keys: (region) => coverage(grid, region, false), queries: (region) => coverage(grid, region, true) },
    area: (lengths, head) => area(grid, lengths, head),
  });
}

function blockOfToken(ends: Uint32Array): Uint32Array {
  const blocks = new Uint32Array(ends[ends.length - 1]!);
  ends.forEach((end, i) => blocks.fill(i, i === 0 ? 0 : ends[i - 1]!, end));
  return blocks;
}

/** Index of the block that holds a position. */
function blockAt(ends: Uint32Array, position: number): number {
  let low = 0;
  let high = ends.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ends[middle]! > position) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** Bits of a row of the grid, or of a column, that all and that any of a range of the other axis have. */
function coverage(grid: BlockGrid, region: Region, transposed: boolean): Coverage {
  const [asking, answering] = transposed ? [grid.keyEnds, grid.queryEnds] : [grid.queryEnds, grid.keyEnds];
  const low = Math.max(0, region.low);
  const high = Math.min(asking[asking.length - 1]!, region.high);
  const to = Math.min(region.to, answering[answering.length - 1]!);
  const from = Math.max(0, region.from);
  if (low >= high || from >= to) return NOTHING;
  const whole = low === region.low && high === region.high;
  const [first, last] = [blockAt(asking, low), blockAt(asking, high - 1)];
  const all: number[] = [];
  const some: number[] = [];
  const base = (grid.heads > 1 ? region.head : 0) * grid.queryEnds.length;
  const width = wordsPerRow(grid);
  const stop = blockAt(answering, to - 1);
  for (let other = blockAt(answering, from); other <= stop; other++) {
    let any = false;
    let every = whole;
    for (let mine = first; mine <= last; mine++) {
      const [row, column] = transposed ? [other, mine] : [mine, other];
      const bit = (grid.words[(base + row) * width + (column >>> 5)]! >>> (column & 31)) & 1;
      any ||= bit === 1;
      every &&= bit === 1;
    }
    if (!any) continue;
    const start = Math.max(from, other === 0 ? 0 : answering[other - 1]!);
    const end = Math.min(to, answering[other]!);
    appendSpan(some, start, end);
    if (every) appendSpan(all, start, end);
  }
  return { all, some };
}

function area(grid: BlockGrid, { queries, keys, offset }: Required<AttentionLengths>, head: number): number {
  const width = wordsPerRow(grid);
  const base = (grid.heads > 1 ? head : 0) * grid.queryEnds.length;
  const size = (ends: Uint32Array, i: number, from: number, to: number): number =>
    Math.max(0, Math.min(ends[i]!, to) - Math.max(i === 0 ? 0 : ends[i - 1]!, from));
  let pairs = 0;
  for (let row = 0; row < grid.queryEnds.length; row++) {
    const height = size(grid.queryEnds, row, offset, offset + queries);
    if (height === 0) continue;
    let seen = 0;
    for (let column = 0; column < grid.keyEnds.length; column++) {
      if ((grid.words[(base + row) * width + (column >>> 5)]! >>> (column & 31)) & 1) seen += size(grid.keyEnds, column, 0, keys);
    }
    pairs += height * seen;
  }
  return pairs;
}

/** What the random block masks of LongCA-bench take. */
export interface RandomBlocks {
  readonly queries: number;
  readonly keys: number;
  /** Share of the blocks that is kept (the density), in (0, 1]. */
  readonly ratio: number;
  /** Philox seed. */
  readonly seed: number;
  /** Heads with a selection of their own; default 1, shared by all heads. */
  readonly heads?: number;
  /** `row`: every query block keeps the same number of key blocks, at least 1. `head`: the share holds for the head; rows may be empty. Default `row`. */
  readonly scope?: 'row' | 'head';
}

/**
 * Random selection on a uniform grid of blocks. LongCA-bench mask 13.
 * @param options.blockSize edge of a block in tokens (the bench: 64 or 128)
 * @param options.ratio share of blocks kept, in (0, 1]
 * @param options.seed Philox seed: the same blocks on every machine
 * @throws HeedError INVALID_ARGUMENT for another block size, ratio or seed
 */
export function uniformBlockSparse(options: RandomBlocks & { readonly blockSize: number }): Mask {
  expectCount('uniformBlockSparse', 'blockSize', options.blockSize, 1);
  const ends = (tokens: number): Uint32Array =>
    Uint32Array.from({ length: Math.ceil(tokens / options.blockSize) }, (_, i) => Math.min(tokens, (i + 1) * options.blockSize));
  const grid = checked('uniformBlockSparse', options, ends(options.queries), ends(options.keys));
  return blockGrid({ ...grid, blockSize: options.blockSize });
}

/**
 * Random selection on a grid whose rows and columns have random lengths. LongCA-bench mask 14.
 * @param options.meanBlock mean length of a block in tokens; lengths are uniform in [minBlock, 2 meanBlock - minBlock], the last is cut
 * @param options.minBlock least length; default 128, or meanBlock where that is less
 * @param options.ratio share of blocks kept, in (0, 1]
 * @param options.seed Philox seed: the same blocks on every machine
 * @throws HeedError INVALID_ARGUMENT for other lengths, ratio or seed
 */
export function variableBlockSparse(options: RandomBlocks & { readonly meanBlock: number; readonly minBlock?: number }): Mask {
  const { meanBlock, minBlock = Math.min(128, meanBlock) } = options;
  expectCount('variableBlockSparse', 'minBlock', minBlock, 1);
  expectCount('variableBlockSparse', 'meanBlock', meanBlock, minBlock);
  const next = randomWords(options.seed, 0xb10c);
  const ends = (tokens: number): Uint32Array => {
    const found: number[] = [];
    for (let at = 0; at < tokens;) found.push((at = Math.min(tokens, at + minBlock + below(next, 2 * (meanBlock - minBlock) + 1))));
    return Uint32Array.from(found);
  };
  const queryEnds = ends(options.queries);
  return blockGrid(checked('variableBlockSparse', options, queryEnds, ends(options.keys)));
}

function checked(who: string, options: RandomBlocks, queryEnds: Uint32Array, keyEnds: Uint32Array): BlockGrid {
  const { queries, keys, ratio, seed, heads = 1, scope = 'row' } = options;
  expectCount(who, 'queries', queries, 1);
  expectCount(who, 'keys', keys, 1);
  expectCount(who, 'heads', heads, 1);
  if (!(ratio > 0 && ratio <= 1))
    throw new HeedError('INVALID_ARGUMENT', `${who}: ratio is ${ratio}; it is the share of blocks kept, use a number in (0, 1]`);
  if (!Number.isSafeInteger(seed) || seed < 0) throw new HeedError('INVALID_ARGUMENT', `${who}: seed is ${seed}; use a whole number`);
  const [rows, columns] = [queryEnds.length, keyEnds.length];
  const width = Math.ceil(columns / 32);
  const words = new Uint32Array(heads * rows * width);
  const set = (head: number, row: number, column: number): void => {
    words[(head * rows + row) * width + (column >>> 5)]! |= 1 << (column & 31);
  };
  for (let head = 0; head < heads; head++) {
    const next = randomWords(seed, head);
    if (scope === 'head') {
      for (const block of subset(next, rows * columns, Math.round(ratio * rows * columns)))
        set(head, Math.floor(block / columns), block % columns);
    } else {
      const kept = Math.max(1, Math.round(ratio * columns));
      for (let row = 0; row < rows; row++) for (const column of subset(next, columns, kept)) set(head, row, column);
    }
  }
  return { queryEnds, keyEnds, heads, words };
}

/** A uniformly random subset: what the greatest of independent random scores select. Partial Fisher-Yates shuffle. */
function subset(next: () => number, count: number, kept: number): Uint32Array {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = 0; i < kept; i++) {
    const j = i + below(next, count - i);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order.subarray(0, kept);
}
