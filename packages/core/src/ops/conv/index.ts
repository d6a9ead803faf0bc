import { apply } from '../../autodiff/tape.js';
import type { FloatDType } from '../../dtype.js';
import { HeedError } from '../../errors.js';
import type { Tensor } from '../../tensor/tensor.js';
import { expectFloat, expectShape } from '../check.js';
import { type Convolution, convolve, convolveBiasGradient, convolveInputGradient, convolveWeightGradient } from './convolve.js';
import { convAxis, type Padding } from './geometry.js';

export type { Padding } from './geometry.js';

interface ConvCommon {
  /** [Cout] */
  bias?: Tensor | undefined;
  /** Channels are split into this many independent parts; `groups` = Cin is depthwise. Default 1. */
  groups?: number | undefined;
  /** Default: the dtype of x. */
  outDType?: FloatDType | undefined;
  /** As in `matmul`: `f16` allows operands to be rounded as they are loaded. Default `f32`. */
  precision?: 'f32' | 'f16' | undefined;
}

export interface Conv1dOptions extends ConvCommon {
  /** Default 1. */
  stride?: number | undefined;
  /** Default 1. */
  dilation?: number | undefined;
  /** Zeros around x; `causal` lets token t see tokens up to t, [before, after] is one-sided. Default 0. */
  padding?: Padding | undefined;
}

export interface Conv2dOptions extends ConvCommon {
  /** One number, or [rows, columns]. Default 1. */
  stride?: number | readonly [number, number] | undefined;
  dilation?: number | readonly [number, number] | undefined;
  /** For both axes, or `{ rows, columns }`. Default 0. */
  padding?: Padding | { rows: Padding; columns: Padding } | undefined;
}

/**
 * One-dimensional convolution (cross-correlation) over tokens, summed in f32.
 *
 * Depthwise runs as one streaming kernel, everything else as patches times weights, at most 32 MiB of patches at a time.
 * Differentiable in x, weight and bias, all deterministic.
 *
 * @param x [batch, tokens, Cin], f32 or f16; outer strides are read in place
 * @param weight [taps, Cin / groups, Cout]
 * @returns [batch, tokens out, Cout]
 * @throws HeedError SHAPE_MISMATCH when channels, groups or bias do not fit or no output is left; INVALID_ARGUMENT for a
 *   stride, dilation or padding out of range; DTYPE_MISMATCH for integers
 */
export function conv1d(x: Tensor, weight: Tensor, options: Conv1dOptions = {}): Tensor {
  const { stride = 1, dilation = 1, padding = 0 } = options;
  check('conv1d', x, weight, options, 3);
  const one = convAxis('conv1d', { input: 1, kernel: 1, stride: 1, dilation: 1, padding: 0 });
  const along = convAxis('conv1d', { input: x.dim(1), kernel: weight.dim(0), stride, dilation, padding });
  return convolution('conv1d', x, weight, options, [one, along]);
}

/**
 * Two-dimensional convolution (cross-correlation) over images, summed in f32. As `conv1d`.
 * @param x [batch, height, width, Cin], f32 or f16; outer strides are read in place
 * @param weight [taps down, taps across, Cin / groups, Cout]
 * @returns [batch, height out, width out, Cout]
 * @throws HeedError as `conv1d`
 */
export function conv2d(x: Tensor, weight: Tensor, options: Conv2dOptions = {}): Tensor {
  check('conv2d', x, weight, options, 4);
  const both = (value: number | readonly [number, number] | undefined): readonly [number, number] =>
    typeof value === 'object' ? value : [value ?? 1, value ?? 1];
  const { padding = 0 } = options;
  const named = typeof padding === 'object' && 'rows' in padding;
  const [zerosDown, zerosAcross]: [Padding, Padding] = named ? [padding.rows, padding.columns] : [padding, padding];
  const [strides, dilations] = [both(options.stride), both(options.dilation)];
  return convolution('conv2d', x, weight, options, [
    convAxis('conv2d', { input: x.dim(1), kernel: weight.dim(0), stride: strides[0], dilation: dilations[0], padding: zerosDown }),
    convAxis('conv2d', { input: x.dim(2), kernel: weight.dim(1), stride: strides[1], dilation: dilations[1], padding: zerosAcross }),
  ]);
}

