import { type Device, type Tensor, zeros } from '@heed/core';
import { zeta } from '@heed/topk/zeta';
import type { Entry, Family, Opened } from '../entry.js';
import { input } from '../inputs.js';
import { readRows, rowError, sampleRows, worst } from '../samples.js';
import { ZETA_DIMS, ZETA_OPTIONS, zetaRow } from '../zeta-row.js';

interface Setting {
  readonly tokens: number;
  readonly heads: number;
  readonly valueDim: number;
  readonly dtype: 'f16' | 'f32';
}

function entry(setting: Setting): Entry {
  const { tokens, heads, valueDim, dtype } = setting;
  const { topK } = ZETA_OPTIONS;
  const values = tokens * heads * valueDim * (dtype === 'f16' ? 2 : 4);
  const points = tokens * heads * ZETA_DIMS * 4;
  return {
    id: `zeta/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, keyDim: ZETA_DIMS, valueDim, topK, window: ZETA_OPTIONS.window, chunk: ZETA_OPTIONS.chunk },
    dtype,
    pass: 'forward',
    work: {
      algorithm: `q, k, v read once, out written once, and ${topK} rows of v gathered a query, counted as if from memory`,
      bytes: 2 * points + 2 * values + topK * values,
      flops: 2 * tokens * heads * (topK + 1) * valueDim,
      units: 'f32',
    },
    memory: {
      bytes: 2 * points + 2 * values + 2 * tokens * heads * 4,
      why: 'q, k, v, out and the codes of q and k; sorted runs and chunk sums come on top',
    },
    tolerance: dtype === 'f16' ? 4e-3 : 5e-4,
    series: { name: `zeta, top ${topK}, ${dtype}, forward`, tokens },
    open: (device) => open(device, setting),
  };
}

function open(device: Device, { tokens, heads, valueDim, dtype }: Setting): Opened {
  const points = [1, tokens, heads, ZETA_DIMS];
  const q = input(device, 'zetaq', points, { grain: 'fine' });
  const k = input(device, 'zetak', points, { grain: 'fine' });
  const v = input(device, 'v', [1, tokens, heads, valueDim], { dtype });
  const theta = zeros(device, [heads]);
  const rows = sampleRows(tokens, heads);
  return {
    run: () => [zeta(q, k, v, theta, ZETA_OPTIONS)],
    async sample([out]) {
      const got = await readRows(out as Tensor, rows);
      return () => worst(rows.map(({ token, head }, i) => rowError(got[i] as Float64Array, zetaRow({ heads, valueDim }, head, token))));
    },
    dispose: () => [q, k, v, theta].forEach((t) => t.dispose()),
  };
}

/** ZETA with the paper's settings: three-dimensional points, 32 of 64 candidates kept, chunks of 256, history mean. */
export const zetaFamily: Family = ({ suite, software, sizes }) => {
  const make = (tokens: number): Entry =>
    entry(software ? { tokens, heads: 2, valueDim: 64, dtype: 'f32' } : { tokens, heads: 16, valueDim: 64, dtype: 'f16' });
  if (suite === 'quick' || suite === 'kernels') return (sizes ?? (software ? [1024] : [16384, 65536])).map(make);
  if (suite === 'scaling') return (sizes ?? Array.from({ length: software ? 3 : 11 }, (_, i) => 2 ** (i + (software ? 9 : 10)))).map(make);
  return [];
};
