import { HeedError } from '../../errors.js';

/** Zeros around an axis: on both sides, [before, after], or by name; `causal` puts all of them before. */
export type Padding = number | readonly [number, number] | 'valid' | 'same' | 'causal';

/** One spatial axis of a convolution. */
export interface ConvAxis {
  input: number;
  output: number;
  kernel: number;
  stride: number;
  dilation: number;
  /** Zeros before the first element. */
  before: number;
}

/**
 * Where output `o` and kernel tap `k` read along an axis: source = o step + k tap + origin, if that is a multiple of `up`,
 * at source / up below `extent`. A convolution has up 1; its transpose (the gradient of the input) has step 1 and up = stride.
 */
export interface Reading {
  step: number;
  tap: number;
  origin: number;
  up: number;
  extent: number;
}

/**
 * Lengths and padding of one axis.
 * `same` gives ceil(input / stride) outputs, the odd zero after; `causal` lets output t see inputs up to t stride.
 * @throws HeedError INVALID_ARGUMENT for a stride, dilation or padding out of range, SHAPE_MISMATCH when no output is left
 */
export function convAxis(
  who: string,
  axis: { input: number; kernel: number; stride: number; dilation: number; padding: Padding },
): ConvAxis {
  const { input, kernel, stride, dilation, padding } = axis;
  for (const [name, value] of [
    ['stride', stride],
    ['dilation', dilation],
  ] as const) {
    if (!Number.isInteger(value) || value < 1)
      throw new HeedError('INVALID_ARGUMENT', `${who}: ${name} is ${value}; use an integer of 1 or more`);
  }
  const span = dilation * (kernel - 1) + 1;
  const [before, after] = zerosAround(who, padding, { input, span, stride });
  const output = Math.floor((input + before + after - span) / stride) + 1;
  if (kernel < 1 || output < 1)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: ${input} inputs and ${before} + ${after} zeros are shorter than the kernel (${kernel} taps, dilation ${dilation}: ${span}); pad more or use a smaller kernel`,
    );
  return { input, output, kernel, stride, dilation, before };
}

function zerosAround(
  who: string,
  padding: Padding,
  { input, span, stride }: { input: number; span: number; stride: number },
): readonly [number, number] {
  if (padding === 'valid') return [0, 0];
  if (padding === 'causal') return [span - 1, 0];
  if (padding === 'same') {
    const total = Math.max(0, (Math.ceil(input / stride) - 1) * stride + span - input);
    return [Math.floor(total / 2), Math.ceil(total / 2)];
  }
  const pair: readonly [number, number] = typeof padding === 'number' ? [padding, padding] : padding;
  if (pair.length !== 2 || !pair.every((n) => Number.isInteger(n) && n >= 0))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: padding is ${JSON.stringify(padding)}; use a number of zeros, [before, after], 'valid', 'same' or 'causal'`,
    );
  return pair;
}

/** How the convolution reads its input. */
export function readingForward(axis: ConvAxis): Reading {
  return { step: axis.stride, tap: axis.dilation, origin: -axis.before, up: 1, extent: axis.input };
}

/** How the gradient of the input reads that of the output: input i met output (i + before - k dilation) / stride at tap k. */
export function readingBackward(axis: ConvAxis): Reading {
  return { step: 1, tap: -axis.dilation, origin: axis.before, up: axis.stride, extent: axis.output };
}
