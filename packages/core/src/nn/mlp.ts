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

/** silu(gate) * up, one kernel. */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  product ??= pointwise(expr((g, u) => g.mul(g.sigmoid()).mul(u)));
  return product(gate, up);
}

/** Parameters of `gatedMlp`; `outStd` is the standard deviation of the way down. */
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
