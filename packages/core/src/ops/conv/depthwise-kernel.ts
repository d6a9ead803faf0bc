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
    uniforms: { ...readingValues(reading), xBatch, xRow, xColumn, channels, weights, multiplier, items },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}

// Gradient of a depthwise weight, first half: sums over a segment of output positions.
// tile    one (tap, output channel) a lane, 256 lanes; segments side by side
// bytes   reads x and dOut once a tap (from the cache), writes segments x taps x channels
const weightSums = defineKernel({
  name: 'conv-depthwise-weight',
  bindings: { x: read('float'), dOut: read('float'), out: write('f32') },
  uniforms: { ...readingUniforms, ...strides, weights: 'u32', multiplier: 'u32', positions: 'u32', segment: 'u32', items: 'u32' },
  modules: [readingText],
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let channel = i % uniforms.weights;
      let tap = i / uniforms.weights % (uniforms.tapsY * uniforms.tapsX);
      let first = i / uniforms.weights / (uniforms.tapsY * uniforms.tapsX) * uniforms.segment;
      var sum = 0.0;
      for (var p = first; p < min(first + uniforms.segment, uniforms.positions); p++) {
        let y = sourceY(p / uniforms.outX % uniforms.outY, tap / uniforms.tapsX);
        let x = sourceX(p % uniforms.outX, tap % uniforms.tapsX);
        if (y < 0 || x < 0) { continue; }
        let at = p / uniforms.outX / uniforms.outY * uniforms.xBatch + u32(y) * uniforms.xRow + u32(x) * uniforms.xColumn;
        sum += load_x(at + channel / uniforms.multiplier) * load_dOut(p * uniforms.weights + channel);
      }
      store_out(i, sum);
    }`,
});

/** Gradient of a depthwise weight, [taps, outputs]; two sums in fixed order. `dOut` is contiguous. */
export function depthwiseWeightGradient(x: Tensor, dOut: Tensor, reading: ReadingPair, dtype: FloatDType): Tensor {
  const weights = dOut.dim(-1);
  const taps = reading.taps[0] * reading.taps[1];
  const positions = dOut.size / weights;
  // lanes enough for a large GPU, and at least 32 positions each
  const segments = Math.max(1, Math.min(256, Math.ceil(positions / 32), Math.ceil(65_536 / (taps * weights))));
  const [xBatch = 0, xRow = 0, xColumn = 0] = x.strides;
  const sums = empty(x.device, [segments, taps, weights], 'f32');
  weightSums.run(x.device, {
    spec: {},
    tensors: { x, dOut, out: sums },
    uniforms: {
      ...readingValues(reading),
      xBatch,
      xRow,
      xColumn,
      weights,
      multiplier: weights / x.dim(-1),
      positions,
      segment: Math.ceil(positions / segments),
      items: sums.size,
    },
    grid: [Math.ceil(sums.size / 256)],
  });
  return sumMiddle(sums, [1, segments, taps * weights], dtype);
}
