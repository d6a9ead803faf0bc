// Code for each pair of a row and a column that a lane holds. Hardware gets it unrolled over named registers; software devices
// get a loop where the code is long (score functions, captured gradients), since their compilers dislike long texts.
import { range } from '../../kernel/modules.js';
import { pickText, type TileText } from './tile.js';

/** How the code of a pair names things. */
export interface PairNames {
  /** A register a pair: `s`, `p`. */
  own(name: string): string;
  /** A register a row, or a column, of the lane. */
  row(name: string): string;
  column(name: string): string;
  /** Row and column in the tile. */
  rowInTile: string;
  columnInTile: string;
  /** Whether the pair's bit is set in a word. */
  hasBit(word: string): string;
}

/** Registers that the code of a pair uses. */
export interface PairUse {
  /** Read and written, one a pair. */
  own: readonly string[];
  /** Read, one a row or a column. */
  row?: readonly string[];
  column?: readonly string[];
  /** Read and written, one a row. */
  sums?: readonly string[];
}

/** `body` for each pair of the lane. */
export function eachPair(t: TileText, looped: boolean, use: PairUse, body: (names: PairNames) => string): string {
  return looped ? loopedPairs(t, use, body) : unrolledPairs(t, body);
}

function unrolledPairs(t: TileText, body: (names: PairNames) => string): string {
  return t
    .rowNumbers()
    .flatMap((i) =>
      t.columnNumbers().map((c) => {
        const names: PairNames = {
          own: (name) => `${name}${i}_${c}`,
          row: (name) => `${name}${i}`,
          column: (name) => `${name}${c}`,
          rowInTile: t.row(i),
          columnInTile: t.column(c),
          hasBit: (word) => t.hasBit(word, i, c),
        };
        return `{ ${body(names)} }`;
      }),
    )
    .join('\n');
}

function loopedPairs(t: TileText, use: PairUse, body: (names: PairNames) => string): string {
  const { row = [], column = [], sums = [] } = use;
  const rows = t.rowNumbers();
  const columns = t.columnNumbers();
  const pairs = rows.flatMap((i) => columns.map((c) => ({ name: `${i}_${c}`, number: i * columns.length + c })));
  const pick = (word: string, to: string, names: readonly string[], index: string): string => `${word} ${to} = ${pickText(names, index)};`;
  const names: PairNames = {
    own: (name) => `${name}Own`,
    row: (name) => `${name}Row`,
    column: (name) => `${name}Column`,
    rowInTile: 'pairRow',
    columnInTile: 'pairColumn',
    hasBit: (word) => `(${word} & (1u << pair)) != 0u`,
  };
  return `
    ${t.pairLoop(`
      let rowOfPair = pair / ${columns.length}u; let columnOfPair = pair % ${columns.length}u;
      ${use.own
        .map((name) =>
          pick(
            'var',
            names.own(name),
            pairs.map((p) => `${name}${p.name}`),
            'pair',
          ),
        )
        .join('\n')}
      ${row
        .map((name) =>
          pick(
            'let',
            names.row(name),
            rows.map((i) => `${name}${i}`),
            'rowOfPair',
          ),
        )
        .join('\n')}
      ${column
        .map((name) =>
          pick(
            'let',
            names.column(name),
            columns.map((c) => `${name}${c}`),
            'columnOfPair',
          ),
        )
        .join('\n')}
      ${sums
        .map((name) =>
          pick(
            'var',
            names.row(name),
            rows.map((i) => `${name}${i}`),
            'rowOfPair',
          ),
        )
        .join('\n')}
      { ${body(names)} }
      ${use.own.map((name) => pairs.map((p) => `${name}${p.name} = select(${name}${p.name}, ${names.own(name)}, pair == ${p.number}u);`).join(' ')).join('\n')}
      ${sums
        .map((name) =>
          range(rows.length)
            .map((i) => `${name}${i} = select(${name}${i}, ${names.row(name)}, rowOfPair == ${i}u);`)
            .join(' '),
        )
        .join('\n')}`)}`;
}
