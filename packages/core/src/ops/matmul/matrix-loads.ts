import { range } from '../../kernel/modules.js';
import type { Load } from './plan.js';

/** One operand of the matrix kernel and its part of the workgroup array `tile`, whose elements hold eight halves. */
export interface Side {
  name: 'a' | 'b';
  /** Rows of a or columns of b in the tile. */
  free: number;
  /** k of the tile. */
  depth: number;
  /** Stored with k contiguous. */
  alongDepth: boolean;
  load: Load;
  /** First row or column. */
  first: string;
  /** Elements of `tile` from one stored row to the next, and where this operand begins. */
  stride: number;
  at: number;
}

export function storedRows({ free, depth, alongDepth }: Side): number {
  return alongDepth ? free : depth;
}

/** Text of the loads of one operand; tiles along k come one after the other, each into one of `sets` sets of registers. */
interface Loader {
  /** Before the loop. */
  places: string;
  /** The next tile, which begins at `k`, into registers; `tail`: k ends within it. */
  fetch: (set: number, k: string, tail: boolean) => string;
  /** Into workgroup memory. */
  stage: (set: number) => string;
  /** To the next tile along k. */
  step: string;
}

/**
 * Loads of one operand tile by all lanes, eight neighbours along the contiguous axis each. A lane keeps one place, and its loads lie
 * whole steps apart: registers are what this kernel is short of. So what lies behind the matrix is read, too, and never stored;
 * beyond k there are zeros, as what lies there may be anything.
 */
export function loader(side: Side, lanes: number, sets: number): Loader {
  const { name, depth, alongDepth, load } = side;
  const perRow = (alongDepth ? depth : side.free) / 8;
  const rowsAtOnce = lanes / perRow;
  const chunks = range((side.free * depth) / 8 / lanes);
  const row = `uniforms.row${name.toUpperCase()}`;
  const unit = load === 'half8' ? 8 : load === 'vec4' ? 4 : 1;
  // rows of 64 bytes, 80 apart: eight lanes that store together take rows 0 and 4, which lie in different banks
  const outer = alongDepth && depth === 32 ? `lane / 32u * 8u + lane / 4u % 2u * 4u + lane / 8u % 4u` : `lane / ${perRow}u`;
  const [k, free] = alongDepth ? [`${name}Inner`, `${name}Outer`] : [`${name}Outer`, `${name}Inner`];
  const first = alongDepth
    ? `(${side.first} + ${free}) * ${row} + place.kBegin + ${k}`
    : `(place.kBegin + ${k}) * ${row} + ${side.first} + ${free}`;
  const value = (r: number, set: number): string => `${name}${r}_${set}`;
  const fetchOne = (r: number, set: number, begin: string, tail: boolean): string => {
    const whole = loadEight(side, `${name}At + ${r}u * ${name}Step`, value(r, set));
    if (!tail) return whole;
    const at = `${begin} + ${k}${alongDepth ? '' : ` + ${r * rowsAtOnce}u`}`;
    // k ends between eight neighbours of an operand that is not read by eight
    const cut = alongDepth && load !== 'half8' ? `${value(r, set)} = firstHalves(${value(r, set)}, place.kEnd - (${at}));` : '';
    return `${value(r, set)} = vec4u(); if (${at} < place.kEnd) { ${whole} ${cut} }`;
  };
  return {
    places: `
      let ${name}Outer = ${outer};
      let ${name}Inner = lane % ${perRow}u * 8u;
      let ${name}To = ${side.at}u + ${name}Outer * ${side.stride}u + ${name}Inner / 8u;
      let ${name}Step = ${row} / ${unit}u * ${rowsAtOnce}u;
      var ${name}At = ${load === 'half8' ? `base_${name}() + ` : ''}(place.${name} + ${first}) / ${unit}u;
      ${range(sets)
        .map((set) => chunks.map((r) => `var ${value(r, set)} = vec4u();`).join(' '))
        .join(' ')}`,
    fetch: (set, begin, tail) => chunks.map((r) => fetchOne(r, set, begin, tail)).join('\n'),
    stage: (set) => chunks.map((r) => `tile[${name}To + ${r * rowsAtOnce * side.stride}u] = ${value(r, set)};`).join('\n'),
    step: `${name}At += ${alongDepth ? `${depth / unit}u` : `${row} / ${unit}u * ${depth}u`};`,
  };
}

/** Eight halves from `at`, counted in what is loaded at once (from the start of the binding), or in elements where loads are shifted. */
function loadEight({ name, load }: Side, at: string, value: string): string {
  const item = (i: string): string => `load_${name}(${i})`;
  switch (load) {
    case 'half8':
      return `${value} = ${name}[${at}];`;
    case 'vec4':
      return `${value} = vec4u(halves(${item(at)}), halves(${item(`${at} + 1u`)}));`;
    case 'half8Shifted':
      return `{ let at = ${at}; let eight = base_${name}() + at / 8u; ${value} = eightFrom(${name}[eight], ${name}[eight + 1u], at); }`;
    case 'vec4Shifted':
      return `{
        let at = ${at};
        let middle = ${item('at / 4u + 1u')};
        ${value} = vec4u(halves(fourFrom(${item('at / 4u')}, middle, at)), halves(fourFrom(middle, ${item('at / 4u + 2u')}, at)));
      }`;
  }
}

/** Whether `firstHalves` is needed. */
export function endsWithin({ alongDepth, load }: Side): boolean {
  return alongDepth && load !== 'half8';
}
