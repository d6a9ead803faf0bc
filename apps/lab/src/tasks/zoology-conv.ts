import {
  add,
  conv1d,
  type Device,
  type Layer,
  mul,
  type Params,
  type RandomStream,
  reshape,
  scope,
  tensor,
  type Tensor,
  type TokenMixer,
  type State,
  HeedError,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';

interface ZoologyConvParams {
  [name: string]: Params;
  /** [dim, dim] with bias */
  projection: LinearParams;
  /** [kernel, 1, dim] */
  taps: Tensor;
  tapsBias: Tensor;
}

/**
 * Zoology's BaseConv, the first layer of the MQAR model: y = conv(u) * (u Wp + b) + u, a causal depthwise convolution with bias and the
 * residual inside. A layer of the experiment alone, so without a stream.
 */
export function zoologyConv({ dim, kernel = 3 }: { dim: number; kernel?: number }): TokenMixer<Params, State> {
  const layer: Layer<ZoologyConvParams> = {
    name: 'zoology-conv',
    init(device: Device, random: RandomStream): ZoologyConvParams {
      // PyTorch's start of a convolution: uniform in +-1 / sqrt(kernel)
      const uniform = (name: string, size: number): Float32Array<ArrayBuffer> =>
        random
          .stream(name)
          .uniform(size)
          .map((u) => (2 * u - 1) / Math.sqrt(kernel));
      return {
        projection: initLinear(device, random.stream('projection'), { inputs: dim, outputs: dim, bias: true, std: 1 / Math.sqrt(3 * dim) }),
        taps: tensor(device, uniform('taps', kernel * dim), [kernel, 1, dim]),
        tapsBias: tensor(device, uniform('bias', dim), [dim]),
      };
    },
    apply(params: ZoologyConvParams, x: Tensor): { out: Tensor } {
      return scope(() => {
        const mixed = conv1d(x, params.taps, { groups: dim, padding: 'causal', bias: params.tapsBias });
        return { out: add(mul(mixed, reshape(linear(params.projection, x), x.shape)), x) };
      });
    },
  };
  const without = (): never => {
    throw new HeedError('UNSUPPORTED', 'zoologyConv: it is a layer of the MQAR experiment and has no stream; use the conv mixer of based');
  };
  return { ...layer, start: without, step: without } as TokenMixer<Params, State>;
}
