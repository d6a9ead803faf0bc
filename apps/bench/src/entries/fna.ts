import { reshape } from '@heed/core';
import { fna } from '@heed/sparse-local/fna';
import type { Entry, Family, Pass } from '../entry.js';
import { attentionEntry } from './attention.js';

/** Keys of a query on an edge x edge grid, raster order: window x window of them, shifted inside at borders. */
export function neighborhoodKeys(edge: number, window: number, query: number): number[] {
  const start = (place: number): number => Math.min(Math.max(place - (window >> 1), 0), edge - window);
  const [top, left] = [start(Math.floor(query / edge)), start(query % edge)];
  return Array.from({ length: window * window }, (_, i) => (top + Math.floor(i / window)) * edge + left + (i % window));
}

interface Setting {
  readonly edge: number;
  readonly window: number;
  readonly heads: number;
  readonly dtype: 'f16' | 'f32';
  readonly pass: Pass;
}

function neighborhood({ edge, window, heads, dtype, pass }: Setting): Entry {
  const tokens = edge * edge;
  const headDim = 64;
  const grid = [1, edge, edge, heads, headDim];
  return attentionEntry({
    id: `fna2d/${edge}x${edge}/${window}x${window}/${dtype}/d${headDim}/${pass}`,
    tokens,
    heads,
    kvHeads: heads,
    headDim,
    dtype,
    pass,
    pairs: heads * tokens * window * window,
    visible: (_head, query) => neighborhoodKeys(edge, window, query),
    call: (q, k, v) => reshape(fna(reshape(q, grid), reshape(k, grid), reshape(v, grid), { window }), [1, tokens, heads, headDim]),
    shape: { grid: `${edge}x${edge}`, window: `${window}x${window}` },
    series: `fna, 2-D, ${window}x${window}, ${dtype}, ${pass}`,
  });
}

/** Neighborhood attention on square grids; the permutation into token tiles and back is part of the time. */
export const fna2d: Family = ({ suite, software, sizes }) => {
  const edges = sizes?.map((tokens) => Math.round(Math.sqrt(tokens)));
  if (software) {
    if (suite !== 'quick' && suite !== 'kernels' && suite !== 'scaling') return [];
    const setting = { window: 5, heads: 2, dtype: 'f32' } as const;
    return (edges ?? (suite === 'scaling' ? [16, 32, 48] : [32]))
      .filter((e) => e >= 5)
      .map((edge) => neighborhood({ ...setting, edge, pass: 'forward' }));
  }
  const setting = { window: 13, heads: 16, dtype: 'f16' } as const;
  const make = (list: readonly number[], pass: Pass): Entry[] =>
    list.filter((e) => e >= 13).map((edge) => neighborhood({ ...setting, edge, pass }));
  if (suite === 'quick') return make(edges ?? [128], 'forward');
  if (suite === 'kernels') return [...make(edges ?? [128], 'forward'), ...make(edges ?? [128], 'backward')];
  if (suite === 'scaling') return make(edges ?? [32, 64, 128, 256, 512, 1024], 'forward');
  return [];
};
