import { range, unroll } from '../../kernel/modules.js';
import { tileDepth } from './plan.js';

/**
 * One operand of the tile kernel, and its tile in workgroup memory: `tileDepth` rows of k, each `free` rows of a (or columns of
 * b). Of an operand that is stored along k, each four rows of k begin `gap` fours later: the eight lanes that store together
 * write to four such groups, which would meet in the same banks.
 */
export interface TileSide {
  name: 'a' | 'b';
  /** Rows of a or columns of b in the tile. */
  free: number;
  /** Fours between groups of four rows of k: 0, or `bankGap` of them. */
  gap: number;
  /** Stored with k contiguous. */
  alongDepth: boolean;
  /** Loads of four are aligned. */
  vec: boolean;
  /** First row or column, and how many there are. */
  first: string;
  extent: string;
}

/** Text of the loads of one operand; `kt` is the k that the tile begins with. */
interface TileLoader {
  /** Before the loop. */
  places: string;
  /** Into registers; `tail`: k ends within this tile. */
  fetch: (tail: boolean) => string;
  /** Into workgroup memory. */
  stage: string;
  /** To the next tile along k. */
  step: string;
}

/** A quarter of the 32 banks. */
export const bankGap = 2;

/** Elements of four that a tile takes. */
export function tileQuads({ free, gap }: { free: number; gap: number }): number {
  return (tileDepth * free) / 4 + (tileDepth / 4 - 1) * gap;
}

export function tileName({ name }: TileSide): string {
  return name === 'a' ? 'tileA' : 'tileB';
}

/**
 * Loads of one operand tile by all lanes, four elements along the contiguous axis each, at once where they are aligned. Beyond the
 * matrix, rows and columns repeat the last one (never stored); beyond k there are zeros, as what lies there may be anything.
 */
export function tileLoader(side: TileSide, lanes: number): TileLoader {
  const { name, free, alongDepth, vec, first, extent } = side;
  const chunks = range((free * tileDepth) / 4 / lanes);
  const row = `uniforms.row${name.toUpperCase()}`;
  const quads = free / 4;
  const tile = tileName(side);
  // a lane that loads four rows of four k each turns the block around in registers and stores it by four
  const blocks = alongDepth && chunks.length % 4 === 0;
  const outer = (r: number): string => {
    if (!alongDepth) return `(lane + ${r * lanes}u) / ${quads}u`;
    return blocks ? `lane / 4u * 4u + ${(r >> 2) * lanes + (r & 3)}u` : `(lane + ${r * lanes}u) / 4u`;
  };
  const places = chunks.map((r) => {
    if (alongDepth)
      return `
        let ${name}Free${r} = ${outer(r)};
        var ${name}At${r} = place.${name} + min(${first} + ${name}Free${r}, ${extent} - 1u) * ${row} + kt + ${name}Depth * 4u;`;
    const column = `${first} + (lane + ${r * lanes}u) % ${quads}u * 4u`;
    return `
        let ${name}Depth${r} = ${outer(r)};
        let ${name}Column${r} = ${vec ? `min(${column}, ${extent} - 4u)` : column};
        var ${name}At${r} = place.${name} + (kt + ${name}Depth${r}) * ${row};`;
  });
  const depth = (r: number): string => (alongDepth ? `kt + ${name}Depth * 4u` : `kt + ${name}Depth${r}`);
  const fetchOne = (r: number, tail: boolean): string => {
    const value = `${name}${r}`;
    const at = (j: number): string => {
      if (alongDepth) return `${name}At${r} + ${j}u`;
      return vec ? `${name}At${r} + ${name}Column${r}` : `${name}At${r} + min(${name}Column${r} + ${j}u, ${extent} - 1u)`;
    };
    const four = vec ? `load_${name}((${at(0)}) / 4u)` : `vec4f(${range(4).map((j) => `load_${name}(${at(j)})`)})`;
    if (!tail) return `${value} = ${four};`;
    // single elements along k may end within four
    if (alongDepth && !vec)
      return `${value} = vec4f(); ${unroll(4, (j) => `if (${depth(r)} + ${j}u < place.kEnd) { ${value}[${j}] = load_${name}(${at(j)}); }`)}`;
    return `${value} = vec4f(); if (${depth(r)} < place.kEnd) { ${value} = ${four}; }`;
  };
  // four neighbours along k go to four rows, so that both layouts are read alike
  const to = (quad: string): string => `let to = ${name}Depth * ${4 * quads + side.gap}u + ${quad};`;
  const stageOne = (r: number): string =>
    alongDepth
      ? `{ ${to(`${name}Free${r} / 4u`)} ${unroll(4, (j) => `${tile}[to + ${j * quads}u][${name}Free${r} % 4u] = ${name}${r}[${j}];`, ' ')} }`
      : `${tile}[lane + ${r * lanes}u] = ${name}${r};`;
  const stageBlock = (block: number): string => `{
      ${to(`lane / 4u + ${(block * lanes) / 4}u`)}
      ${unroll(4, (j) => `${tile}[to + ${j * quads}u] = vec4f(${range(4).map((i) => `${name}${4 * block + i}[${j}]`)});`)}
    }`;
  return {
    places: `
      ${alongDepth ? `let ${name}Depth = lane % 4u;` : ''} ${places.join('')}
      ${chunks.map((r) => `var ${name}${r} = vec4f();`).join(' ')}`,
    fetch: (tail) => chunks.map((r) => fetchOne(r, tail)).join('\n'),
    stage: blocks ? unroll(chunks.length / 4, stageBlock) : chunks.map(stageOne).join('\n'),
    step: chunks.map((r) => `${name}At${r} += ${tileDepth}u${alongDepth ? '' : ` * ${row}`};`).join(' '),
  };
}
