import type { MatrixLayout, MatrixTile } from './matrix-tile.js';

/** Sizes of the sweep with outputs, whose states pass through workgroup memory as f16. */
export interface OutputLayout extends MatrixLayout {
  /** Elements of 16 bytes of each of the two parts of `stage`: a slice of the state, or scores. */
  slice: number;
  /** Where masked scores have a place of their own in `stage`; undefined: they take that of the queries. */
  masked: number | undefined;
}

/** Maxima from which the range of f16 copies is bounded. */
const peakBytes = 16;

/** Workgroup memory of the sweep with outputs. */
export function outputLayout(keyDim: number, tile: MatrixTile): OutputLayout {
  const { chunk, columns, rowGroups, slices } = tile;
  const granule = 16 * rowGroups * slices;
  const keys = Math.ceil(keyDim / granule) * granule;
  // an odd number of 16 bytes a row: no bank conflicts
  const [keyStride, valueStride, scoreStride] = [keys / 8 + 1, columns / 8 + 1, chunk / 8 + 1];
  // 32 bytes more a row: four rows of an f32 fragment lie in different banks; 16 for scores, where every byte counts
  const [floatStride, scoreFloatStride] = [columns / 4 + 2, chunk / 4 + 1];
  const state = (keys / slices) * valueStride;
  const slice = Math.max(state, chunk * scoreFloatStride);
  const separate = ownScores(slices);
  const left = chunk * Math.max(keyStride, separate ? 0 : scoreStride);
  const right = Math.max(chunk * keyStride, slices > 2 ? state : 0);
  const values = chunk * valueStride;
  // f32 outputs, and slices of an f32 state that was made before
  const shared = Math.max(2 * slice, chunk * floatStride, (keys / slices) * floatStride);
  const stage = shared + (separate ? chunk * scoreStride : 0);
  const bytes = (left + right + values + stage) * 16 + peakBytes;
  return {
    keys,
    keyStride,
    valueStride,
    scoreStride,
    floatStride,
    scoreFloatStride,
    left,
    right,
    values,
    slice,
    masked: separate ? shared : undefined,
    stage,
    bytes,
  };
}

/** Whether scores can be masked while the last slice is multiplied by queries: a part of `stage` is free a step earlier then. */
function ownScores(slices: number): boolean {
  return slices > 2 && slices % 3 !== 2;
}
