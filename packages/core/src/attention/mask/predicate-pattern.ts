import { classify } from '../../kernel/expr/index.js';
import type { Bounds, Expr } from '../../kernel/expr/index.js';
import { appendSpan } from './spans.js';
import type { CaptureSource, Coverage, MaskPattern, Region } from './types.js';

/**
 * The pattern of any predicate: bisects one axis and bounds the predicate on each piece by interval arithmetic, down to tiles.
 * Conservative; O(undecided tiles) a row, so a predicate that intervals cannot follow lists every tile as partial.
 * @param uniforms values of the predicate's uniforms
 * @param captures its arrays; what lies on the device is taken for any value
 */
export function predicatePattern(
  predicate: Expr<'bool'>,
  uniforms: Readonly<Record<string, number>>,
  captures: Readonly<Record<string, CaptureSource>>,
): MaskPattern {
  const arrays: Record<string, (low: number, high: number) => Bounds> = {};
  for (const [name, source] of Object.entries(captures)) if (ArrayBuffer.isView(source)) arrays[name] = elementBounds(source);
  const exactly = (value: number): Bounds => ({ low: value, high: value });
  const coverage = (region: Region, tiled: 'q' | 'kv', other: 'q' | 'kv'): Coverage => {
    const all: number[] = [];
    const some: number[] = [];
    const fixed = { b: exactly(region.batch), h: exactly(region.head), [tiled]: { low: region.low, high: region.high - 1 } };
    const visit = (start: number, end: number): void => {
      const kind = classify(predicate, { variables: { ...fixed, [other]: { low: start, high: end - 1 } }, uniforms, captures: arrays });
      if (kind === 'empty') return;
      if (kind === 'unknown' && end - start > region.grain) {
        const pieces = Math.ceil((end - start) / region.grain);
        const middle = start + (pieces >>> 1) * region.grain;
        visit(start, middle);
        visit(middle, end);
        return;
      }
      appendSpan(some, start, end);
      if (kind === 'full') appendSpan(all, start, end);
    };
    visit(region.from, region.to);
    return { all, some };
  };
  return { keys: (region) => coverage(region, 'q', 'kv'), queries: (region) => coverage(region, 'kv', 'q') };
}

const BLOCK = 64;
const SCAN_LIMIT = 1 << 16;

/** Least and greatest element between two indices: whole blocks from a table, the rest by reading; very wide ranges get the whole array's. */
function elementBounds(array: Int32Array | Uint32Array | Float32Array): (low: number, high: number) => Bounds {
  let blocks: Bounds[] | undefined;
  let whole: Bounds | undefined;
  const scan = (from: number, to: number): Bounds => {
    let low = Infinity;
    let high = -Infinity;
    for (let i = from; i < to; i++) {
      low = Math.min(low, array[i]!);
      high = Math.max(high, array[i]!);
    }
    return { low, high };
  };
  const join = (x: Bounds, y: Bounds): Bounds => ({ low: Math.min(x.low, y.low), high: Math.max(x.high, y.high) });
  return (low, high) => {
    const last = array.length - 1;
    const from = Math.min(last, Math.max(0, low));
    const end = Math.min(last, Math.max(0, high)) + 1;
    if (end - from <= 2 * BLOCK) return scan(from, end);
    blocks ??= Array.from({ length: Math.ceil(array.length / BLOCK) }, (_, i) => scan(i * BLOCK, Math.min(array.length, (i + 1) * BLOCK)));
    whole ??= blocks.reduce(join);
    if (end - from > SCAN_LIMIT) return whole;
    const first = Math.ceil(from / BLOCK);
    const stop = Math.floor(end / BLOCK);
    let found = join(scan(from, first * BLOCK), scan(stop * BLOCK, end));
    for (let i = first; i < stop; i++) found = join(found, blocks[i]!);
    return found;
  };
}
