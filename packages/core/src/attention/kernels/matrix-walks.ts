// Walks over the key tiles that a query tile sees, and over the query tiles that a key tile is seen by, as text that finds the next
// tile: kernels on fragments load it while they compute the one before. The tiles are those of loops.ts.
import type { ScoreSpec } from './common.js';

export interface Walk {
  /** Declares the state. */
  declare: string;
  /** Finds the next tile: sets `found` and, where it is true, `nextStart`, `nextStop`, `nextMasked` and `nextBits`, the number of a partial tile. */
  advance: string;
}

const none = 'var found = false; var nextStart = 0u; var nextStop = 0u; var nextMasked = false; var nextBits = 0u;';

function search(body: string): string {
  return `found = false; nextStop = 0u; loop { ${body} }`;
}

/** Of the key tiles of a query tile; reads what keyLoop reads. */
export function keyWalk(spec: ScoreSpec, columns: number): Walk {
  const always = spec.mask === '' ? '' : ' || true';
  const masked = (start: string, stop: string): string =>
    `${start} + ${columns}u > ${stop} || i32(${start} + ${columns}u) - 1 > qFirst + uniforms.right || (i32(${start}) < qLast - uniforms.left && ${start} + ${columns}u > uniforms.prefix)${always}`;
  const take = (start: string, stop: string): string =>
    `found = true; nextStart = ${start}; nextStop = ${stop}; nextMasked = ${masked(start, stop)}; break;`;
  const outside = `i32(start) > qLast + uniforms.right || (i32(start + ${columns}u) <= qFirst - uniforms.left && start >= uniforms.prefix)`;
  switch (spec.list) {
    case 'band':
      return {
        declare: `var found = false; var nextStart = 0u; let nextStop = keyEnd; var nextMasked = false; let nextBits = 0u;
          let bandEnd = u32(clamp(qLast + uniforms.right + 1, 0, i32(keyEnd)));
          let firstStart = min(u32(max(qFirst - uniforms.left, 0)), bandEnd) / ${columns}u * ${columns}u;
          let leadingStop = min(firstStart, (min(uniforms.prefix, bandEnd) + ${columns - 1}u) / ${columns}u * ${columns}u);
          let wholeFrom = u32(max(qLast - uniforms.left, 0));
          let wholeTo = min(u32(max(qFirst + uniforms.right + 1, 0)), keyEnd);
          var walkAt = select(firstStart, 0u, leadingStop > 0u);`,
        advance: `
          found = walkAt < bandEnd;
          nextStart = walkAt;
          walkAt += ${columns}u;
          nextMasked = walkAt > wholeTo || (nextStart < wholeFrom && walkAt > uniforms.prefix)${always};
          if (walkAt == leadingStop) { walkAt = firstStart; }`,
      };
    case 'runs':
      return runWalk(
        'listHead',
        'tileNumber',
        `let start = tile * ${columns}u;
        tile++;
        if (start >= keyEnd) { continue; }
        ${bitsOfTile(spec)}
        found = true; nextStart = start; nextStop = keyEnd; nextMasked = stop < 0x80000000u || start + ${columns}u > keyEnd; break;`,
      );
    case 'ids':
      return {
        declare: `${none}
          let listRow = listRowOf(b, listHead, queryBlock);
          let tilesABlock = (uniforms.blockKeys + ${columns - 1}u) / ${columns}u;
          let count = ${spec.counted ? 'min(arena[base_arena() + uniforms.rowsAt + listRow], uniforms.listWords)' : 'uniforms.listWords'} * tilesABlock;
          var step = 0u;`,
        advance: search(`
          if (step >= count) { break; }
          let block = arena[base_arena() + uniforms.runsAt + listRow * uniforms.listWords + step / tilesABlock];
          let start = block * uniforms.blockKeys + step % tilesABlock * ${columns}u;
          let stop = min(keyEnd, (block + 1u) * uniforms.blockKeys);
          step++;
          if (start >= stop || ${outside}) { continue; }
          ${take('start', 'stop')}`),
      };
    case 'bits':
      return bitWalk(
        `listRowOf(b, listHead, queryBlock)`,
        `(uniforms.blockKeys + ${columns - 1}u) / ${columns}u`,
        `let start = block * uniforms.blockKeys + (piece - 1u) * ${columns}u;
        let stop = min(keyEnd, (block + 1u) * uniforms.blockKeys);
        if (start >= stop || ${outside}) { continue; }
        ${take('start', 'stop')}`,
      );
  }
}

