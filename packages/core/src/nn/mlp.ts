import type { Device } from '../device/device.js';
import { expr } from '../kernel/expr/index.js';
import { pointwise } from '../ops/pointwise.js';
import { split } from '../ops/slice.js';
import type { RandomStream } from '../random/stream.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { initLinear, linear, type LinearParams } from './linear.js';

/** Gated feed-forward layer: down(silu(gate(x)) * up(x)). */
export interface GatedMlpParams {
  [name: string]: LinearParams;
  /** Gate and up in one weight, [dim, 2 hidden]. */
  gateUp: LinearParams;
  /** [hidden, dim]. */
  down: LinearParams;
}

let product: ((gate: Tensor, up: Tensor) => Tensor) | undefined;

/**
 * silu(gate) * up, one kernel (Shazeer 2020, eq. 6).
 * @param gate any shape, f32 or f16
 * @param up broadcasts with gate
 * @returns the broadcast shape; f16 where both are f16, else f32; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  product ??= pointwise(expr((g, u) => g.mul(g.sigmoid()).mul(u)));
  return product(gate, up);
}

/**
 * Parameters of `gatedMlp`.
 * @param device where the parameters live
 * @param random drawn on the host: the same weights on every device
 * @param options the widths
 * @param options.dim width of the model
 * @param options.hidden width between the products
 * @param options.outStd standard deviation of the way down. Default 1 / sqrt(hidden)
 * @returns gateUp f32 [dim, 2 hidden] and down f32 [hidden, dim], without biases
 */
export function initGatedMlp(
  device: Device,
  random: RandomStream,
  { dim, hidden, outStd }: { dim: number; hidden: number; outStd?: number },
): GatedMlpParams {
  return {
    gateUp: initLinear(device, random.stream('gateUp'), { inputs: dim, outputs: 2 * hidden }),
    down: initLinear(device, random.stream('down'), { inputs: hidden, outputs: dim, std: outStd ?? 1 / Math.sqrt(hidden) }),
  };
}

/**
 * SwiGLU feed-forward (Shazeer 2020, eq. 6, without biases), with the residual added.
 * @param x [..., dim]
 * @param options.addTo residual, the shape of x, added by the last product
 * @param options.precision `f16` rounds operands of products to f16 where the device has tensor cores. Default `f32`
 * @returns f32 [..., dim]; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function gatedMlp(params: GatedMlpParams, x: Tensor, options: { addTo?: Tensor; precision?: 'f32' | 'f16' } = {}): Tensor {
  const { precision = 'f32' } = options;
  return scope(() => {
    // what lies between the two products may stay in f16 where products are
    const hidden = linear(params.gateUp, x, { precision, ...(precision === 'f16' ? { outDType: 'f16' as const } : {}) });
    const [gate, up] = split(hidden, 2, -1) as [Tensor, Tensor];
    return linear(params.down, swiglu(gate, up), { ...options, outDType: 'f32' });
  });
}
