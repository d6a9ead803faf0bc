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
 * Loads of one operand tile by all lanes, four elements along the contiguous axis at a time. Beyond the matrix, rows and
 * columns repeat the last one (never stored); beyond k there are zeros, as what lies there may be anything. Vector loads are
 * fetched a tile ahead; single ones (unaligned operands) go straight to workgroup memory, which keeps their text short.
 */
export function tileLoader(side: TileSide, lanes: number): TileLoader {
  const { name, free, alongDepth, vec, first, extent } = side;
  const chunks = range((free * tileDepth) / 4 / lanes);
  const row = `uniforms.row${name.toUpperCase()}`;
  const base = `place.${name}`;
  const quads = free / 4;
  const tile = tileName(side);
  // a lane that loads four rows of four k each turns the block around in registers and stores it by four
  const blocks = vec && alongDepth && chunks.length % 4 === 0;
  const outer = (r: number): string =>
    alongDepth
      ? blocks
        ? `lane / 4u * 4u + ${(r >> 2) * lanes + (r & 3)}u`
        : `(lane + ${r * lanes}u) / 4u`
      : `(lane + ${r * lanes}u) / ${quads}u`;
  const places = chunks.map((r) => {
    if (alongDepth)
      return `
        let ${name}Free${r} = ${outer(r)};
        var ${name}At${r} = ${base} + min(${first} + ${name}Free${r}, ${extent} - 1u) * ${row} + kt + ${name}Depth * 4u;`;
    const column = `${first} + (lane + ${r * lanes}u) % ${quads}u * 4u`;
    return `
        let ${name}Depth${r} = ${outer(r)};
        var ${name}At${r} = ${base} + (kt + ${name}Depth${r}) * ${row} + ${vec ? `min(${column}, ${extent} - 4u)` : '0u'};
        ${vec ? '' : `let ${name}Column${r} = ${column};`}`;
  });
  const depth = (r: number): string => (alongDepth ? `kt + ${name}Depth * 4u` : `kt + ${name}Depth${r}`);
  // four neighbours along k go to four rows, so that both layouts are read alike
  const to = (quad: string): string => `${name}Depth * ${4 * quads + side.gap}u + ${quad}`;
  const store = (r: number, value: string): string =>
    alongDepth
      ? `{ let along = ${value}; let to = ${to(`${name}Free${r} / 4u`)};
          ${unroll(4, (j) => `${tile}[to + ${j * quads}u][${name}Free${r} % 4u] = along[${j}];`, ' ')} }`
      : `${tile}[lane + ${r * lanes}u] = ${value};`;
  const storeBlock = (block: number): string => `{
      let to = ${to(`lane / 4u + ${(block * lanes) / 4}u`)};
      ${unroll(4, (j) => `${tile}[to + ${j * quads}u] = vec4f(${range(4).map((i) => `${name}${4 * block + i}[${j}]`)});`)}
    }`;
  const start = `${alongDepth ? `let ${name}Depth = lane % 4u;` : ''} ${places.join('')}`;
  const step = chunks.map((r) => `${name}At${r} += ${tileDepth}u${alongDepth ? '' : ` * ${row}`};`).join(' ');
  if (!vec) {
    const single = (r: number): string => {
      const within = (j: number): string => (alongDepth ? `${depth(r)} + ${j}u < place.kEnd` : `${depth(r)} < place.kEnd`);
      const at = (j: number): string =>
        alongDepth ? `${name}At${r} + ${j}u` : `${name}At${r} + min(${name}Column${r} + ${j}u, ${extent} - 1u)`;
      return `vec4f(${range(4).map((j) => `select(0.0, load_${name}(select(${base}, ${at(j)}, ${within(j)})), ${within(j)})`)})`;
    };
    return { places: start, fetch: () => '', stage: chunks.map((r) => store(r, single(r))).join('\n'), step };
  }
  return {
    places: `${start}\n${unroll(chunks.length, (r) => `var ${name}${r} = vec4f();`)}`,
    fetch: (tail) =>
      unroll(chunks.length, (r) => {
        const load = `${name}${r} = load_${name}(${name}At${r} / 4u);`;
        return tail ? `${name}${r} = vec4f(); if (${depth(r)} < place.kEnd) { ${load} }` : load;
      }),
    stage: blocks ? unroll(chunks.length / 4, storeBlock) : chunks.map((r) => store(r, `${name}${r}`)).join('\n'),
    step,
  };
}
