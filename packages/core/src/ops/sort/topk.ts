import { apply } from '../../autodiff/tape.js';
import { isFloat } from '../../dtype.js';
import { HeedError } from '../../errors.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { kindOf, orderRows, type SortOptions } from './order.js';
import { gatherRows, scatterRows } from './rows.js';
import { selectFirst } from './select.js';
import { smallSortLength } from './small.js';

export interface TopKOptions {
  /** The smallest in place of the largest. Default false. */
  smallest?: boolean;
  /** `value` (default): in order of value; `index`: ascending indices, which is cheaper for long rows. */
  order?: 'value' | 'index';
}

/**
 * The `count` largest elements of each row along the last axis. Of equal elements the ones of lower index come first.
 * @param x [..., n], f32, f16, i32 or u32
 * @param count 1 .. n
 * @returns values, [..., count] (differentiable), and indices, u32 [..., count]
 * @throws HeedError INVALID_ARGUMENT when count is not in 1 .. n
 */
export function topK(x: Tensor, count: number, options: TopKOptions = {}): { values: Tensor; indices: Tensor } {
  const n = x.dim(-1);
  if (!Number.isInteger(count) || count < 1 || count > n)
    throw new HeedError('INVALID_ARGUMENT', `topK: count is ${count} for rows of ${n} in x ${x.describe()}; use 1 to ${n}`);
  kindOf('topK', x);
  return select('topK', x, () => topIndices(x, count, !(options.smallest ?? false), options.order ?? 'value'));
}

/**
 * Each row along the last axis in order. Stable.
 * @param x [..., n], f32, f16, i32 or u32
 * @returns values [..., n] (differentiable) and indices, u32 [..., n]
 */
export function sort(x: Tensor, options: SortOptions = {}): { values: Tensor; indices: Tensor } {
  kindOf('sort', x);
  return select('sort', x, () => orderRows(asContiguous(x, 1), x.dim(-1), options.descending ?? false));
}

function select(name: string, x: Tensor, indicesOf: () => Tensor): { values: Tensor; indices: Tensor } {
  const outputs = apply<readonly Tensor[]>({
    name,
    inputs: [x],
    forward: () => {
      const indices = indicesOf();
      return [gatherRows(asContiguous(x, 1), indices), indices];
    },
    saves: ([, indices]) => (indices ? [indices] : []),
    ...(isFloat(x.dtype)
      ? {
          backward: ([dValues], { saved: [indices] }) => [
            dValues && indices ? scatterRows(asContiguous(dValues, 1), indices, x.shape) : null,
          ],
        }
      : {}),
  });
  const [values, indices] = outputs as readonly [Tensor, Tensor];
  return { values, indices };
}

function topIndices(x: Tensor, count: number, descending: boolean, order: 'value' | 'index'): Tensor {
  const source = asContiguous(x, 1);
  const n = x.dim(-1);
  if (order === 'value' && (n <= smallSortLength || count > smallSortLength)) return orderRows(source, count, descending);
  const shape = [...x.shape.slice(0, -1), count];
  const ascending = empty(x.device, shape, 'u32');
  if (x.size > 0) selectFirst(source, kindOf('topK', x), descending, x.size / n, n, ascending);
  if (order === 'index') return ascending;
  // ascending indices: equal values keep their index order through the stable sort
  return gatherRows(ascending, orderRows(gatherRows(source, ascending), count, descending));
}
