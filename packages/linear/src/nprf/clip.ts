import { add, broadcastTo, concat, cumsum, matmul, mul, pad, reshape, slice, type Tensor, unsqueeze } from '@heed/core';
import type { ProductOperands } from './kernels/direct.js';
import { clipBlock } from './plan.js';
import { sequencePositions } from './positions.js';
import { toeplitzProduct } from './toeplitz.js';

/**
 * The entries of the offsets -left .. right from a table of the offsets -clip .. clip, whose ends stand for all beyond them.
 * @param table [heads, 2 clip + 1], or [heads, clip + 1] where `right` is 0
 */
export function clippedTable(table: Tensor, clip: number, left: number, right: number): Tensor {
  const [heads, entries] = [table.dim(0), table.dim(1)];
  const near = slice(table, 1, Math.max(0, clip - left), Math.min(entries, clip + right + 1));
  const beyond = (entry: number, count: number): Tensor[] =>
    count > 0 ? [broadcastTo(slice(table, 1, entry, entry + 1), [heads, count])] : [];
  return concat([...beyond(0, left - clip), near, ...beyond(entries - 1, right - clip)], 1);
}

/**
 * S_i = sum_j c_(j-i) (a_i . b_j) w_j with c constant beyond `clip`, in time linear in tokens: blocks of at least `clip` tokens, pairs with
 * the blocks beside, and for all blocks farther one matrix, the sum of their b^T w. Differentiable in all four.
 * @param operands a, b [batch, heads, tokens, features], w [batch, heads, tokens, width], c [heads, 2 clip + 1], causal [heads, clip + 1]
 * @returns [batch x heads, tokens, width]
 */
export function bandedProduct({ a, b, w, c }: ProductOperands, { clip, causal }: { clip: number; causal: boolean }): Tensor {
  const [batch, heads, tokens] = a.shape as [number, number, number];
  const block = clipBlock(clip);
  const blocks = Math.max(1, Math.ceil(tokens / block));
  const cut = (x: Tensor): Tensor => {
    const whole = pad(x, [[0, 0], [0, 0], [0, blocks * block - tokens], [0, 0]]); // prettier-ignore
    return reshape(whole, [batch, heads, blocks, block, x.dim(3)]);
  };
  const [queries, keys, values] = [cut(a), cut(b), cut(w)];
  // the block `by` further on, zeros where there is none
  const shifted = (x: Tensor, by: number): Tensor => {
    const [front, behind] = [Math.min(blocks, Math.max(0, -by)), Math.min(blocks, Math.max(0, by))];
    const inside = slice(x, 2, behind, blocks - front);
    return pad(inside, [[0, 0], [0, 0], [front, behind], [0, 0], [0, 0]]); // prettier-ignore
  };
  const beside = (x: Tensor): Tensor => {
    const list = [shifted(x, -1), x, ...(causal ? [] : [shifted(x, 1)])];
    const width = list.length * block;
    return reshape(concat(list, 3), [batch * heads * blocks, width, x.dim(4)]);
  };
  // rows of a block see it at the second place: their own offset 0 lies `block` entries on
  const table = clippedTable(c, clip, 2 * block - 1, causal ? 0 : 2 * block - 1);
  const each = reshape(broadcastTo(unsqueeze(table, 1), [heads, blocks, table.dim(1)]), [heads * blocks, table.dim(1)]);
  const near = toeplitzProduct(
    { a: reshape(queries, [batch * heads * blocks, block, a.dim(3)]), b: beside(keys), w: beside(values), c: each },
    { ...sequencePositions(block, (causal ? 2 : 3) * block, causal), heads: heads * blocks, path: 'direct' },
  );
  const joined = (x: Tensor): Tensor => slice(reshape(x, [batch * heads, blocks * block, w.dim(3)]), 1, 0, tokens);
  if (blocks < 3) return joined(near);
  const sums = matmul(keys, values, { transposeA: true });
  const far = (states: Tensor, entry: number): Tensor =>
    mul(matmul(queries, states), reshape(slice(c, 1, entry, entry + 1), [1, heads, 1, 1, 1]));
  const before = far(shifted(cumsum(sums, 2), -2), 0);
  const both = causal ? before : add(before, far(shifted(cumsum(sums, 2, { reverse: true }), 2), c.dim(1) - 1));
  return joined(add(reshape(near, both.shape), both));
}
