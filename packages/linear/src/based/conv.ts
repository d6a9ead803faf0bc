import {
  concat,
  conv1d,
  type Device,
  type DType,
  type FloatDType,
  HeedError,
  type MixContext,
  mul,
  type Params,
  type RandomStream,
  scope,
  silu,
  slice,
  split,
  type Tensor,
  tensor,
  type TokenMixer,
  zeros,
} from '@heed/core';
import { initLinear, linear, type LinearParams } from '@heed/core/nn';
import { HeldTensors } from '../scan/held-tensors.js';

/** Settings of the short gated convolution. */
export interface BaseConvConfig {
  dim: number;
  /** Taps, the own token included. Default 3. */
  kernelSize?: number;
  /** The projection has expandProj x dim channels: half are convolved, half gate. Default 4. */
  expandProj?: number;
  /** A bias of the convolution, as the CUDA path of the official code has it. Default false. */
  convBias?: boolean;
  /** Operands of products. Default `f32`. */
  precision?: 'f32' | 'f16';
}

/** Parameters of a layer. */
export interface BaseConvParams {
  [name: string]: Params;
  /** [dim, expandProj dim] and its bias */
  in: LinearParams;
  /** [kernelSize, 1, expandProj dim / 2], the last tap is the own token's */
  taps: Tensor;
  /** [expandProj dim / 2, dim] and its bias */
  out: LinearParams;
}

/**
 * The short gated convolution of Based, without its projections: silu(conv(u1)) * u2 with a causal depthwise convolution.
 * @param u1 [batch, tokens, channels], f32 or f16
 * @param u2 as u1
 * @param taps f32 [kernelSize, 1, channels], the last tap is the own token's
 * @param options.past the kernelSize - 1 tokens of u1 before the first, [batch, kernelSize - 1, channels]; default zeros
 * @param options.bias f32 [channels]
 * @returns [batch, tokens, channels]; differentiable
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function baseConv(u1: Tensor, u2: Tensor, taps: Tensor, options: { past?: Tensor; bias?: Tensor } = {}): Tensor {
  const { past, bias } = options;
  return scope(() => {
    if (u1.dim(1) === 0) return mul(u1, u2);
    const common = { groups: u1.dim(2), bias, outDType: u1.dtype as FloatDType };
    const mixed = past ? conv1d(concat([past, u1], 1), taps, common) : conv1d(u1, taps, { ...common, padding: 'causal' });
    return mul(silu(mixed), u2);
  });
}

/**
 * The short gated convolution as a token mixer: u = x Win + bIn, y = (silu(conv(u1)) * u2) Wout + bOut with u1, u2 the halves of u. The stream
 * keeps the last kernelSize - 1 inputs of the convolution.
 * @throws HeedError SHAPE_MISMATCH when expandProj x dim is odd
 */
export function baseConvMixer(config: BaseConvConfig): TokenMixer<BaseConvParams, HeldTensors> {
  const { dim, kernelSize = 3, expandProj = 4, convBias = false, precision = 'f32' } = config;
  const inner = (expandProj * dim) / 2;
  if (!Number.isInteger(inner) || !Number.isInteger(kernelSize) || kernelSize < 2)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `baseConvMixer: expandProj ${expandProj} x dim ${dim} has no halves, or kernelSize ${kernelSize} is below 2; choose an even product and 2 or more taps`,
    );
  const halves = (params: BaseConvParams, x: Tensor): [Tensor, Tensor] =>
    split(linear(params.in, x, { precision, outDType: precision }), 2, 2) as [Tensor, Tensor];
  const biasOf = (params: BaseConvParams): { bias?: Tensor } => (convBias ? { bias: params['tapsBias'] as Tensor } : {});
  const finish = (params: BaseConvParams, mixed: Tensor): Tensor => linear(params.out, mixed, { precision, outDType: 'f32' });
  return {
    name: 'base-conv',
    init(device: Device, random: RandomStream): BaseConvParams {
      // PyTorch's start of a depthwise convolution
      const bound = 1 / Math.sqrt(kernelSize);
      const uniform = (name: string, size: number): Float32Array<ArrayBuffer> =>
        random
          .stream(name)
          .uniform(size)
          .map((u) => (2 * u - 1) * bound);
      return {
        in: initLinear(device, random.stream('in'), { inputs: dim, outputs: 2 * inner, bias: true }),
        taps: tensor(device, uniform('taps', kernelSize * inner), [kernelSize, 1, inner]),
        ...(convBias && { tapsBias: tensor(device, uniform('tapsBias', inner), [inner]) }),
        out: initLinear(device, random.stream('out'), { inputs: inner, outputs: dim, bias: true, std: 1 / Math.sqrt(inner * 8) }),
      };
    },
    // what lies behind a sequence's length stands after it and is never convolved into it
    apply(params: BaseConvParams, x: Tensor, _context: MixContext): { out: Tensor } {
      return scope(() => {
        const [u1, u2] = halves(params, x);
        return { out: finish(params, baseConv(u1, u2, params.taps, biasOf(params))) };
      });
    },
    start(device: Device, { batch, dtype }: { batch: number; capacity: number; dtype: DType }): HeldTensors {
      const past = zeros(device, [batch, kernelSize - 1, inner], { dtype: precision === 'f16' ? dtype : 'f32' });
      return new HeldTensors(device, 'base-conv', { past });
    },
    step(params: BaseConvParams, x: Tensor, state: HeldTensors): Tensor {
      const tokens = x.dim(1);
      const { out, past } = scope(() => {
        const [u1, u2] = halves(params, x);
        const before = state.get('past');
        const all = concat([before, u1], 1);
        const mixed = baseConv(u1, u2, params.taps, { past: before, ...biasOf(params) });
        return { out: finish(params, mixed), past: concat([slice(all, 1, tokens, tokens + kernelSize - 1)], 1) };
      });
      state.advance(tokens, { past });
      return out;
    },
  };
}
