import { unroll } from '@heed/core/~internal';
import type { PairTile, RowLayout } from './plan.js';

// Pieces of kernels over pairs (row, other): tiles of both sides in workgroup memory, scores as register blocks, weights as planes
// in workgroup memory, sums as 4 rows x 1 vector a lane.

/** `fn vector_<name>(base, v) -> vec4f`: vector v of the row at element `base`, zeros in the padding. */
export function rowLoad(name: string, layout: RowLayout, width: number): string {
  const { block, blockVectors } = layout;
  if (width === 4) return `fn vector_${name}(base: u32, v: u32) -> vec4f { return load_${name}((base + 4u * v) / 4u); }`;
  const part = (c: number): string => (c === 0 ? `load_${name}(at)` : `select(0.0, load_${name}(at + ${c}u), inner + ${c}u < ${block}u)`);
  return `fn vector_${name}(base: u32, v: u32) -> vec4f {
      let inner = 4u * (v % ${blockVectors}u);
      let at = base + (v / ${blockVectors}u) * ${block}u + inner;
      return vec4f(${[0, 1, 2, 3].map(part).join(', ')});
    }`;
}

/** `fn put_<name>(base, v, value)`: writes vector v of the row at element `base`, its padding left out. */
export function rowStore(name: string, layout: RowLayout, width: number): string {
  const { block, blockVectors } = layout;
  if (width === 4) return `fn put_${name}(base: u32, v: u32, value: vec4f) { store_${name}((base + 4u * v) / 4u, value); }`;
  return `fn put_${name}(base: u32, v: u32, value: vec4f) {
      let inner = 4u * (v % ${blockVectors}u);
      let at = base + (v / ${blockVectors}u) * ${block}u + inner;
      let n = ${block}u - inner;
      store_${name}(at, value.x);
      if (n > 1u) { store_${name}(at + 1u, value.y); }
      if (n > 2u) { store_${name}(at + 2u, value.z); }
      if (n > 3u) { store_${name}(at + 3u, value.w); }
    }`;
}

/** Elements an item that rows of this layout are loaded in; offsets are multiples of 4 where this gives 4. */
export function rowItems({ dim, block }: RowLayout): number {
  return dim % 4 === 0 && block % 4 === 0 ? 4 : 1;
}

/** A tile in workgroup memory: `var tile_<name>`, `count` rows. */
export function tileMemory(name: string, layout: RowLayout, count: number): string {
  return `var<workgroup> tile_${name}: array<vec4f, ${count * layout.stride}>;`;
}

/** Fills `tile_<tile>` with rows first .. first + count - 1 of the binding, zeros from row `end` on; `base` gives a row's element. */
export function stage(
  name: string,
  layout: RowLayout,
  options: { count: number; lanes: number; first: string; end: string; base: (row: string) => string },
): string {
  const { count, lanes, first, end, base } = options;
  return `for (var e = lane; e < ${count * layout.vectors}u; e += ${lanes}u) {
        let at = e / ${layout.vectors}u;
        let vec = e % ${layout.vectors}u;
        var value = vec4f();
        if (${first} + at < ${end}) { value = vector_${name}(${base(`(${first} + at)`)}, vec); }
        tile_${name}[at * ${layout.stride}u + vec] = value;
      }`;
}

/** A score of all pairs of a lane: s_<name>_<i>_<j> = row of `left` . row of `right`. */
export interface Dot {
  name: string;
  /** Tile of the staying rows. */
  left: string;
  /** Tile of the passing rows. */
  right: string;
}

/** A score of the staying rows alone: o_<name>_<i>. */
export interface OwnDot {
  name: string;
  a: string;
  b: string;
  /** `row`: of staying rows, i; `other`: of passing rows, j. */
  side: 'row' | 'other';
}

export const rowOf = (tile: PairTile, i: number): string => `(rg + ${i * (tile.rows / tile.laneRows)}u)`;
export const otherOf = (tile: PairTile, j: number): string => `(kg + ${j * (tile.others / tile.laneOthers)}u)`;

/** Every pair of a lane. */
export function eachPair(tile: PairTile, text: (i: number, j: number) => string): string {
  return unroll(tile.laneRows, (i) => unroll(tile.laneOthers, (j) => text(i, j)));
}

