import { apply } from '../../autodiff/tape.js';
import { HeedError } from '../../errors.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import { contiguousStrides, type Tensor } from '../../tensor/tensor.js';
import { radixSort } from './radix.js';

/**
 * Sorts rows of u32 keys with their u32 values by the lowest `bits` bits. Stable: equal keys keep their order.
 * @param keys u32 [..., n]
 * @param values u32, the shape of keys
 * @param options.bits how many low bits count, 1 to 32. Default 32. Fewer bits take fewer passes (4 bits a pass)
 * @returns new tensors of the same shape
 */
export function sortPairs(keys: Tensor, values: Tensor, options: { bits?: number } = {}): { keys: Tensor; values: Tensor } {
  const { bits = 32 } = options;
  if (keys.dtype !== 'u32' || values.dtype !== 'u32')
    throw new HeedError('DTYPE_MISMATCH', `sortPairs: keys ${keys.describe()} and values ${values.describe()} must be u32`);
  if (keys.shape.join() !== values.shape.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `sortPairs: keys ${keys.describe()} and values ${values.describe()} differ in shape; give one value a key`,
    );
  if (!Number.isInteger(bits) || bits < 1 || bits > 32) throw new HeedError('INVALID_ARGUMENT', `sortPairs: bits is ${bits}; use 1 to 32`);
  const n = keys.dim(-1);
  const rows = n === 0 ? 0 : keys.size / n;
  const [sortedKeys, sortedValues] = apply({
    name: 'sortPairs',
    inputs: [keys, values],
    forward: () => {
      const flat = { shape: [rows, n], strides: [n, 1] };
      if (keys.size === 0) return [empty(keys.device, keys.shape, 'u32'), empty(keys.device, keys.shape, 'u32')];
      const sorted = radixSort(asContiguous(keys, 1).view(flat), asContiguous(values, 1).view(flat), bits);
      const back = { shape: keys.shape, strides: contiguousStrides(keys.shape) };
      return [sorted.keys.view(back), sorted.values.view(back)];
    },
  }) as readonly [Tensor, Tensor];
  return { keys: sortedKeys, values: sortedValues };
}