function convolution(name: string, x: Tensor, weight: Tensor, options: ConvCommon, axes: Convolution['axes']): Tensor {
  const { bias, groups = 1 } = options;
  const halves = x.dtype === 'f16' && weight.dtype === 'f16';
  const conv: Convolution = { axes, groups, precision: halves ? 'f16' : (options.precision ?? 'f32') };
  const inputs = x.dim(-1);
  return apply({
    name,
    inputs: bias ? [x, weight, bias] : [x, weight],
    forward: () => {
      const out = convolve(asImage(x), asImage(weight), bias, conv, options.outDType ?? (x.dtype as FloatDType));
      return x.rank === 4 ? out : fromImage(out);
    },
    saves: () => [x, weight],
    backward: ([dOut], { saved, needs }) => {
      const [image = x, kernel = weight] = saved.map(asImage);
      if (!dOut) return needs.map(() => null);
      const d = asImage(dOut);
      const back = (t: Tensor): Tensor => (x.rank === 4 ? t : fromImage(t));
      return [
        needs[0] ? back(convolveInputGradient(d, kernel, conv, inputs, x.dtype as FloatDType)) : null,
        needs[1] ? back(convolveWeightGradient(image, d, conv, kernel.shape, weight.dtype as FloatDType)) : null,
        ...(bias ? [needs[2] ? convolveBiasGradient(d, bias.dtype as FloatDType) : null] : []),
      ];
    },
  });
}

/** [B, T, C] as [B, 1, T, C], and [K, Cin, Cout] as [1, K, Cin, Cout] (the leading axes trade places: both have length 1). */
function asImage(t: Tensor): Tensor {
  if (t.rank === 4) return t;
  return t.view({ shape: [t.dim(0), 1, t.dim(1), t.dim(2)], strides: [t.strides[0] ?? 0, 0, t.strides[1] ?? 0, 1] });
}

function fromImage(t: Tensor): Tensor {
  const shape = t.shape.filter((_, axis) => axis !== 1);
  return t.view({ shape, strides: t.strides.filter((_, axis) => axis !== 1) });
}

function check(who: string, x: Tensor, weight: Tensor, { bias, groups = 1 }: ConvCommon, rank: number): void {
  expectFloat(who, 'x', x);
  expectFloat(who, 'weight', weight);
  const [forX, forWeight] =
    rank === 3
      ? ['[batch, tokens, Cin]', '[taps, Cin / groups, Cout]']
      : ['[batch, height, width, Cin]', '[taps down, taps across, Cin / groups, Cout]'];
  if (x.rank !== rank) throw new HeedError('SHAPE_MISMATCH', `${who}: x is ${x.describe()}; it must be ${forX}`);
  if (weight.rank !== rank) throw new HeedError('SHAPE_MISMATCH', `${who}: weight is ${weight.describe()}; it must be ${forWeight}`);
  const [inputs, perGroup, outputs] = [x.dim(-1), weight.dim(-2), weight.dim(-1)];
  if (!Number.isInteger(groups) || groups < 1 || inputs % groups !== 0 || outputs % groups !== 0)
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${groups} groups do not divide ${inputs} channels in and ${outputs} out`);
  if (perGroup * groups !== inputs)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: weight ${weight.describe()} takes ${perGroup} channels a group, x ${x.describe()} has ${inputs / groups} (groups ${groups}); make them equal`,
    );
  if (bias) {
    expectFloat(who, 'bias', bias);
    expectShape(who, 'bias', bias, [outputs], 'one element an output channel');
  }
}