/** Declares the sums of `dots` and `own` and adds up vectors `from` .. `to` - 1. Sums are vectors until `total`. */
export function scores(
  tile: PairTile,
  stride: number,
  dots: readonly Dot[],
  own: readonly OwnDot[],
  options: { from: string; to: string },
): string {
  const lefts = new Set([...dots.map((d) => d.left), ...own.flatMap((o) => (o.side === 'row' ? [o.a, o.b] : []))]);
  const rights = new Set([...dots.map((d) => d.right), ...own.flatMap((o) => (o.side === 'other' ? [o.a, o.b] : []))]);
  const ownOf = (o: OwnDot, text: (n: number) => string): string => unroll(o.side === 'row' ? tile.laneRows : tile.laneOthers, text);
  return `
      ${dots.map((d) => eachPair(tile, (i, j) => `var v_${d.name}_${i}_${j} = vec4f();`)).join('\n')}
      ${own.map((o) => ownOf(o, (n) => `var v_${o.name}_${n} = vec4f();`)).join('\n')}
      for (var vec = ${options.from}; vec < ${options.to}; vec++) {
        ${[...lefts].map((left) => unroll(tile.laneRows, (i) => `let l_${left}_${i} = tile_${left}[${rowOf(tile, i)} * ${stride}u + vec];`)).join('\n')}
        ${[...rights].map((right) => unroll(tile.laneOthers, (j) => `let r_${right}_${j} = tile_${right}[${otherOf(tile, j)} * ${stride}u + vec];`)).join('\n')}
        ${dots.map((d) => eachPair(tile, (i, j) => `v_${d.name}_${i}_${j} = fma(l_${d.left}_${i}, r_${d.right}_${j}, v_${d.name}_${i}_${j});`)).join('\n')}
        ${own.map((o) => ownOf(o, (n) => `v_${o.name}_${n} = fma(${o.side === 'row' ? 'l' : 'r'}_${o.a}_${n}, ${o.side === 'row' ? 'l' : 'r'}_${o.b}_${n}, v_${o.name}_${n});`)).join('\n')}
      }
      ${dots.map((d) => eachPair(tile, (i, j) => `let s_${d.name}_${i}_${j} = total(v_${d.name}_${i}_${j});`)).join('\n')}
      ${own.map((o) => ownOf(o, (n) => `let o_${o.name}_${n} = total(v_${o.name}_${n});`)).join('\n')}`;
}

export const totalText = 'fn total(x: vec4f) -> f32 { return (x.x + x.y) + (x.z + x.w); }';

/** A plane of weights: `var plane_<name>`. */
export function planeMemory(name: string, tile: PairTile): string {
  return `var<workgroup> plane_${name}: array<vec4f, ${(tile.others * tile.rows) / 4}>;`;
}

/** Writes the weight of pair (i, j). */
export function putWeight(name: string, tile: PairTile, i: number, j: number, value: string): string {
  return `plane_${name}[${otherOf(tile, j)} * ${tile.rows / 4}u + ${rowOf(tile, i)} / 4u][${rowOf(tile, i)} % 4u] = ${value};`;
}

/** sums a0 .. a3 += plane x row of a tile, over `count` others; `weights` also sums the weights themselves. */
export function addRows(
  tile: PairTile,
  stride: number,
  terms: readonly { plane: string; tile: string; to: string; weights?: string }[],
  count: string,
): string {
  return `for (var j = 0u; j < ${count}; j++) {
        ${terms
          .map(
            (t, n) => `let w${n} = plane_${t.plane}[j * ${tile.rows / 4}u + rb];
        let x${n} = tile_${t.tile}[j * ${stride}u + c];
        ${t.to}0 = fma(vec4f(w${n}.x), x${n}, ${t.to}0);
        ${t.to}1 = fma(vec4f(w${n}.y), x${n}, ${t.to}1);
        ${t.to}2 = fma(vec4f(w${n}.z), x${n}, ${t.to}2);
        ${t.to}3 = fma(vec4f(w${n}.w), x${n}, ${t.to}3);
        ${t.weights ? `${t.weights} += w${n};` : ''}`,
          )
          .join('\n')}
      }`;
}

/** Place of a workgroup: head, batch, and its tile of `tiles`; the last tiles first, which under a causal mask are the longest. */
export const placeText = `
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let row = index / uniforms.tiles;
      let head = row % uniforms.heads;
      let batch = row / uniforms.heads;`;

/**
 * Bound of a loop over a tile: a literal, by which indices are seen to be in range, or a run-time value where compilers take seconds for
 * unrolled text.
 */
export function bound(fixed: number, count: number, runTime: string): string {
  return fixed === 1 ? `${count}u` : runTime;
}

/** Lane's places in scores (rg, kg) and in sums (rb, c). */
export function laneText(tile: PairTile): string {
  const groups = tile.others / tile.laneOthers;
  return `
      let kg = lane % ${groups}u;
      let rg = lane / ${groups}u;
      let c = lane % ${tile.columns}u;
      let rb = lane / ${tile.columns}u;`;
}
