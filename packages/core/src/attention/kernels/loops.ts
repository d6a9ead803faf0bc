// Loops over the key tiles that a query tile sees, and over the query rows that a key tile is seen by.
import type { ScoreSpec } from './common.js';

/**
 * Text that runs `body` for each key tile of a query tile.
 *
 * Reads: `b`, `listHead` (query head, or first of the group), `qFirst`, `qLast` (positions of the first and last row, i32),
 * `queryBlock` (selections), `keyEnd`. In the body: `keyStart`, `keyStop` (keys from there on do not belong to the tile),
 * `masked` (some pair of the tile may be invisible).
 * @param splits the loop takes part `split` of `uniforms.splits` of the tiles
 */
export function keyLoop(spec: ScoreSpec, columns: number, body: string, splits = false): string {
  const always = spec.mask === '' ? '' : ' || true';
  const range = shareOf(splits);
  const bandTest = `keyStart + ${columns}u > keyStop || i32(keyStart + ${columns}u) - 1 > qFirst + uniforms.right || (i32(keyStart) < qLast - uniforms.left && keyStart + ${columns}u > uniforms.prefix)`;
  const outside = `i32(keyStart) > qLast + uniforms.right || (i32(keyStart + ${columns}u) <= qFirst - uniforms.left && keyStart >= uniforms.prefix)`;
  switch (spec.list) {
    case 'band':
      return `
        let bandEnd = u32(clamp(qLast + uniforms.right + 1, 0, i32(keyEnd)));
        let firstTile = min(u32(max(qFirst - uniforms.left, 0)), bandEnd) / ${columns}u;
        let prefixTiles = min(firstTile, (min(uniforms.prefix, bandEnd) + ${columns - 1}u) / ${columns}u);
        let count = prefixTiles + (bandEnd + ${columns - 1}u) / ${columns}u - firstTile;
        ${range('count')}
        for (var n = begin; n < end; n++) {
          let keyStart = select(firstTile + n - prefixTiles, n, n < prefixTiles) * ${columns}u;
          let keyStop = keyEnd;
          let masked = ${bandTest}${always};
          ${body}
        }`;
    case 'runs':
      return runLoop(
        'listHead',
        'tileNumber',
        range,
        `let keyStart = tile * ${columns}u;
        let keyStop = keyEnd;
        if (keyStart >= keyStop) { continue; }
        let masked = stop < 0x80000000u || keyStart + ${columns}u > keyStop;
        ${body}`,
      );
    case 'ids':
      return `
        let listRow = listRowOf(b, listHead, queryBlock);
        let tilesABlock = (uniforms.blockKeys + ${columns - 1}u) / ${columns}u;
        let count = ${spec.counted ? 'min(arena[base_arena() + uniforms.rowsAt + listRow], uniforms.listWords)' : 'uniforms.listWords'} * tilesABlock;
        ${range('count')}
        for (var n = begin; n < end; n++) {
          let block = arena[base_arena() + uniforms.runsAt + listRow * uniforms.listWords + n / tilesABlock];
          let keyStart = block * uniforms.blockKeys + n % tilesABlock * ${columns}u;
          let keyStop = min(keyEnd, (block + 1u) * uniforms.blockKeys);
          if (keyStart >= keyStop || ${outside}) { continue; }
          let masked = ${bandTest}${always};
          ${body}
        }`;
    case 'bits':
      return bitLoop(
        { head: 'listHead', number: 'queryBlock', edge: 'uniforms.blockKeys', columns, splits },
        `let keyStart = block * uniforms.blockKeys + piece * ${columns}u;
              let keyStop = min(keyEnd, (block + 1u) * uniforms.blockKeys);`,
        `keyStart >= keyStop || ${outside}`,
        `let masked = ${bandTest}${always};
              ${body}`,
      );
  }
}

/** `begin` and `end` of the listed tiles, or of one part of them. */
function shareOf(splits: boolean): (count: string) => string {
  return (count) =>
    splits
      ? `let share = (${count} + uniforms.splits - 1u) / uniforms.splits;
         let begin = min(split * share, ${count}); let end = min(begin + share, ${count});`
      : `let begin = 0u; let end = ${count};`;
}

/** A row of the arena of mask/tile-runs.ts, full runs first, then partial ones: `tile` in the body, of a run whose end word is `stop`. */
function runLoop(head: string, number: string, range: (count: string) => string, body: string): string {
  return `
    let listRow = listRowOf(b, ${head}, ${number});
    let runs = base_arena() + uniforms.runsAt;
    let firstRun = arena[base_arena() + uniforms.rowsAt + 2u * listRow];
    let endRun = arena[base_arena() + uniforms.rowsAt + 2u * listRow + 2u];
    var count = 0u;
    for (var run = firstRun; run < endRun; run++) { count += (arena[runs + 2u * run + 1u] & 0x7fffffffu) - arena[runs + 2u * run]; }
    ${range('count')}
    var before = 0u;
    for (var run = firstRun; run < endRun; run++) {
      let first = arena[runs + 2u * run];
      let stop = arena[runs + 2u * run + 1u];
      let length = (stop & 0x7fffffffu) - first;
      let firstTile = first + min(max(begin, before) - before, length);
      let endTile = first + min(max(end, before) - before, length);
      before += length;
      for (var tile = firstTile; tile < endTile; tile++) {
        ${body}
      }
    }`;
}

