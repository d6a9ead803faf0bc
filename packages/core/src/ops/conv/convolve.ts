import type { FloatDType } from '../../dtype.js';
import { dtypeBytes } from '../../dtype.js';
import { asContiguous, copyContiguous } from '../../tensor/copy.js';
import { empty, zeros } from '../../tensor/create.js';
import { contiguousStrides, type Tensor } from '../../tensor/tensor.js';
import { sumMiddle } from '../matmul/reduce-kernel.js';
import { runProduct } from '../matmul/run.js';
import { depthwiseWeightGradient, runDepthwise } from './depthwise-kernel.js';
import { type ConvAxis, readingBackward, readingForward } from './geometry.js';
import type { ReadingPair } from './text.js';
import { unfold } from './unfold-kernel.js';

/** A convolution over two axes; one axis is a grid of one row. */
export interface Convolution {
  axes: readonly [ConvAxis, ConvAxis];
  groups: number;
  precision: 'f32' | 'f16';
}

/** Patches that exist at a time: more are made and multiplied piece by piece. */
const patchBytes = 32 * 1024 * 1024;

function reading(axes: Convolution['axes'], backward: boolean): ReadingPair {
  const of = backward ? readingBackward : readingForward;
  const lengths = axes.map((axis) => (backward ? axis.input : axis.output));
  return { y: of(axes[0]), x: of(axes[1]), taps: [axes[0].kernel, axes[1].kernel], outputs: [lengths[0] ?? 1, lengths[1] ?? 1] };
}

function isDepthwise(x: Tensor, groups: number): boolean {
  return groups > 1 && groups === x.dim(-1);
}

/** True where each output position reads its own input position alone: the convolution is a product. */
function isPointwise([y, x]: Convolution['axes'], groups: number): boolean {
  return groups === 1 && [y, x].every((axis) => axis.kernel === 1 && axis.stride === 1 && axis.before === 0 && axis.output === axis.input);
}

/**
 * out = x * weight + bias.
 * @param x [B, H, W, Cin]
 * @param weight [Kh, Kw, Cin / groups, Cout]
 * @returns [B, Ho, Wo, Cout]
 */
export function convolve(x: Tensor, weight: Tensor, bias: Tensor | undefined, conv: Convolution, dtype: FloatDType): Tensor {
  const { axes, groups, precision } = conv;
  const w = asContiguous(weight);
  const outputs = weight.dim(-1);
  const forward = reading(axes, false);
  if (isDepthwise(x, groups)) return runDepthwise(x, flatWeight(w), forward, { channels: outputs, transposed: false, bias, dtype });
  const out = empty(x.device, [x.dim(0), ...forward.outputs, outputs], dtype);
  const rows = out.size / Math.max(1, outputs);
  const size = outputs / groups;
  const matrix = w.view({ shape: [groups, (w.size / outputs) | 0, size], strides: [size, outputs, 1] });
  eachPiece(x, conv, rows, false, (patches, first, count) => {
    const target = out.view({ shape: [groups, count, size], strides: [size, outputs, 1], offset: first * outputs });
    if (!bias || groups === 1) {
      runProduct({ a: patches, b: matrix, out: target, bias, precision });
      return;
    }
    // the columns of a group have their own part of the bias
    for (let g = 0; g < groups; g++) {
      const part = (t: Tensor): Tensor =>
        t.view({ shape: t.shape.slice(1), strides: t.strides.slice(1), offset: t.offset + g * (t.strides[0] ?? 0) });
      const own = bias.view({ shape: [size], strides: [1], offset: bias.offset + g * size });
      runProduct({ a: part(patches), b: part(matrix), out: part(target), bias: own, precision });
    }
  });
  return out;
}

