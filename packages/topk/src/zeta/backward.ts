import { scope, sortPairs, type Tensor, zeros } from '@heed/core';
import { asContiguous, empty } from '@heed/core/~internal';
import { packRows, runningSums } from './forward.js';
import { differentiateKeys, meanTileSums, pairsOf, startsOf } from './kernels/backward-keys.js';
import { differentiateQueries, workLength } from './kernels/backward-queries.js';
import { differentiateTheta, gammaSums, sumGamma } from './kernels/backward-theta.js';
import { meansOf } from './kernels/means.js';
import { scanSums, sumTile } from './kernels/sums.js';
import { columnsOf, valueRows } from './kernels/values.js';
import type { ZetaSettings } from './options.js';
import { slabsOf } from './plan.js';

/** Temporaries of a slab of rows, at most, unless one row alone needs more. */
const slabBytes = 256 * 2 ** 20;

/** Rows that the backward pass takes at once. */
export function backwardSlab(rows: number, tokens: number, topK: number, localWindow: number, bindingBytes: number): number {
  // the pairs twice over while they are sorted, and the work tensor, which is the largest
  const work = tokens * 4 * workLength(topK, localWindow);
  const bytesPerRow = tokens * 24 * topK + work;
  return Math.max(1, Math.min(rows, Math.floor(slabBytes / Math.max(1, bytesPerRow)), Math.floor(bindingBytes / Math.max(1, work))));
}

/**
 * Gradients of q, k, v and theta for a given selection, all in a fixed order: by query what each kept token gives, then by key over
 * the transposed lists (sorted by key), the mean tokens through running sums from the end.
 */
export function backwardZeta(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  theta: Tensor,
  indices: Tensor,
  dOut: Tensor,
  settings: ZetaSettings,
): readonly [Tensor, Tensor, Tensor, Tensor] {
  const { device } = q;
  const [batch, tokens, heads] = [q.dim(0), q.dim(1), q.dim(2)];
  const { topK, localWindow, causal, historyMean: mean, keyDim } = settings;
  const dq = empty(device, q.shape);
  const dk = empty(device, k.shape);
  const dv = empty(device, v.shape, v.dtype);
  if (v.size === 0) return [zeros(device, q.shape), zeros(device, k.shape), dv, zeros(device, theta.shape)];
  const dTheta = empty(device, theta.shape);
  const { tensor: values, spec: valueSpec } = valueRows(v);
  const cotangent = asContiguous(dOut, 4);
  const rowSums = gammaSums(device, batch * heads);
  const tiles = Math.ceil(tokens / sumTile);
  const columns = columnsOf(v.dim(3)) + 1;
  const spec = { ...valueSpec, keyDim, topK, localWindow, mean };
  const slab = backwardSlab(batch * heads, tokens, topK, localWindow, device.limits.maxStorageBufferBindingSize);
  for (const [firstRow, rows] of slabsOf(batch * heads, slab)) {
    scope(() => {
      const at = { rows, firstRow, heads, tokens };
      const packedK = packRows(k, firstRow, rows);
      const packedQ = packRows(q, firstRow, rows);
      const work = empty(device, [rows, tokens, workLength(topK, localWindow)]);
      const sums = mean ? runningSums(packedK, values, firstRow) : undefined;
      const place = { ...at, capacity: tokens, queries: tokens, firstQuery: 0, entries: tiles + 1, causal };
      const means = sums ? meansOf({ q: packedQ, k: packedK, v: values, theta, sums }, place) : undefined;
      const call = {
        q: packedQ,
        k: packedK,
        v: values,
        dOut: cotangent,
        indices,
        theta,
        sums,
        means,
        work,
        ...at,
        entries: tiles + 1,
        causal,
      };
      differentiateQueries(call, { topK, localWindow });
      sumGamma(work, rowSums, at, topK + localWindow);
      const keys = empty(device, [rows, tokens * topK], 'u32');
      const slots = empty(device, [rows, tokens * topK], 'u32');
      pairsOf(indices, keys, slots, { ...at, topK });
      const sorted = sortPairs(keys, slots, { bits: Math.ceil(Math.log2(tokens + 1)) });
      const starts = empty(device, [rows, tokens + 1], 'u32');
      startsOf(sorted.keys, starts);
      let later: Tensor | undefined;
      if (mean) {
        later = empty(device, [rows, tiles + 1, columns, 4]);
        meanTileSums({ dOut: cotangent, work, ...at }, later, spec);
        scanSums(later, columns, { rows, entries: tiles + 1, firstTile: 0, tiles }, true);
      }
      differentiateKeys(
        { q: packedQ, k: packedK, dOut: cotangent, work, slots: sorted.values, starts, sums: later, dq, dk, dv, ...at, causal },
        spec,
      );
    });
  }
  differentiateTheta(theta, rowSums, dTheta);
  return [dq, dk, dv, dTheta];
}
