import type { FloatDType } from '../../dtype.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { sumMiddle } from '../matmul/reduce-kernel.js';
import { readingText, readingUniforms, type ReadingPair, readingValues } from './text.js';

// Depthwise convolution and its transpose: each channel (of `multiplier` outputs) by itself, f32 sums.
// tile    4 channels (or 1) of one position a lane, 256 lanes
// bytes   reads x once a tap (from the cache), writes the output once
// limits  kernels of any size: taps are a run-time loop
type DepthwiseSpec = { width: 1 | 4; transposed: boolean; bias: boolean };

const strides = { xBatch: 'u32', xRow: 'u32', xColumn: 'u32' } as const;

const depthwise = defineKernel({
  name: 'conv-depthwise',
  bindings: {
    x: read<DepthwiseSpec>('float', { width: (spec) => spec.width }),
    weight: read<DepthwiseSpec>('float', { width: (spec) => spec.width }),
    bias: read<DepthwiseSpec>('float', { width: (spec) => spec.width, when: (spec) => spec.bias }),
    out: write<DepthwiseSpec>('float', { width: (spec) => spec.width }),
  },
  uniforms: { ...readingUniforms, ...strides, channels: 'u32', weights: 'u32', multiplier: 'u32', items: 'u32' },
  modules: [readingText],
  wgsl: ({ width, transposed, bias }: DepthwiseSpec) => {
    // input c has outputs c m .. c m + m - 1; with vectors m is 1
    const [from, weight] = transposed
      ? ['(channel * uniforms.multiplier + j)', '(channel * uniforms.multiplier + j)']
      : ['(channel / uniforms.multiplier)', 'channel'];
    return `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let channel = i * ${width}u % uniforms.channels;
      let position = i * ${width}u / uniforms.channels;
      let column = position % uniforms.outX;
      let row = position / uniforms.outX % uniforms.outY;
      let start = position / uniforms.outX / uniforms.outY * uniforms.xBatch;
      var sum = ${bias ? `load_bias(channel / ${width}u)` : width === 4 ? 'vec4f()' : '0.0'};
      for (var ky = 0u; ky < uniforms.tapsY; ky++) {
        let y = sourceY(row, ky);
        if (y < 0) { continue; }
        for (var kx = 0u; kx < uniforms.tapsX; kx++) {
          let x = sourceX(column, kx);
          if (x < 0) { continue; }
          let at = start + u32(y) * uniforms.xRow + u32(x) * uniforms.xColumn;
          let tap = (ky * uniforms.tapsX + kx) * uniforms.weights;
          for (var j = 0u; j < ${transposed ? 'uniforms.multiplier' : '1u'}; j++) {
            sum += load_x((at + ${from}) / ${width}u) * load_weight((tap + ${weight}) / ${width}u);
          }
        }
      }
      store_out(i, sum);
    }`;
  },
});

/**
 * Depthwise convolution, or with `transposed` the gradient of its input.
 * @param x [B, H, W, channels], any outer strides
 * @param weight [taps, outputs], contiguous
 */
