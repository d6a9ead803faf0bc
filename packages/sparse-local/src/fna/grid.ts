import type { TokenOrder } from '@heed/core';

/** Tokens on a grid, in the order in which kernels walk them. */
export interface TokenGrid {
  /** Tokens an axis. */
  readonly shape: readonly number[];
  /** Step between the tokens that see each other, an axis. */
  readonly dilation: readonly number[];
  readonly tokens: number;
  /** Row-major tokens to places and back; undefined where places are the tokens themselves. */
  readonly order: TokenOrder | undefined;
  /** Coordinate of each place, axis after axis: [axes, tokens]. */
  readonly coordinates: Int32Array;
  /** Dilation group of each place. */
  readonly groupOf: Int32Array;
  readonly groups: readonly DilationGroup[];
}

/** The tokens that can see each other: those whose coordinates leave the same rest on every axis. */
export interface DilationGroup {
  /** First coordinate an axis. */
  readonly start: readonly number[];
  /** Tokens an axis. */
  readonly shape: readonly number[];
  /** Tiles an axis. */
  readonly tiles: readonly number[];
  /** First place of each tile, row-major, and the end of the last. */
  readonly places: Int32Array;
}

/** Edge of the square token tiles, by number of axes: 64 tokens a tile, so that a query tile reads few key tiles. */
const edges: Readonly<Record<number, number>> = { 1: 64, 2: 8, 3: 4 };

/** Edge of a token tile on a grid of so many axes. */
export function tileEdge(axes: number): number {
  return edges[axes] ?? 4;
}

const grids = new Map<string, TokenGrid>();
const mostGrids = 16;

/**
 * The order of a grid's tokens: by dilation group, then by square tile, then row by row inside the tile. Border tiles are cut,
 * not padded. Made once for each shape and dilation (the last 16 are kept).
 */
export function tokenGrid(shape: readonly number[], dilation: readonly number[]): TokenGrid {
  const key = `${shape.join('x')} / ${dilation.join('x')}`;
  const found = grids.get(key);
  if (found) return found;
  const made = makeGrid(shape, dilation, key);
  const [oldest] = grids.keys();
  if (grids.size >= mostGrids && oldest !== undefined) grids.delete(oldest);
  grids.set(key, made);
  return made;
}

function makeGrid(shape: readonly number[], dilation: readonly number[], key: string): TokenGrid {
  const axes = shape.length;
  const edge = tileEdge(axes);
  const tokens = shape.reduce((product, n) => product * n, 1);
  const coordinates = new Int32Array(axes * tokens);
  const groupOf = new Int32Array(tokens);
  const order = new Uint32Array(tokens);
  const inverse = new Uint32Array(tokens);
  const groups: DilationGroup[] = [];
  let place = 0;
  forEachIndex(dilation, (start) => {
    const own = shape.map((n, axis) => Math.ceil((n - at(start, axis)) / at(dilation, axis)));
    const tiles = own.map((n) => Math.ceil(n / edge));
    const places: number[] = [];
    forEachIndex(tiles, (tile) => {
      places.push(place);
      const inside = own.map((n, axis) => Math.min(edge, n - at(tile, axis) * edge));
      forEachIndex(inside, (inner) => {
        let token = 0;
        for (let axis = 0; axis < axes; axis++) {
          const coordinate = (at(tile, axis) * edge + at(inner, axis)) * at(dilation, axis) + at(start, axis);
          coordinates[axis * tokens + place] = coordinate;
          token = token * at(shape, axis) + coordinate;
        }
        order[place] = token;
        inverse[token] = place;
        groupOf[place] = groups.length;
        place++;
      });
    });
    groups.push({ start: [...start], shape: own, tiles, places: Int32Array.from([...places, place]) });
  });
  const same = order.every((token, i) => token === i);
  return { shape, dilation, tokens, order: same ? undefined : { key: `grid ${key}`, order, inverse }, coordinates, groupOf, groups };
}

/** Calls `visit` for every index below `shape`, row-major; the array is reused. */
export function forEachIndex(shape: readonly number[], visit: (index: readonly number[]) => void): void {
  const index = new Array<number>(shape.length).fill(0);
  const walk = (axis: number): void => {
    if (axis === shape.length) return visit(index);
    for (let i = 0; i < at(shape, axis); i++) {
      index[axis] = i;
      walk(axis + 1);
    }
  };
  walk(0);
}

/** Element of a list with one entry an axis. */
export function at(list: ArrayLike<number>, axis: number): number {
  return list[axis] ?? 0;
}
