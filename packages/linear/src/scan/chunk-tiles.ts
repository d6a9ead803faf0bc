import { HeldTile } from './held-tile.js';
import type { MatrixLayout } from './matrix-tile.js';
import type { ChunkSpec } from './matrix-text.js';
import { TileTurns } from './tile-turns.js';

/** The tiles of a chunk: queries to `left`, keys to `right`, values to `values`; and their turns by position. */
export interface ChunkTiles {
  queries: HeldTile;
  keys: HeldTile;
  values: HeldTile;
  turns: TileTurns | undefined;
}

export function chunkTiles(s: ChunkSpec, layout: MatrixLayout, lanes: number): ChunkTiles {
  const held = { rows: s.chunk, lanes };
  const keyRows = { ...held, dim: s.keyDim, width: layout.keys, stride: layout.keyStride, first: '0u' };
  const valueRows = { ...held, dim: s.valueDim, width: s.columns, stride: layout.valueStride, first: 'columns' };
  const rows = s.turned === 'values' ? valueRows : keyRows;
  const headDim = s.turnForm === 'concat' ? rows.dim / 2 : rows.dim;
  const turns = s.turned === 'none' ? undefined : new TileTurns({ ...rows, form: s.turnForm, headDim });
  const ofKeys = s.turned === 'keys' ? turns : undefined;
  return {
    queries: new HeldTile({ ...keyRows, name: 'q', tile: 'left', load: s.loadQ, turns: ofKeys }),
    keys: new HeldTile({ ...keyRows, name: 'k', tile: 'right', load: s.loadK, turns: ofKeys }),
    values: new HeldTile({ ...valueRows, name: 'v', tile: 'values', load: s.loadV, turns: s.turned === 'values' ? turns : undefined }),
    turns,
  };
}
