import { type AttentionLengths, kv, type Mask, maskFrom, q, sinks, type Spans } from '@heed/core/attention';
import { uniform } from '@heed/core/~internal';

/**
 * Causal inside of segments, behind `persistent` keys that all see: token i stands at position persistent + i and sees tokens j <= i
 * of segment floor(i / segment). Tiles outside are empty, without a look at pairs.
 */
export function blockDiagonalCausal({ segment, persistent }: { segment: number; persistent: number }): Mask {
  const startOf = (position: number): number => persistent + Math.floor(Math.max(0, position - persistent) / segment) * segment;
  const own = (position: typeof q): typeof q => position.sub(uniform('segmentFirst', 'i32')).div(uniform('segmentTokens', 'i32'));
  const cut = (start: number, end: number, from: number, to: number): Spans =>
    Math.max(start, from) < Math.min(end, to) ? [Math.max(start, from), Math.min(end, to)] : [];
  const segments = maskFrom({
    predicate: kv
      .le(q)
      .and(kv.ge(uniform('segmentFirst', 'i32')))
      .and(own(kv).ge(own(q))),
    uniforms: { segmentFirst: persistent, segmentTokens: segment },
    pattern: {
      keys: ({ low, high, from, to }) => ({
        all: cut(startOf(high - 1), Math.max(low, persistent - 1) + 1, from, to),
        some: cut(startOf(low), high, from, to),
      }),
      queries: ({ low, high, from, to }) => {
        const end = (position: number): number => startOf(position) + segment;
        if (high <= persistent) return { all: [], some: [] };
        return { all: low < persistent ? [] : cut(high - 1, end(low), from, to), some: cut(low, end(high - 1), from, to) };
      },
    },
    area: ({ queries, keys, offset }: Required<AttentionLengths>) => {
      let pairs = 0;
      for (let position = Math.max(offset, persistent); position < offset + queries; position++)
        pairs += Math.max(0, Math.min(position + 1, keys) - startOf(position));
      return pairs;
    },
  });
  return persistent > 0 ? sinks(persistent).or(segments) : segments;
}