export function runDepthwise(
  x: Tensor,
  weight: Tensor,
  reading: ReadingPair,
  options: { channels: number; transposed: boolean; bias?: Tensor | undefined; dtype: FloatDType },
): Tensor {
  const { channels, transposed, bias, dtype } = options;
  const weights = weight.dim(-1);
  const multiplier = weights / (transposed ? channels : x.dim(-1));
  const [xBatch = 0, xRow = 0, xColumn = 0] = x.strides;
  const aligned = [channels, x.offset, xBatch, xRow, xColumn, weight.offset, bias?.offset ?? 0].every((n) => n % 4 === 0);
  const width = multiplier === 1 && aligned ? 4 : 1;
  const shape = [x.dim(0), ...reading.outputs, channels];
  const out = empty(x.device, shape, dtype);
  const items = out.size / width;
  depthwise.run(x.device, {
    spec: { width, transposed, bias: bias !== undefined },
    tensors: { x, weight, bias, out },
    uniforms: { xBatch, xRow, xColumn, channels, weights, multiplier, items, ...readingValues(reading) },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}

// Gradient of a depthwise weight, first half: sums over a segment of output positions.
// tile    one tap of 4 channels (or 1) a lane, 256 lanes; segments side by side
// bytes   reads x and dOut once a tap (from the cache), writes segments x taps x channels
// limits  what lies outside x is read at its place 0 and counts as zero, so that loads of later positions need not wait
const weightSums = defineKernel({
  name: 'conv-depthwise-weight',
  bindings: {
    x: read<WeightSpec>('float', { width: (spec) => spec.width }),
    dOut: read<WeightSpec>('float', { width: (spec) => spec.width }),
    out: write<WeightSpec>('f32', { width: (spec) => spec.width }),
  },
  uniforms: { ...readingUniforms, ...strides, weights: 'u32', multiplier: 'u32', positions: 'u32', segment: 'u32', items: 'u32' },
  modules: [readingText],
  wgsl: ({ width }: WeightSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let channel = i * ${width}u % uniforms.weights;
      let tap = i * ${width}u / uniforms.weights % (uniforms.tapsY * uniforms.tapsX);
      let first = i * ${width}u / uniforms.weights / (uniforms.tapsY * uniforms.tapsX) * uniforms.segment;
      let tapY = tap / uniforms.tapsX;
      let tapX = tap % uniforms.tapsX;
      var sum = ${width === 4 ? 'vec4f()' : '0.0'};
      for (var p = first; p < min(first + uniforms.segment, uniforms.positions); p++) {
        let line = p / uniforms.outX;
        let y = sourceY(line % uniforms.outY, tapY);
        let x = sourceX(p - line * uniforms.outX, tapX);
        let inside = y >= 0 && x >= 0;
        let at = line / uniforms.outY * uniforms.xBatch + u32(max(y, 0)) * uniforms.xRow + u32(max(x, 0)) * uniforms.xColumn;
        let value = load_x((at + ${width === 4 ? 'channel' : 'channel / uniforms.multiplier'}) / ${width}u);
        sum += select(${width === 4 ? 'vec4f()' : '0.0'}, value, inside) * load_dOut((p * uniforms.weights + channel) / ${width}u);
      }
      store_out(i, sum);
    }`,
});

interface WeightSpec {
  [name: string]: number;
  width: 1 | 4;
}

/** Gradient of a depthwise weight, [taps, outputs]; two sums in fixed order. `dOut` is contiguous. */
export function depthwiseWeightGradient(x: Tensor, dOut: Tensor, reading: ReadingPair, dtype: FloatDType): Tensor {
  const weights = dOut.dim(-1);
  const taps = reading.taps[0] * reading.taps[1];
  const positions = dOut.size / weights;
  const multiplier = weights / x.dim(-1);
  const [xBatch = 0, xRow = 0, xColumn = 0] = x.strides;
  const aligned = [weights, x.offset, xBatch, xRow, xColumn, dOut.offset].every((n) => n % 4 === 0);
  const width = multiplier === 1 && aligned ? 4 : 1;
  // lanes enough for a large GPU, and at least 32 positions each
  const segments = Math.max(1, Math.min(1024, Math.ceil(positions / 32), Math.ceil((131_072 * width) / (taps * weights))));
  const sums = empty(x.device, [segments, taps, weights], 'f32');
  const items = sums.size / width;
  weightSums.run(x.device, {
    spec: { width },
    tensors: { x, dOut, out: sums },
    uniforms: {
      xBatch,
      xRow,
      xColumn,
      weights,
      multiplier,
      positions,
      segment: Math.ceil(positions / segments),
      items,
      ...readingValues(reading),
    },
    grid: [Math.ceil(items / 256)],
  });
  return sumMiddle(sums, [1, segments, taps * weights], dtype);
}
