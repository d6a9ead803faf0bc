import { HeedError } from '../../errors.js';
import { bool, capture, uniform } from '../../kernel/expr/index.js';
import { b, kv, maskFrom, onHost, q } from './mask.js';
import { clipSpans, NOTHING, span, spansContain } from './spans.js';
import type { CaptureSource, Coverage, Mask, MaskPattern, Region } from './types.js';

const every = ({ from, to }: Region): Coverage => ({ all: [from, to], some: [from, to] });
/** The answer for arrays that only the device knows: anything may be visible. */
export const unknownCoverage = ({ from, to }: Region): Coverage => ({ all: [], some: [from, to] });

/**
 * Queries see keys from q - left to q + right; infinite where a side is open.
 * @param left keys back, `Infinity` where the side is open
 * @param right keys ahead, `Infinity` where the side is open
 */
export function bandPattern(left: number, right: number): MaskPattern {
  const band =
    (before: number, after: number) =>
    (region: Region): Coverage => ({
      all: span(region.high - 1 - before, region.low + after + 1, region.from, region.to),
      some: span(region.low - before, region.high + after, region.from, region.to),
    });
  return { keys: band(left, right), queries: band(right, left) };
}

export function expectCount(who: string, name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least || value > 2 ** 30) {
    throw new HeedError('INVALID_ARGUMENT', `${who}: ${name} is ${value}; use a whole number of at least ${least}`);
  }
}

/** Every query sees every key. */
export function full(): Mask {
  return maskFrom({
    predicate: bool(true),
    pattern: { keys: every, queries: every },
    area: ({ queries, keys }) => queries * keys,
  });
}

/**
 * Query position q sees keys up to q. When queries and keys differ in number the last query lines up with the last key (bottom-right),
 * since q = row + keys - queries; pass `offset` in the lengths of a call for another alignment.
 * @param options.offset keys seen beyond the own position; default 0
 * @throws HeedError INVALID_ARGUMENT for an offset that is no whole number
 */
export function causal(options: { offset?: number } = {}): Mask {
  const { offset } = options;
  if (offset !== undefined && !Number.isInteger(offset))
    throw new HeedError('INVALID_ARGUMENT', `causal: offset is ${offset}; use a whole number of tokens`);
  const shift = offset ?? 0;
  return maskFrom({
    predicate: offset === undefined ? kv.le(q) : kv.sub(q).le(uniform('causalOffset', 'i32')),
    uniforms: offset === undefined ? {} : { causalOffset: shift },
    pattern: bandPattern(Infinity, shift),
    area: (lengths) => staircase(lengths.offset + shift, lengths.queries, lengths.keys),
  });
}

/** Sum over rows r of clamp(first + r + 1, 0, keys). */
function staircase(first: number, rows: number, keys: number): number {
  const empty = Math.min(rows, Math.max(0, -first));
  const rising = Math.max(0, Math.min(rows, keys - first - 1) - empty);
  const start = first + empty + 1;
  const whole = rows - empty - rising;
  return rising * start + (rising * (rising - 1)) / 2 + whole * keys;
}

/**
 * Sliding window; `window` counts the keys that a query sees inside a long sequence, its own included.
 * @param options.window keys, 1 or more
 * @param options.causal the window ends at the query itself; default false: it reaches floor(window / 2) keys back and the rest
 *   ahead, so an even window reaches one further back (as neighborhood attention). Windows are cut at the ends, not shifted.
 * @throws HeedError INVALID_ARGUMENT for another window
 */
export function slidingWindow(options: { window: number; causal?: boolean }): Mask {
  const { window, causal: oneSided = false } = options;
  expectCount('slidingWindow', 'window', window, 1);
  const left = oneSided ? window - 1 : Math.floor(window / 2);
  const right = window - 1 - left;
  const distance = q.sub(kv);
  const back = distance.le(uniform('windowLeft', 'i32'));
  return maskFrom({
    predicate: oneSided ? kv.le(q).and(back) : kv.sub(q).le(uniform('windowRight', 'i32')).and(back),
    uniforms: oneSided ? { windowLeft: left } : { windowLeft: left, windowRight: right },
    pattern: bandPattern(left, right),
    area: ({ queries, keys, offset }) => staircase(offset + right, queries, keys) - staircase(offset - left - 1, queries, keys),
  });
}

/**
 * The first `count` keys are visible to every query: sink tokens, a prefix.
 * @param count tokens, a whole number of 0 or more
 * @throws HeedError INVALID_ARGUMENT for another count
 */
export function sinks(count: number): Mask {
  expectCount('sinks', 'count', count, 0);
  return maskFrom({
    predicate: kv.lt(uniform('sinks', 'i32')),
    uniforms: { sinks: count },
    pattern: axisPattern('key', () => (count > 0 ? [0, count] : [])),
    area: ({ queries, keys }) => queries * Math.min(keys, count),
  });
}

