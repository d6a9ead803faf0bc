import type { Coverage, Mask, MaskPattern, Region } from '@heed/core/attention';
import { kv, maskFrom, q } from '@heed/core/attention';
import { capture, type Expr, uniform } from '@heed/core/~internal';
import { at, type DilationGroup, forEachIndex, tileEdge, type TokenGrid } from './grid.js';
import { type Interval, inverseWindowOf, windowOf } from './window.js';

/** Which keys neighborhood attention shows, an axis. */
export interface NeighborhoodSpec {
  window: readonly number[];
  causal: readonly boolean[];
  /** Keys behind the grid's that every query sees. */
  additional: number;
}

type IntervalOf = (i: number, n: number, window: number, causal: boolean) => Interval;

/** The mask of neighborhood attention over the places of a grid. The window's edges are arrays, so that one kernel serves all sizes. */
export function neighborhoodMask(grid: TokenGrid, spec: NeighborhoodSpec): Mask {
  const { tokens, shape, dilation } = grid;
  const axes = shape.length;
  const lows = new Int32Array(axes * tokens);
  const highs = new Int32Array(axes * tokens);
  for (let place = 0; place < tokens; place++) {
    const group = groupAt(grid, place);
    for (let axis = 0; axis < axes; axis++) {
      const [start, end] = windowOf(
        indexAt(grid, group, place, axis),
        at(group.shape, axis),
        at(spec.window, axis),
        spec.causal[axis] ?? false,
      );
      // as coordinates: the first one seen, and one past the last
      lows[axis * tokens + place] = start * at(dilation, axis) + at(group.start, axis);
      highs[axis * tokens + place] = (end - 1) * at(dilation, axis) + at(group.start, axis) + 1;
    }
  }
  const count = uniform('gridTokens', 'i32');
  const coordinates = capture('coordinates', 'i32');
  const low = capture('windowLows', 'i32');
  const high = capture('windowHighs', 'i32');
  const seen: Expr<'bool'>[] = [];
  for (let axis = 0; axis < axes; axis++) {
    const base = count.mul(axis);
    const key = coordinates.at(base.add(kv));
    seen.push(key.ge(low.at(base.add(q))), key.lt(high.at(base.add(q))));
    if (at(dilation, axis) > 1)
      seen.push(
        key
          .sub(coordinates.at(base.add(q)))
          .mod(uniform(`dilation${axis}`, 'i32'))
          .eq(0),
      );
  }
  const uniforms: Record<string, number> = { gridTokens: tokens };
  for (let axis = 0; axis < axes; axis++) if (at(dilation, axis) > 1) uniforms[`dilation${axis}`] = at(dilation, axis);
  const predicate = seen.reduce((both, one) => both.and(one));
  return maskFrom({
    predicate: spec.additional > 0 ? kv.ge(count).or(predicate) : predicate,
    uniforms,
    captures: { coordinates: grid.coordinates, windowLows: lows, windowHighs: highs },
    pattern: neighborhoodPattern(grid, spec),
  });
}

function groupAt(grid: TokenGrid, place: number): DilationGroup {
  const group = grid.groups[at(grid.groupOf, place)];
  if (!group) throw new Error(`fna: place ${place} lies outside the grid`);
  return group;
}

/** Index of a place inside its dilation group. */
function indexAt(grid: TokenGrid, group: DilationGroup, place: number, axis: number): number {
  return (at(grid.coordinates, axis * grid.tokens + place) - at(group.start, axis)) / at(grid.dilation, axis);
}

/** Where the mask is full, partial and empty, from boxes of windows: no pair is looked at. */
function neighborhoodPattern(grid: TokenGrid, spec: NeighborhoodSpec): MaskPattern {
  const { tokens } = grid;
  const everything = tokens + spec.additional;
  return {
    keys(region) {
      const { low, high } = clip(region, tokens);
      const inside = low < high ? coverage(grid, spec, low, high, windowOf) : { all: [], some: [] };
      const behind = (spans: readonly number[]): number[] => (spec.additional === 0 ? [...spans] : joined(spans, tokens, everything));
      return within({ all: behind(inside.all), some: behind(inside.some) }, region);
    },
    queries(region) {
      // every query sees what lies behind the grid
      const additional = region.high > tokens;
      const { low, high } = clip(region, tokens);
      if (low >= high) return within({ all: [0, tokens], some: [0, tokens] }, region);
      const inside = coverage(grid, spec, low, high, inverseWindowOf);
      return within(additional ? { all: inside.all, some: [0, tokens] } : inside, region);
    },
  };
}

