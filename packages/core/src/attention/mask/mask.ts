import { HeedError } from '../../errors.js';
import { compile, freeNames, key, variable } from '../../kernel/expr/index.js';
import type { Expr } from '../../kernel/expr/index.js';
import { conjunction, disjunction, negation } from './combine.js';
import { predicatePattern } from './predicate-pattern.js';
import { intersectSpans, sizeOfSpans, complementSpans, tilesOf } from './spans.js';
import type { AttentionLengths, CaptureSource, Mask, MaskPattern, Region, Run, TileSizes } from './types.js';

/** Batch entry, query head, query position and key position: the variables of every predicate. */
export const b: Expr<'i32'> = /* @__PURE__ */ variable('b', 'i32');
export const h: Expr<'i32'> = /* @__PURE__ */ variable('h', 'i32');
export const q: Expr<'i32'> = /* @__PURE__ */ variable('q', 'i32');
export const kv: Expr<'i32'> = /* @__PURE__ */ variable('kv', 'i32');

/** What a mask is made of. */
export interface MaskDefinition {
  /** Visibility in the i32 variables b, h, q, kv of this module. */
  readonly predicate: Expr<'bool'>;
  readonly uniforms?: Readonly<Record<string, number>>;
  readonly captures?: Readonly<Record<string, CaptureSource>>;
  /** Without one the predicate is classified by interval arithmetic: right for every predicate, at O(tiles) a row. */
  readonly pattern?: MaskPattern;
  /** Default: whether the predicate reads `h`, `b`. */
  readonly perHead?: boolean;
  readonly perBatch?: boolean;
  /** A faster exact count of visible pairs. */
  readonly area?: (lengths: Required<AttentionLengths>, head: number, batch: number) => number;
}

/** Whether a captured array can be read here. */
export function onHost(source: CaptureSource): source is Int32Array | Uint32Array | Float32Array {
  return ArrayBuffer.isView(source);
}

function expectTokens(name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least)
    throw new HeedError('INVALID_ARGUMENT', `mask: ${name} is ${value}; give a whole number of tokens`);
}

/** Lengths with their offset: bottom-right alignment by default. */
export function withOffset(lengths: AttentionLengths): Required<AttentionLengths> {
  const { queries, keys, offset = keys - queries } = lengths;
  expectTokens('queries', queries, 0);
  expectTokens('keys', keys, 0);
  expectTokens('offset', offset, -Infinity);
  return { queries, keys, offset };
}

/**
 * A mask from its predicate and, for speed, its pattern.
 * @throws HeedError INVALID_ARGUMENT when the predicate has names without a value, or variables other than b, h, q, kv
 */
export function maskFrom(definition: MaskDefinition): Mask {
  const { predicate, uniforms = {}, captures = {} } = definition;
  const free = freeNames(predicate);
  for (const { name, type } of free.variables) {
    if (!['b', 'h', 'q', 'kv'].includes(name) || type !== 'i32') {
      throw new HeedError('INVALID_ARGUMENT', `mask: the predicate reads ${type} "${name}"; its variables are i32 b, h, q and kv`);
    }
  }
  for (const { name } of free.uniforms) {
    if (uniforms[name] === undefined) throw new HeedError('INVALID_ARGUMENT', `mask: uniform "${name}" has no value; give it in uniforms`);
  }
  for (const { name } of free.captures) {
    if (captures[name] === undefined) throw new HeedError('INVALID_ARGUMENT', `mask: capture "${name}" has no array; give it in captures`);
  }
  const reads = (name: string): boolean => free.variables.some((v) => v.name === name);
  const parts = { predicate, uniforms, captures, perHead: definition.perHead ?? reads('h'), perBatch: definition.perBatch ?? reads('b') };
  const pattern = definition.pattern ?? predicatePattern(predicate, uniforms, captures);
  let closure: ((...values: number[]) => number) | undefined;
  const mask: Mask = {
    ...parts,
    key: key(predicate),
    pattern,
    visible: (batch, head, query, keyPosition) => {
      closure ??= hostPredicate(mask);
      return closure(batch, head, query, keyPosition) !== 0;
    },
    runs: (head, queryTile, tiles, lengths, batch = 0) => keyRuns(pattern, { head, batch }, queryTile, tiles, withOffset(lengths)),
    transposedRuns: (head, keyTile, tiles, lengths, batch = 0) => queryRuns(pattern, { head, batch }, keyTile, tiles, withOffset(lengths)),
    area: (lengths, head = 0, batch = 0) => {
      const resolved = withOffset(lengths);
      return definition.area?.(resolved, head, batch) ?? countPairs(mask, resolved, head, batch);
    },
    and: (other) => conjunction(mask, other, maskFrom),
    or: (other) => disjunction(mask, other, maskFrom),
    not: () => negation(mask, maskFrom),
  };
  return mask;
}

function hostPredicate(mask: Mask): (...values: number[]) => number {
  const arrays: Record<string, ArrayLike<number>> = {};
  for (const [name, source] of Object.entries(mask.captures)) {
    if (!onHost(source)) {
      throw new HeedError(
        'UNSUPPORTED',
        `mask: "${name}" is a tensor on the device, so single pairs are unknown here; read it and build the mask from the array`,
      );
    }
    arrays[name] = source;
  }
  return compile(mask.predicate, ['b', 'h', 'q', 'kv'], { uniforms: mask.uniforms, captures: arrays });
}

type Place = Pick<Region, 'head' | 'batch'>;

function keyRuns(
  pattern: MaskPattern,
  place: Place,
  tile: number,
  tiles: TileSizes,
  { queries, keys, offset }: Required<AttentionLengths>,
): Run[] {
  const low = tile * tiles.query;
  const high = Math.min(low + tiles.query, queries);
  if (low >= high || keys === 0) return [];
  const coverage = pattern.keys({
    batch: place.batch,
    head: place.head,
    low: low + offset,
    high: high + offset,
    from: 0,
    to: keys,
    grain: tiles.key,
  });
  return tilesOf(coverage, tiles.key, 0, high - low === tiles.query);
}

function queryRuns(
  pattern: MaskPattern,
  place: Place,
  tile: number,
  tiles: TileSizes,
  { queries, keys, offset }: Required<AttentionLengths>,
): Run[] {
  const low = tile * tiles.key;
  const high = Math.min(low + tiles.key, keys);
  if (low >= high || queries === 0) return [];
  const coverage = pattern.queries({
    batch: place.batch,
    head: place.head,
    low,
    high,
    from: offset,
    to: offset + queries,
    grain: tiles.query,
  });
  return tilesOf(coverage, tiles.query, offset, high - low === tiles.key);
}

/** Row by row; a pattern's answer for one row is exact, and where it leaves doubt the predicate decides. */
function countPairs(mask: Mask, { queries, keys, offset }: Required<AttentionLengths>, head: number, batch: number): number {
  if (keys === 0) return 0;
  let pairs = 0;
  for (let row = offset; row < offset + queries; row++) {
    const { all, some } = mask.pattern.keys({ batch, head, low: row, high: row + 1, from: 0, to: keys, grain: 1 });
    pairs += sizeOfSpans(all);
    const doubt = intersectSpans(some, complementSpans(all, 0, keys));
    for (let i = 0; i < doubt.length; i += 2) {
      for (let j = doubt[i]!; j < doubt[i + 1]!; j++) if (mask.visible(batch, head, row, j)) pairs++;
    }
  }
  return pairs;
}
