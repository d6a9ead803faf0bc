import type { Capabilities } from '../../device/capabilities.js';
import { range } from '../../kernel/modules.js';
import type { Load } from './plan.js';
import { loopBound } from './text.js';

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
  /** First row or column, and how many there are. */
  first: string;
  extent: string;
  /** Elements of `tile` from one stored row to the next, and where this operand begins. */
  stride: number;
  at: number;
}

export function storedRows({ free, depth, alongDepth }: Side): number {
  return alongDepth ? free : depth;
}

/** Text of the loads of one operand; `kt` is the k that the tile begins with. */
interface Loader {
  /** Before the loop. */
  places: string;
  /** Into registers; `tail`: k ends within this tile. */
  fetch: (tail: boolean) => string;
  /** Into workgroup memory. */
  stage: string;
  /** To the next tile along k. */
  step: string;
}

/**
 * Loads of one operand tile by all lanes, eight neighbours along the contiguous axis each. Beyond the matrix the last row or
 * column repeats and is never stored; beyond k there are zeros, as what lies there may be anything.
 */
export function loader(side: Side, lanes: number, capabilities: Capabilities): Loader {
  const { name, depth, alongDepth, load } = side;
  const perRow = (alongDepth ? depth : side.free) / 8;
  const chunks = range((side.free * depth) / 8 / lanes);
  const row = `uniforms.row${name.toUpperCase()}`;
  // rows of 64 bytes, 80 apart: eight lanes that store together take rows 0 and 4, which lie in different banks
  const stored = (index: string): string =>
    alongDepth && depth === 32 ? `(${index}) / 8u * 8u + (${index}) % 2u * 4u + (${index}) % 8u / 2u` : index;
  const own = chunks.map(
    (r) => `
      let ${name}Outer${r} = ${stored(`(lane + ${r * lanes}u) / ${perRow}u`)};
      let ${name}Inner${r} = (lane + ${r * lanes}u) % ${perRow}u * 8u;
      let ${name}To${r} = ${side.at}u + ${name}Outer${r} * ${side.stride}u + ${name}Inner${r} / 8u;`,
  );
  if (load === 'scalar')
    return { places: own.join(''), fetch: () => '', stage: chunks.map((r) => scalars(side, r, row, capabilities)).join('\n'), step: '' };
  const size = load === 'half8' ? 8 : 4;
  const places = chunks.map((r) => {
    const last = (column: string): string => `min(${column}, ${side.extent} - ${size}u)`;
    const column = `${side.first} + ${name}Inner${r}`;
    if (alongDepth)
      return `var ${name}At${r} = place.${name} + min(${side.first} + ${name}Outer${r}, ${side.extent} - 1u) * ${row} + kt + ${name}Inner${r};`;
    return `
      var ${name}At${r} = place.${name} + (kt + ${name}Outer${r}) * ${row} + ${last(column)};
      ${load === 'vec4' ? `let ${name}Next${r} = ${last(`${column} + 4u`)} - ${last(column)};` : ''}`;
  });
  return {
    places: `${own.join('')}\n${places.join('\n')}\n${chunks.map((r) => `var ${name}${r} = vec4u();`).join(' ')}`,
    fetch: (tail) => chunks.map((r) => fetchOne(side, r, tail)).join('\n'),
    stage: chunks.map((r) => `tile[${name}To${r}] = ${name}${r};`).join('\n'),
    step: chunks.map((r) => `${name}At${r} += ${depth}u${alongDepth ? '' : ` * ${row}`};`).join(' '),
  };
}

function fetchOne({ name, alongDepth, load }: Side, r: number, tail: boolean): string {
  const value = `${name}${r}`;
  const at = `${name}At${r}`;
  const k = `kt + ${alongDepth ? `${name}Inner${r}` : `${name}Outer${r}`}`;
  const guarded = (whole: string): string =>
    tail ? `${value} = vec4u(); if (${k} < place.kEnd) { ${value} = ${whole}; }` : `${value} = ${whole};`;
  if (load === 'half8') return guarded(`${name}[base_${name}() + ${at} / 8u]`);
  const four = (start: string): string => `halves(load_${name}((${start}) / 4u))`;
  if (!alongDepth) return guarded(`vec4u(${four(at)}, ${four(`${at} + ${name}Next${r}`)})`);
  if (!tail) return `${value} = vec4u(${four(at)}, ${four(`${at} + 4u`)});`;
  // k may end between two fours
  return `${value} = vec4u();
        if (${k} < place.kEnd) { ${value} = vec4u(${four(at)}, 0u, 0u); }
        if (${k} + 4u < place.kEnd) { ${value} = vec4u(${value}.xy, ${four(`${at} + 4u`)}); }`;
}

/** Operands that no vector load fits: element by element, straight to workgroup memory. */
function scalars(side: Side, r: number, row: string, capabilities: Capabilities): string {
  const { name, alongDepth, first, extent } = side;
  const element = (j: string): string => {
    const k = alongDepth ? `kt + ${name}Inner${r} + ${j}` : `kt + ${name}Outer${r}`;
    const free = alongDepth ? `${first} + ${name}Outer${r}` : `${first} + ${name}Inner${r} + ${j}`;
    const [inK, inFree] = [`min(${k}, uniforms.K - 1u)`, `min(${free}, ${extent} - 1u)`];
    const at = alongDepth ? `${inFree} * ${row} + ${inK}` : `${inK} * ${row} + ${inFree}`;
    return `select(0.0, load_${name}(place.${name} + ${at}), ${k} < place.kEnd)`;
  };
  return `{
      var eight = vec4u();
      for (var pair = 0u; pair < ${loopBound(4, capabilities)}; pair++) {
        let j = 2u * pair;
        eight[pair] = bitcast<u32>(vec2<f16>(clamp(vec2f(${element('j')}, ${element('j + 1u')}), vec2f(-65504.0), vec2f(65504.0))));
      }
      tile[${name}To${r}] = eight;
    }`;
}