function clip(region: Region, tokens: number): { low: number; high: number } {
  return { low: Math.max(0, region.low), high: Math.min(tokens, region.high) };
}

/** A pattern answers for the positions that it is asked about. */
function within({ all, some }: Coverage, { from, to }: Region): Coverage {
  const cut = (spans: readonly number[]): number[] => {
    const out: number[] = [];
    for (let i = 0; i < spans.length; i += 2) {
      const [start, end] = [Math.max(from, at(spans, i)), Math.min(to, at(spans, i + 1))];
      if (start < end) out.push(start, end);
    }
    return out;
  };
  return { all: cut(all), some: cut(some) };
}

/** Appends [start, end) to ascending spans, merging where they touch. */
function joined(spans: readonly number[], start: number, end: number): number[] {
  if (spans.at(-1) === start) return [...spans.slice(0, -1), end];
  return [...spans, start, end];
}

/** Places that places [low, high) see (or are seen by), as spans of whole token tiles. */
function coverage(grid: TokenGrid, spec: NeighborhoodSpec, low: number, high: number, intervalOf: IntervalOf): Coverage {
  const some: number[] = [];
  let all: number[] = [];
  let segments = 0;
  for (let first = low; first < high;) {
    const group = groupAt(grid, first);
    const last = Math.min(high, at(group.places, group.places.length - 1)) - 1;
    const { union, intersection } = boxes(grid, spec, group, first, last, intervalOf);
    const found = tilesIn(grid, group, union, intersection);
    for (let i = 0; i < found.some.length; i += 2) push(some, at(found.some, i), at(found.some, i + 1));
    all = found.all;
    segments++;
    first = last + 1;
  }
  // what one group sees, another does not
  return { all: segments === 1 ? all : [], some };
}

/** Per axis what any of the places sees, and what all of them see, as indices of their group. */
function boxes(
  grid: TokenGrid,
  spec: NeighborhoodSpec,
  group: DilationGroup,
  first: number,
  last: number,
  intervalOf: IntervalOf,
): { union: Interval[]; intersection: Interval[] } {
  const union: Interval[] = [];
  const intersection: Interval[] = [];
  grid.shape.forEach((_, axis) => {
    let [least, most] = [Infinity, -Infinity];
    for (let place = first; place <= last; place++) {
      const index = indexAt(grid, group, place, axis);
      least = Math.min(least, index);
      most = Math.max(most, index);
    }
    const n = at(group.shape, axis);
    const window = at(spec.window, axis);
    const causal = spec.causal[axis] ?? false;
    // edges of windows never run backwards, so those of the outermost places bound all others
    const [startOfFirst, endOfFirst] = intervalOf(least, n, window, causal);
    const [startOfLast, endOfLast] = intervalOf(most, n, window, causal);
    union.push([startOfFirst, endOfLast]);
    intersection.push([startOfLast, endOfFirst]);
  });
  return { union, intersection };
}

function tilesIn(
  grid: TokenGrid,
  group: DilationGroup,
  union: readonly Interval[],
  intersection: readonly Interval[],
): { all: number[]; some: number[] } {
  const edge = tileEdge(grid.shape.length);
  const all: number[] = [];
  const some: number[] = [];
  if (grid.shape.length === 1) {
    // one axis: places of a group are its indices, and spans need no tiles
    const base = at(group.places, 0);
    const [start, end] = union[0] ?? [0, 0];
    const [from, to] = intersection[0] ?? [0, 0];
    if (start < end) some.push(base + start, base + end);
    if (from < to) all.push(base + from, base + to);
    return { all, some };
  }
  const firstTile = union.map(([start]) => Math.floor(start / edge));
  const counts = union.map(([start, end]) => (start < end ? Math.floor((end - 1) / edge) - Math.floor(start / edge) + 1 : 0));
  if (counts.some((n) => n <= 0)) return { all, some };
  forEachIndex(counts, (index) => {
    let tile = 0;
    let inside = true;
    grid.shape.forEach((_, axis) => {
      const t = at(firstTile, axis) + at(index, axis);
      tile = tile * at(group.tiles, axis) + t;
      const [from, to] = intersection[axis] ?? [0, 0];
      inside &&= from <= t * edge && Math.min((t + 1) * edge, at(group.shape, axis)) <= to;
    });
    push(some, at(group.places, tile), at(group.places, tile + 1));
    if (inside) push(all, at(group.places, tile), at(group.places, tile + 1));
  });
  return { all, some };
}

function push(spans: number[], start: number, end: number): void {
  if (spans.at(-1) === start) spans[spans.length - 1] = end;
  else spans.push(start, end);
}
