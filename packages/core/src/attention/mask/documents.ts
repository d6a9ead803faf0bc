import { HeedError } from '../../errors.js';
import { capture, uniform } from '../../kernel/expr/index.js';
import type { Expr } from '../../kernel/expr/index.js';
import { expectIntegers, unknownCoverage } from './basic.js';
import { b, kv, maskFrom, onHost, q } from './mask.js';
import { appendSpan, clipSpans, NOTHING } from './spans.js';
import type { CaptureSource, Coverage, Mask, MaskPattern, Region, Spans } from './types.js';

// Documents packed in one sequence: `ids[token]` names the document, -1 is padding and sees nothing. Nothing assumes that documents
// are contiguous or ordered; when they are, runs are as tight as the tiles allow.

/** Document ids: one row for all batch entries, or [batch, tokens] flat with `batch` given. */
export interface DocumentIds {
  readonly ids: CaptureSource;
  /** Batch entries in `ids`; default 1, shared by all. */
  readonly batch?: number;
}

/** The tokens of each document of one batch entry. */
export interface DocumentTable {
  /** Spans of each document by id, padding left out. */
  readonly spans: ReadonlyMap<number, Spans>;
  /** Maximal stretches of one id: ends, and ids. */
  readonly ends: Int32Array;
  readonly ids: Int32Array;
  readonly stretchOf: Int32Array;
}

/** More stretches than this of one document are covered by their hull in a run. */
const MAX_SPANS = 64;

function tableOf(ids: Int32Array): DocumentTable {
  const ends: number[] = [];
  const names: number[] = [];
  const spans = new Map<number, number[]>();
  const stretchOf = new Int32Array(ids.length);
  for (let start = 0; start < ids.length;) {
    const id = ids[start]!;
    let end = start + 1;
    while (end < ids.length && ids[end] === id) end++;
    stretchOf.fill(ends.length, start, end);
    ends.push(end);
    names.push(id);
    if (id >= 0) {
      const known = spans.get(id);
      if (known === undefined) spans.set(id, [start, end]);
      else known.push(start, end);
    }
    start = end;
  }
  return { spans, ends: Int32Array.from(ends), ids: Int32Array.from(names), stretchOf };
}

/** Ids of a mask in the form that its parts share: expressions to read them, and tables where the host has them. */
export interface Documents {
  readonly source: CaptureSource;
  readonly tokens: number;
  readonly batch: number;
  /** Id of a position as an expression; only meaningful where `inside` holds. */
  readonly idOf: (position: Expr<'i32'>) => Expr<'i32'>;
  /** Element of another array laid out as the ids. */
  readonly indexOf: (position: Expr<'i32'>) => Expr<'i32'>;
  readonly inside: Expr<'bool'>;
  readonly uniforms: Readonly<Record<string, number>>;
  readonly captures: Readonly<Record<string, CaptureSource>>;
  /** Undefined when the ids live on the device. */
  readonly table: ((batch: number) => DocumentTable) | undefined;
}

/**
 * Read ids given as an array or tensor.
 * @throws HeedError DTYPE_MISMATCH unless i32, SHAPE_MISMATCH when the rows do not divide the array
 */
export function documentsOf(who: string, given: Int32Array | DocumentIds): Documents {
  const { ids: source, batch = 1 } = given instanceof Int32Array ? { ids: given } : given;
  expectIntegers(who, source);
  const count = onHost(source) ? source.length : source.shape.reduce((a, n) => a * n, 1);
  if (!Number.isInteger(batch) || batch < 1 || count % batch !== 0 || count === 0) {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${count} ids for ${batch} batch entries; give [batch, tokens] ids, or one row for all`);
  }
  const tokens = count / batch;
  const width = uniform('documentTokens', 'i32');
  const indexOf = (position: Expr<'i32'>): Expr<'i32'> => (batch === 1 ? position : b.mul(width).add(position));
  const tables = new Map<number, DocumentTable>();
  const table = (entry: number): DocumentTable => {
    const row = batch === 1 ? 0 : Math.min(entry, batch - 1);
    let found = tables.get(row);
    if (found === undefined) tables.set(row, (found = tableOf((source as Int32Array).subarray(row * tokens, (row + 1) * tokens))));
    return found;
  };
  return {
    source,
    tokens,
    batch,
    indexOf,
    idOf: (position) => capture('documents', 'i32').at(indexOf(position)),
    inside: q.ge(0).and(q.lt(width)).and(kv.lt(width)),
    uniforms: { documentTokens: tokens },
    captures: { documents: source },
    table: onHost(source) ? table : undefined,
  };
}

/**
 * Tokens see the tokens of their own document; id -1 is padding, sees nothing and is seen by nothing. LongCA-bench mask 5.
 * @param ids i32 ids, one a token, shared by the batch; `{ ids, batch }` for a row an entry. With a tensor every tile is listed as
 *   partial, for the host does not know the ids.
 * @throws HeedError DTYPE_MISMATCH, SHAPE_MISMATCH
 */
export function document(ids: Int32Array | DocumentIds): Mask {
  return sameDocument(documentsOf('document', ids));
}

/** The mask of equal ids. */
export function sameDocument(documents: Documents): Mask {
  const { idOf, inside, uniforms, captures, table } = documents;
  return maskFrom({
    predicate: inside.and(idOf(q).ge(0)).and(idOf(q).eq(idOf(kv))),
    uniforms,
    captures,
    pattern: table === undefined ? { keys: unknownCoverage, queries: unknownCoverage } : documentPattern(documents.tokens, table),
  });
}

function documentPattern(tokens: number, table: (batch: number) => DocumentTable): MaskPattern {
  const coverage = (region: Region): Coverage => {
    const low = Math.max(0, region.low);
    const high = Math.min(tokens, region.high);
    if (low >= high) return NOTHING;
    const { stretchOf, ids, spans } = table(region.batch);
    const first = stretchOf[low]!;
    const last = stretchOf[high - 1]!;
    if (first === last) {
      const mine = spans.get(ids[first]!);
      if (mine === undefined) return NOTHING;
      const some = clipped(mine, region);
      const whole = low === region.low && high === region.high;
      return { all: whole ? (mine.length <= 2 * MAX_SPANS ? some : []) : [], some };
    }
    return { all: [], some: ofSeveral(ids.subarray(first, last + 1), spans, region) };
  };
  return { keys: coverage, queries: coverage };
}

function ofSeveral(ids: Int32Array, spans: ReadonlyMap<number, Spans>, region: Region): Spans {
  const pieces: [number, number][] = [];
  for (const id of new Set(ids)) {
    const part = clipped(spans.get(id) ?? [], region);
    for (let i = 0; i < part.length; i += 2) pieces.push([part[i]!, part[i + 1]!]);
  }
  const out: number[] = [];
  for (const [start, end] of pieces.sort((x, y) => x[0] - y[0])) appendSpan(out, start, end);
  return out;
}

/** Inside the region; the hull where the document is scattered. */
function clipped(spans: Spans, { from, to }: Region): Spans {
  const inside = clipSpans(spans, from, to);
  return inside.length <= 2 * MAX_SPANS ? inside : [inside[0]!, inside[inside.length - 1]!];
}
