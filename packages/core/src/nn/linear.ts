import type { Device } from '../device/device.js';
import type { FloatDType } from '../dtype.js';
import type { Activation } from '../ops/matmul/index.js';
import { matmul } from '../ops/matmul/index.js';
import type { RandomStream } from '../random/stream.js';
import { tensor, zeros } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

/** Weight [inputs, outputs] and bias [outputs] of an affine map. */
export interface LinearParams {
  [name: string]: Tensor;
  weight: Tensor;
}

/** Widths of an affine map, and how its parameters start. */
export interface LinearOptions {
  inputs: number;
  outputs: number;
  /** With a bias, of zeros. Default false. */
  bias?: boolean;
  /** Standard deviation of the weights, which are cut at two of it. Default 1 / sqrt(inputs). */
  std?: number;
}

/**
 * Normal numbers cut at two standard deviations (drawn again beyond), the usual start of weights; f32.
 * @param random drawn on the host: the same weights on every device
 * @param std standard deviation before the cut
 * @returns f32 of `shape`
 */
export function truncatedNormal(device: Device, random: RandomStream, shape: readonly number[], std: number): Tensor {
  const size = shape.reduce((product, n) => product * n, 1);
  const values = new Float32Array(size);
  for (let at = 0; at < size;) {
    for (const value of random.normal(Math.max(16, size - at))) {
      if (Math.abs(value) <= 2 && at < size) values[at++] = value * std;
    }
  }
  return tensor(device, values, shape);
}

/**
 * Parameters of `linear`.
 * @param device where the parameters live
 * @param random drawn on the host: the same weights on every device
 * @param options the widths, and how to start
 * @returns weight f32 [inputs, outputs], and bias f32 [outputs]
 */
export function initLinear(
  device: Device,
  random: RandomStream,
  { inputs, outputs, bias = false, std = 1 / Math.sqrt(inputs) }: LinearOptions,
): LinearParams {
  const weight = truncatedNormal(device, random, [inputs, outputs], std);
  return bias ? { weight, bias: zeros(device, [outputs]) } : { weight };
}

/**
 * x W + b.
 * @param x [..., inputs]
 * @param options.precision `f16` rounds operands to f16 where the device has tensor cores. Default `f32`
 * @returns [..., outputs]
 */
export function linear(
  params: LinearParams,
  x: Tensor,
  options: { activation?: Activation; addTo?: Tensor; precision?: 'f32' | 'f16'; outDType?: FloatDType } = {},
): Tensor {
  return matmul(x, params.weight, { bias: params['bias'], ...options });
}
