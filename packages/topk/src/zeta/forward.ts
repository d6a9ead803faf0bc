import { scope, type Tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { attend } from './kernels/attend.js';
import { packTokens } from './kernels/codes.js';
import { extendRuns, type Runs } from './kernels/runs.js';
import { extendSums, sumTile } from './kernels/sums.js';
import { columnsOf, valueRows } from './kernels/values.js';
import { isHalf, meansOf } from './kernels/means.js';
import { findWindows, windowTile } from './kernels/window.js';
import type { ZetaSettings } from './options.js';
import { planZeta, slabsOf, type ZetaPlan } from './plan.js';

/** The plan of tensors q [batch, tokens, heads, keyDim] and v [batch, tokens, heads, valueDim]. */
export function planOf(q: Tensor, v: Tensor, settings: ZetaSettings): ZetaPlan {
  return planZeta(settings, { rows: q.dim(0) * q.dim(2), tokens: q.dim(1), valueDim: v.dim(3), half: isHalf(v) }, q.device.capabilities);
}

/** Sizes of the attention kernel. */
export function attendSizes(
  settings: ZetaSettings,
  plan: ZetaPlan,
): { window: number; topK: number; localWindow: number; curves: number; tile: number; lanes: number } {
  const { window, topK, localWindow, curves } = settings;
  return { window, topK, localWindow, curves, ...plan.forward };
}

/** Keys or queries of rows firstRow .. behind each other, f32 [rows, tokens, 4]. */
export function packRows(x: Tensor, firstRow: number, rows: number): Tensor {
  const tokens = x.dim(1);
  const packed = empty(x.device, [rows, tokens, 4]);
  packTokens(x, packed, { rows, firstRow, heads: x.dim(2), tokens, firstToken: 0, capacity: tokens });
  return packed;
}

/** Running sums of keys and values, f32 [rows, tiles + 1, 1 + columns, 4]. */
export function runningSums(k: Tensor, v: Tensor, firstRow: number): Tensor {
  const [rows, tokens] = [k.dim(0), k.dim(1)];
  const tiles = Math.ceil(tokens / sumTile);
  const sums = empty(k.device, [rows, tiles + 1, 1 + columnsOf(v.dim(3)), 4]);
  extendSums(k, v, sums, { rows, firstRow, heads: v.dim(2), capacity: tokens, firstTile: 0, tiles, entries: tiles + 1, tokens });
  return sums;
}

/**
 * The parallel form: slab of rows by slab of rows pack, sort, search, attend.
 * @returns out [batch, tokens, heads, valueDim], and where `store` the kept tokens, i32 [batch, tokens, heads, topK]
 */
export function runZeta(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  theta: Tensor,
  settings: ZetaSettings,
  store: boolean,
): { out: Tensor; indices: Tensor | undefined } {
  const { device } = q;
  const [batch, tokens, heads] = [q.dim(0), q.dim(1), q.dim(2)];
  const { curves, window, causal, historyMean, topK, keyDim, chunk } = settings;
  const out = empty(device, [batch, tokens, heads, v.dim(3)], v.dtype);
  const indices = store ? empty(device, [batch, tokens, heads, topK], 'i32') : undefined;
  if (out.size === 0) return { out, indices };
  const plan = planOf(q, v, settings);
  const values = valueRows(v).tensor;
  for (const [firstRow, rows] of slabsOf(batch * heads, plan.slab)) {
    scope(() => {
      const packedK = packRows(k, firstRow, rows);
      const packedQ = packRows(q, firstRow, rows);
      const pairs = empty(device, [curves, rows, plan.allLevels, tokens, 2], 'u32');
      const runs: Runs = { pairs, curves, rows, levels: plan.allLevels, capacity: tokens, block: plan.block };
      extendRuns(runs, packedK, settings, keyDim, 0, tokens, true);
      const windows = empty(device, [rows, Math.ceil(tokens / windowTile), window, windowTile], 'u32');
      findWindows(runs, packedQ, windows, {
        range: settings,
        keyDim,
        chunk,
        causal,
        window,
        queries: tokens,
        firstQuery: 0,
        keys: tokens,
        runs: plan.runs,
        sweep: true,
      });
      const place = { rows, firstRow, heads, capacity: tokens, queries: tokens, firstQuery: 0 };
      const own = { q: packedQ, k: packedK, v: values, theta };
      const entries = Math.ceil(tokens / sumTile) + 1;
      const means = historyMean
        ? meansOf({ ...own, sums: runningSums(packedK, values, firstRow) }, { entries, tokens, causal, ...place })
        : undefined;
      attend({ windows, means, out, indices, ...own, ...place }, attendSizes(settings, plan));
    });
  }
  return { out, indices };
}