/**
 * Queries at positions below `count` see every key: global rows.
 * @param count tokens, a whole number of 0 or more
 * @throws HeedError INVALID_ARGUMENT for another count
 */
export function leadingQueries(count: number): Mask {
  expectCount('leadingQueries', 'count', count, 0);
  return maskFrom({
    predicate: q.lt(uniform('leadingQueries', 'i32')),
    uniforms: { leadingQueries: count },
    pattern: axisPattern('query', () => [Number.MIN_SAFE_INTEGER, count]),
    area: ({ queries, keys, offset }) => Math.min(queries, Math.max(0, count - offset)) * keys,
  });
}

/**
 * Visibility that depends on one token only: keys of a set are seen by all, or queries of a set see all.
 * @param of the spans of the set, sorted, for a batch entry
 */
export function axisPattern(axis: 'query' | 'key', of: (batch: number) => readonly number[]): MaskPattern {
  const members = ({ batch, from, to }: Region): Coverage => {
    const inside = clipSpans(of(batch), from, to);
    return { all: inside, some: inside };
  };
  const whole = (region: Region): Coverage => {
    const spans = of(region.batch);
    if (clipSpans(spans, region.low, region.high).length === 0) return NOTHING;
    return spansContain(spans, region.low, region.high) ? every(region) : unknownCoverage(region);
  };
  return axis === 'key' ? { keys: members, queries: whole } : { keys: whole, queries: members };
}

/**
 * Causal, and keys before `prefix` are visible to all: a bidirectional prefix. LongCA-bench mask 10.
 * @param prefix tokens, a whole number of 0 or more
 * @throws HeedError INVALID_ARGUMENT for another prefix
 */
export function prefixLm(prefix: number): Mask {
  return causal().or(sinks(prefix));
}

/**
 * |q - kv| <= distance, and the first 2 distance rows and columns are global. LongCA-bench mask 8 (its predicate, not its slices).
 * @param distance in tokens, >= 1; the bench draws it from [1, tokens / 3 - 1]
 * @throws HeedError INVALID_ARGUMENT for another distance
 */
export function globalSlidingWindow(distance: number): Mask {
  expectCount('globalSlidingWindow', 'distance', distance, 1);
  return slidingWindow({ window: 2 * distance + 1 })
    .or(leadingQueries(2 * distance))
    .or(sinks(2 * distance));
}

/**
 * Keys of later blocks of `block` tokens are hidden, the own block is visible whole: floor(kv / block) <= floor(q / block).
 * @param block tokens, 1 or more
 * @throws HeedError INVALID_ARGUMENT for another block
 */
export function blockCausal(block: number): Mask {
  expectCount('blockCausal', 'block', block, 1);
  const edge = uniform('causalBlock', 'i32');
  const blockOf = (position: number): number => Math.floor(position / block);
  return maskFrom({
    predicate: q.ge(0).and(kv.div(edge).le(q.div(edge))),
    uniforms: { causalBlock: block },
    pattern: {
      keys: ({ low, high, from, to }) => ({
        all: low < 0 ? [] : span(0, (blockOf(low) + 1) * block, from, to),
        some: high <= 0 ? [] : span(0, (blockOf(high - 1) + 1) * block, from, to),
      }),
      queries: ({ low, high, from, to }) => ({
        all: span(blockOf(high - 1) * block, Infinity, from, to),
        some: span(blockOf(low) * block, Infinity, from, to),
      }),
    },
  });
}

/**
 * Keys beyond the valid length of a batch entry are hidden: kv < lengths[b].
 * @param valid i32 [batch]; on the host, or a tensor (then every tile is listed as partial)
 */
export function lengths(valid: CaptureSource): Mask {
  expectIntegers('lengths', valid);
  const predicate = kv.lt(capture('lengths', 'i32').at(b));
  if (!onHost(valid))
    return maskFrom({ predicate, captures: { lengths: valid }, pattern: { keys: unknownCoverage, queries: unknownCoverage } });
  const spans = Array.from(valid, (length) => (length > 0 ? [0, length] : []));
  return maskFrom({
    predicate,
    captures: { lengths: valid },
    pattern: axisPattern('key', (batch) => spans[Math.min(batch, spans.length - 1)]!),
  });
}

/** Arrays of token numbers and ids are i32. */
export function expectIntegers(who: string, source: CaptureSource): void {
  if (onHost(source)) {
    if (!(source instanceof Int32Array) || source.length === 0) {
      throw new HeedError(
        'DTYPE_MISMATCH',
        `${who}: the array is ${source.constructor.name} of ${source.length}; give a non-empty Int32Array`,
      );
    }
  } else if (source.dtype !== 'i32') {
    throw new HeedError('DTYPE_MISMATCH', `${who}: the tensor is ${source.dtype}; give i32`);
  }
}