/** Of the tiles of `columns` queries that see some of the `rows` keys from `keyStart` on; reads what queryLoop reads. */
export function queryWalk(spec: ScoreSpec, columns: number, rows: number, splits: boolean): Walk {
  const always = spec.mask === '' ? '' : ' || true';
  const take = (stop: string): string =>
    `found = true; nextStart = start; nextStop = ${stop};
     nextMasked = keyStart + ${rows}u > keyStop || start + ${columns}u > ${stop} || i32(keyStart + ${rows}u) - 1 > i32(start) + queryOffset + uniforms.right || (i32(keyStart) < i32(start + ${columns - 1}u) + queryOffset - uniforms.left && keyStart + ${rows}u > uniforms.prefix)${always}; break;`;
  if (spec.list === 'runs')
    return runWalk(
      'h',
      'keyTile',
      `let start = tile * ${columns}u;
      tile++;
      ${splits ? 'let mine = walked >= begin && walked < end; walked++; if (!mine) { continue; }' : ''}
      if (keyStart >= keyEnd) { continue; }
      ${bitsOfTile(spec)}
      found = true; nextStart = start; nextStop = uniforms.queries;
      nextMasked = stop < 0x80000000u || keyStart + ${rows}u > keyEnd || start + ${columns}u > uniforms.queries; break;`,
      splits,
    );
  if (spec.list === 'band')
    return {
      declare: `var found = false; var nextStart = 0u; let nextStop = uniforms.queries; var nextMasked = false; let nextBits = 0u;
        let lastKey = i32(min(keyStart + ${rows}u, keyEnd)) - 1;
        let lowRow = u32(clamp(i32(keyStart) - uniforms.right - queryOffset, 0, i32(uniforms.queries)));
        let reach = select(lastKey + uniforms.left - queryOffset + 1, i32(uniforms.queries), keyStart < uniforms.prefix);
        let highRow = select(u32(clamp(reach, 0, i32(uniforms.queries))), 0u, keyStart >= keyEnd);
        let firstTile = min(lowRow, highRow) / ${columns}u;
        let count = (highRow + ${columns - 1}u) / ${columns}u - firstTile;
        ${shareOf(splits)}
        // rows from the first on, and tiles up to the last, that see all keys of the tile
        let wholeFrom = u32(max(i32(keyStart + ${rows}u) - 1 - queryOffset - uniforms.right, 0));
        let wholeTo = select(
          select(i32(keyStart) + uniforms.left - queryOffset - ${columns - 1}, i32(uniforms.queries), keyStart + ${rows}u <= uniforms.prefix),
          -1, keyStart + ${rows}u > keyStop);
        var walkAt = ${splits ? '(firstTile + begin)' : 'firstTile'} * ${columns}u;
        let walkEnd = ${splits ? '(firstTile + end)' : '(firstTile + count)'} * ${columns}u;`,
      advance: `
        found = walkAt < walkEnd;
        nextStart = walkAt;
        walkAt += ${columns}u;
        nextMasked = nextStart < wholeFrom || i32(nextStart) > wholeTo || walkAt > uniforms.queries${always};`,
    };
  const outside = `i32(keyStart) > i32(start + ${columns - 1}u) + queryOffset + uniforms.right || (i32(keyStart + ${rows}u) <= i32(start) + queryOffset - uniforms.left && keyStart >= uniforms.prefix)`;
  return bitWalk(
    `listRowOf(b, h, keyBlock)`,
    `(uniforms.blockQueries + ${columns - 1}u) / ${columns}u`,
    `let start = block * uniforms.blockQueries + (piece - 1u) * ${columns}u;
    let stop = min(uniforms.queries, (block + 1u) * uniforms.blockQueries);
    ${splits ? 'let mine = walked >= begin && walked < end; walked++; if (!mine) { continue; }' : ''}
    if (start >= stop || keyStart >= keyStop || ${outside}) { continue; }
    ${take('stop')}`,
    splits,
  );
}

/** Number of the partial tile behind which `tile` already stands. */
function bitsOfTile(spec: ScoreSpec): string {
  return spec.bits > 0 ? 'nextBits = arena[base_arena() + uniforms.bitTilesAt + run - 1u] + tile - 1u;' : '';
}

function shareOf(splits: boolean): string {
  return splits
    ? `let share = (count + uniforms.splits - 1u) / uniforms.splits;
       let begin = min(split * share, count); let end = min(begin + share, count);`
    : '';
}

/** Tiles of a row of the arena of mask/tile-runs.ts, full runs first; `body` has `tile` and the end word `stop` of its run. */
function runWalk(head: string, number: string, body: string, splits = false): Walk {
  return {
    declare: `${none}
      let listRow = listRowOf(b, ${head}, ${number});
      let runs = base_arena() + uniforms.runsAt;
      var run = arena[base_arena() + uniforms.rowsAt + 2u * listRow];
      let endRun = arena[base_arena() + uniforms.rowsAt + 2u * listRow + 2u];
      ${
        splits
          ? `var count = 0u; var walked = 0u;
      for (var r = run; r < endRun; r++) { count += (arena[runs + 2u * r + 1u] & 0x7fffffffu) - arena[runs + 2u * r]; }
      ${shareOf(true)}`
          : ''
      }
      var tile = 0u; var stop = 0u;`,
    advance: search(`
      if (tile >= (stop & 0x7fffffffu)) {
        if (run >= endRun) { break; }
        tile = arena[runs + 2u * run];
        stop = arena[runs + 2u * run + 1u];
        run++;
        continue;
      }
      ${body}`),
  };
}

/** Pieces of the blocks whose bits are set in a row of words; `body` has `block` and `piece`, counted from 1. */
function bitWalk(row: string, pieces: string, body: string, splits = false): Walk {
  return {
    declare: `${none}
      let listRow = base_arena() + uniforms.runsAt + ${row} * uniforms.listWords;
      let tilesABlock = ${pieces};
      ${
        splits
          ? `var count = 0u; var walked = 0u;
      for (var w = 0u; w < uniforms.listWords; w++) { count += countOneBits(arena[listRow + w]) * tilesABlock; }
      ${shareOf(true)}`
          : ''
      }
      var word = 0u; var bits = 0u; var block = 0u; var piece = tilesABlock;`,
    advance: search(`
      if (piece >= tilesABlock) {
        if (bits == 0u) {
          if (word >= uniforms.listWords) { break; }
          bits = arena[listRow + word];
          word++;
          continue;
        }
        block = (word - 1u) * 32u + firstTrailingBit(bits);
        bits &= bits - 1u;
        piece = 0u;
      }
      piece++;
      ${body}`),
  };
}