/** Gradient of x: dOut read by the transposed convolution, times the weights of each tap transposed. */
export function convolveInputGradient(dOut: Tensor, weight: Tensor, conv: Convolution, inputs: number, dtype: FloatDType): Tensor {
  const { axes, groups, precision } = conv;
  const backward = reading(axes, true);
  const outputs = dOut.dim(-1);
  if (groups > 1 && groups === inputs) {
    return runDepthwise(dOut, flatWeight(asContiguous(weight)), backward, { channels: inputs, transposed: true, dtype });
  }
  const [size, outSize] = [inputs / groups, outputs / groups];
  const taps = backward.taps[0] * backward.taps[1];
  // [groups, inputs of a group, taps x outputs of a group]
  const turned = copyContiguous(
    asContiguous(weight).view({ shape: [groups, size, taps, outSize], strides: [outSize, outputs, size * outputs, 1] }),
  );
  const matrix = turned.view({ shape: [groups, size, taps * outSize], strides: contiguousStrides([groups, size, taps * outSize]) });
  const out = empty(dOut.device, [dOut.dim(0), ...backward.outputs, inputs], dtype);
  const rows = out.size / Math.max(1, inputs);
  eachPiece(dOut, conv, rows, true, (patches, first, count) => {
    const target = out.view({ shape: [groups, count, size], strides: [size, inputs, 1], offset: first * inputs });
    runProduct({ a: patches, b: matrix, out: target, transposeB: true, precision });
  });
  return out;
}

/** Gradient of the weight, [Kh, Kw, Cin / groups, Cout]: patches transposed times dOut, summed over positions in order. */
export function convolveWeightGradient(x: Tensor, dOut: Tensor, conv: Convolution, shape: readonly number[], dtype: FloatDType): Tensor {
  const { axes, groups, precision } = conv;
  const given = asContiguous(dOut);
  const outputs = dOut.dim(-1);
  const flat = (t: Tensor): Tensor => t.view({ shape, strides: contiguousStrides(shape) });
  if (isDepthwise(x, groups)) return flat(depthwiseWeightGradient(x, given, reading(axes, false), dtype));
  const size = outputs / groups;
  const depth = shape.slice(0, 3).reduce((product, n) => product * n, 1);
  const rows = dOut.size / Math.max(1, outputs);
  const inGroups = (t: Tensor, count: number, offset: number): Tensor =>
    t.view({ shape: [groups, count, size], strides: [size, outputs, 1], offset });
  let sum: Tensor | undefined;
  eachPiece(x, conv, rows, false, (patches, first, count) => {
    const last = first + count === rows;
    const next = empty(x.device, [depth, outputs], last ? dtype : 'f32');
    const before = sum && inGroups(sum, depth, 0);
    const piece = inGroups(given, count, given.offset + first * outputs);
    runProduct({ a: patches, b: piece, out: inGroups(next, depth, 0), transposeA: true, addTo: before, precision });
    sum = next;
  });
  return flat(sum ?? zeros(x.device, [depth, outputs], { dtype }));
}

/** Sum of dOut over positions. */
export function convolveBiasGradient(dOut: Tensor, dtype: FloatDType): Tensor {
  const outputs = dOut.dim(-1);
  return sumMiddle(dOut, [1, dOut.size / Math.max(1, outputs), outputs], dtype).view({ shape: [outputs], strides: [1] });
}

/** Calls `use` with patches [groups, count, taps x channels] of output positions from `first` on, piece by piece. */
function eachPiece(
  x: Tensor,
  { axes, groups }: Convolution,
  rows: number,
  backward: boolean,
  use: (patches: Tensor, first: number, count: number) => void,
): void {
  const channels = x.dim(-1);
  if (isPointwise(axes, groups)) {
    const flat = asContiguous(x);
    if (rows > 0) use(flat.view({ shape: [1, rows, channels], strides: [rows * channels, channels, 1] }), 0, rows);
    return;
  }
  const pair = reading(axes, backward);
  const rowBytes = pair.taps[0] * pair.taps[1] * channels * dtypeBytes(x.dtype);
  const piece = Math.max(1, Math.floor(patchBytes / Math.max(1, rowBytes)));
  for (let first = 0; first < rows; first += piece) {
    const count = Math.min(piece, rows - first);
    const patches = unfold(x, pair, groups, [first, count]);
    use(patches, first, count);
    patches.dispose();
  }
}

/** [taps, outputs] of a depthwise weight. */
function flatWeight(weight: Tensor): Tensor {
  const shape = [weight.dim(0) * weight.dim(1), weight.dim(-1)];
  return weight.view({ shape, strides: contiguousStrides(shape) });
}