/** A row of bit words, each bit a block of `edge` tokens: `place` and `body` for its pieces of `columns` tokens but those that are `hidden`. */
function bitLoop(
  list: { head: string; number: string; edge: string; columns: number; splits: boolean },
  place: string,
  hidden: string,
  body: string,
): string {
  const { head, number, edge, columns, splits } = list;
  return `
        let listRow = base_arena() + uniforms.runsAt + listRowOf(b, ${head}, ${number}) * uniforms.listWords;
        let tilesABlock = (${edge} + ${columns - 1}u) / ${columns}u;
        ${splits ? 'var count = 0u; for (var w = 0u; w < uniforms.listWords; w++) { count += countOneBits(arena[listRow + w]) * tilesABlock; }' : 'let count = 0xffffffffu;'}
        ${shareOf(splits)('count')}
        var n = 0u;
        for (var w = 0u; w < uniforms.listWords; w++) {
          var bits = arena[listRow + w];
          while (bits != 0u) {
            let block = w * 32u + firstTrailingBit(bits);
            bits &= bits - 1u;
            for (var piece = 0u; piece < tilesABlock; piece++) {
              ${place}
              let mine = n >= begin && n < end;
              n++;
              if (!mine || ${hidden}) { continue; }
              ${body}
            }
          }
        }`;
}

/**
 * Text that runs `body` for each tile of `columns` queries that sees some of the `rows` keys from `keyStart` on.
 *
 * Reads `b`, `h`, `keyStart`, `keyStop`, `keyEnd`, `keyTile`, `keyBlock` (selections), `queryOffset`. In the body: `rowStart`, `rowEnd`, `masked`.
 */
export function queryLoop(spec: ScoreSpec, columns: number, rows: number, body: string, splits: boolean): string {
  const range = shareOf(splits);
  const always = spec.mask === '' ? '' : ' || true';
  const bandTest = `keyStart + ${rows}u > keyStop || i32(keyStart + ${rows}u) - 1 > i32(rowStart) + queryOffset + uniforms.right || (i32(keyStart) < i32(rowStart + ${columns - 1}u) + queryOffset - uniforms.left && keyStart + ${rows}u > uniforms.prefix)`;
  if (spec.list === 'runs') {
    return runLoop(
      'h',
      'keyTile',
      range,
      `let rowStart = tile * ${columns}u;
      let rowEnd = uniforms.queries;
      if (keyStart >= keyEnd) { continue; }
      let masked = stop < 0x80000000u || keyStart + ${rows}u > keyEnd;
      ${body}`,
    );
  }
  if (spec.list === 'band') {
    return `
      let lastKey = i32(min(keyStart + ${rows}u, keyEnd)) - 1;
      let lowRow = u32(clamp(i32(keyStart) - uniforms.right - queryOffset, 0, i32(uniforms.queries)));
      let reach = select(lastKey + uniforms.left - queryOffset + 1, i32(uniforms.queries), keyStart < uniforms.prefix);
      let highRow = select(u32(clamp(reach, 0, i32(uniforms.queries))), 0u, keyStart >= keyEnd);
      let firstTile = min(lowRow, highRow) / ${columns}u;
      let count = (highRow + ${columns - 1}u) / ${columns}u - firstTile;
      ${range('count')}
      for (var n = begin; n < end; n++) {
        let rowStart = (firstTile + n) * ${columns}u;
        let rowEnd = uniforms.queries;
        let masked = ${bandTest}${always};
        ${body}
      }`;
  }
  const outside = `i32(keyStart) > i32(rowStart + ${columns - 1}u) + queryOffset + uniforms.right || (i32(keyStart + ${rows}u) <= i32(rowStart) + queryOffset - uniforms.left && keyStart >= uniforms.prefix)`;
  return bitLoop(
    { head: 'h', number: 'keyBlock', edge: 'uniforms.blockQueries', columns, splits },
    `let rowStart = block * uniforms.blockQueries + piece * ${columns}u;
              let rowEnd = min(uniforms.queries, (block + 1u) * uniforms.blockQueries);`,
    `rowStart >= rowEnd || keyStart >= keyStop || ${outside}`,
    `let masked = ${bandTest}${always};
              ${body}`,
  );
}
