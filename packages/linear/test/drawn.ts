import { type Device, type DType, RandomStream, tensor, type Tensor } from '@heed/core';
import { tensorsIn } from '@heed/core/~internal';
import { type F64Array, f64 } from '@heed/core/testing';

/** Numbers on a device, and what the device holds of them in float64. */
export interface Drawn {
  x: Tensor;
  values: F64Array;
}

/** Normal numbers from the stream of this name. */
export async function draw(device: Device, name: string, shape: readonly number[], dtype: DType = 'f32', seed = 1): Promise<Drawn> {
  const size = shape.reduce((product, n) => product * n, 1);
  const x = tensor(device, new RandomStream(seed, name).normal(size), shape, { dtype });
  return { x, values: await read(x) };
}

/** A tensor's values in float64. */
export async function read(x: Tensor): Promise<F64Array> {
  return f64(x.shape, await x.read());
}

/** Disposes the tensors in these trees. */
export function dispose(...trees: unknown[]): void {
  for (const x of new Set(tensorsIn(trees))) x.dispose();
}
