import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { bindCall } from './bind.js';
import { prepareCall } from './call.js';
import { planCall } from './forward.js';
import { runColumnSums } from './kernels/column-sums.js';
import { runStats } from './kernels/stats.js';
import type { AttentionOptions } from './options.js';

/**
 * What each key receives: the sum of its probabilities over all queries, by a second pass over the logsumexp that
 * `attentionWithLse` gave for the same q, k and options. Never a queries x keys matrix. Without a gradient.
 * @param lse f32 [batch, queries, heads]
 * @returns f32 [batch, heads, keys]; where rows have a learned sink, its share is left out
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT as `attention`; UNSUPPORTED when an input is being differentiated
 */
export function attentionColumnSums(q: Tensor, k: Tensor, lse: Tensor, options: AttentionOptions = {}): Tensor {
  return scope(() => {
    const call = prepareCall('attentionColumnSums', q, k, k, options);
    const { batch, queries, heads, kvHeads, keys } = call.sizes;
    if (lse.dtype !== 'f32' || lse.shape.join() !== [batch, queries, heads].join())
      throw new HeedError(
        'SHAPE_MISMATCH',
        `attentionColumnSums: lse is ${lse.describe()}; it must be f32 [${batch}, ${queries}, ${heads}], from attentionWithLse`,
      );
    return apply({
      name: 'attentionColumnSums',
      inputs: [q, k, lse, ...call.arrays.filter((array) => array.differentiable).map((array) => array.tensor)],
      forward: () => {
        const { device } = q;
        const sums = empty(device, [batch, heads, keys], 'f32');
        const stats = empty(device, [lse.size, 2], 'f32');
        const rows = asContiguous(lse, 1);
        runStats(device, { out: rows, lse: rows, dOut: undefined, dLse: undefined, stats });
        const { tile, shuffles } = planCall(call).dkv;
        const arrays = call.arrays.map((array) => array.tensor);
        const bound = bindCall(
          call,
          { q, k, v: k, arrays, selection: call.selection?.tensors ?? [] },
          { width: tile.width, tiles: { query: tile.columns, key: tile.rows }, transposed: true },
        );
        const { selection } = call;
        const keyTiles = selection ? selection.keyBlocks * Math.ceil(selection.blockKeys / tile.rows) : Math.ceil(keys / tile.rows);
        runColumnSums(
          device,
          { ...bound.spec, ...tile, shuffles, vectorOut: false, split: false, biasGradient: false },
          { q, k, stats, arena: bound.arena, extras: bound.extras, sums },
          bound.uniforms,
          [keyTiles, kvHeads, batch],
        );
        return sums;
      },
    });
  });
}
