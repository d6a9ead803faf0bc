import { apply } from '../autodiff/tape.js';
import type { Device } from '../device/device.js';
import type { FloatDType } from '../dtype.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import type { WgslModule } from '../kernel/modules.js';
import { philoxWgsl } from '../random/philox.js';
import type { RandomDraw, RandomStream } from '../random/stream.js';
import { asContiguous } from '../tensor/copy.js';
import { checkShape, empty } from '../tensor/create.js';
import { type Shape, sizeOf, type Tensor } from '../tensor/tensor.js';
import { expectFloat } from './check.js';

const philox: WgslModule = {
  name: 'philox',
  text: `${philoxWgsl}
    // words of elements 4 block .. 4 block + 3 of a draw
    fn drawWords(block: u32) -> vec4u { return philox4x32(vec4u(block, 0u, uniforms.step, uniforms.op), vec2u(uniforms.keyLow, uniforms.keyHigh)); }`,
};

const drawUniforms = { step: 'u32', op: 'u32', keyLow: 'u32', keyHigh: 'u32' } as const;

function drawValues({ key, step, op }: RandomDraw): { step: number; op: number; keyLow: number; keyHigh: number } {
  return { step, op, keyLow: key[0], keyHigh: key[1] };
}

type Distribution = 'uniform' | 'normal' | 'bernoulli';

// Random numbers from counters: element i is word i % 4 of block i / 4, whatever the grid.
// tile    4 elements a lane, 256 lanes
// bytes   writes one element each
// source  Salmon et al. 2011 (Philox4x32-10); Box, Muller 1958
const numbers = defineKernel({
  name: 'random',
  bindings: { out: write('any', { width: 4 }) },
  uniforms: { ...drawUniforms, items: 'u32', scale: 'f32', shift: 'f32' },
  modules: [philox],
  wgsl: ({ distribution }: { distribution: Distribution }) => {
    const value: Record<Distribution, string> = {
      uniform: 'philoxUniform4(words) * uniforms.scale + uniforms.shift',
      normal: 'philoxNormal4(words) * uniforms.scale + uniforms.shift',
      bernoulli: 'select(vec4u(0u), vec4u(1u), philoxUniform4(words) < vec4f(uniforms.scale))',
    };
    return `
      @compute @workgroup_size(256)
      fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let i = workgroupIndex(group, groups) * 256u + lane;
        if (i >= uniforms.items) { return; }
        let words = drawWords(i);
        store_out(i, ${value[distribution]});
      }`;
  },
});

function draw(
  device: Device,
  shape: Shape,
  distribution: Distribution,
  random: RandomStream,
  dtype: Tensor['dtype'],
  scale: number,
  shift: number,
): Tensor {
  checkShape(distribution, shape);
  const out = empty(device, shape, dtype);
  const items = Math.ceil(sizeOf(shape) / 4);
  numbers.run(device, {
    spec: { distribution },
    tensors: { out },
    uniforms: { items, scale, shift, ...drawValues(random.take()) },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}

export interface RandomOptions {
  /** Where the numbers come from; each call moves it on by one draw. */
  random: RandomStream;
  /** Default f32. */
  dtype?: FloatDType;
}

/**
 * Uniform numbers in [low, high). Bit-equal to `RandomStream.uniform` on the host for the default bounds.
 * @param options.random where the numbers come from; each call moves it on by one draw
 * @param options.low default 0
 * @param options.high default 1
 * @param options.dtype f32 (default) or f16
 * @returns a tensor of `shape`; no gradient
 * @throws HeedError SHAPE_MISMATCH for a shape that is none
 */
export function uniform(device: Device, shape: Shape, options: RandomOptions & { low?: number; high?: number }): Tensor {
  const { low = 0, high = 1 } = options;
  return draw(device, shape, 'uniform', options.random, options.dtype ?? 'f32', high - low, low);
}

/**
 * Normal numbers (Box, Muller 1958, over Philox).
 * @param options.random where the numbers come from; each call moves it on by one draw
 * @param options.mean default 0
 * @param options.std standard deviation, default 1
 * @param options.dtype f32 (default) or f16
 * @returns a tensor of `shape`; no gradient
 * @throws HeedError SHAPE_MISMATCH for a shape that is none
 */
export function normal(device: Device, shape: Shape, options: RandomOptions & { mean?: number; std?: number }): Tensor {
  return draw(device, shape, 'normal', options.random, options.dtype ?? 'f32', options.std ?? 1, options.mean ?? 0);
}

/**
 * Ones with a probability, else zeros.
 * @param options.random where the numbers come from; each call moves it on by one draw
 * @param options.probability of a one, 0 to 1
 * @returns u8 of `shape`; no gradient
 * @throws HeedError INVALID_ARGUMENT for another probability, SHAPE_MISMATCH for a shape that is none
 */
export function bernoulli(device: Device, shape: Shape, options: { random: RandomStream; probability: number }): Tensor {
  const { probability } = options;
  if (!(probability >= 0 && probability <= 1))
    throw new HeedError('INVALID_ARGUMENT', `bernoulli: probability is ${probability}; use a number from 0 to 1`);
  return draw(device, shape, 'bernoulli', options.random, 'u8', probability, 0);
}

// out = x / (1 - rate) where the element's number is at least rate, else 0; the way back is the same with the same numbers.
// tile    4 elements a lane, 256 lanes
// bytes   reads and writes one element each; no mask is stored
const dropped = defineKernel({
  name: 'dropout',
  bindings: { x: read('float', { width: 4 }), out: write('float', { width: 4 }) },
  uniforms: { ...drawUniforms, items: 'u32', rate: 'f32' },
  modules: [philox],
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let keep = philoxUniform4(drawWords(i)) >= vec4f(uniforms.rate);
      store_out(i, select(vec4f(0.0), load_x(i) / (1.0 - uniforms.rate), keep));
    }`,
});

/**
 * Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate). The gradient draws the same numbers again:
 * no mask is kept, and a checkpointed region drops the same elements when its stream is at the same position.
 * @param x f32 or f16
 * @param options.rate share that becomes zero, 0 up to, not including, 1
 * @param options.random required: an op that draws numbers never makes up a seed
 * @returns the shape and dtype of x; differentiable
 * @throws HeedError INVALID_ARGUMENT for another rate, DTYPE_MISMATCH
 */
export function dropout(x: Tensor, options: { rate: number; random: RandomStream }): Tensor {
  const { rate } = options;
  expectFloat('dropout', 'x', x);
  if (!(rate >= 0 && rate < 1))
    throw new HeedError('INVALID_ARGUMENT', `dropout: rate is ${rate}; use a number from 0 up to, not including, 1`);
  const where = options.random.take();
  const run = (source: Tensor): Tensor => {
    const out = empty(x.device, x.shape, source.dtype);
    const items = Math.ceil(x.size / 4);
    dropped.run(x.device, {
      spec: {},
      tensors: { x: asContiguous(source), out },
      uniforms: { items, rate, ...drawValues(where) },
      grid: [Math.ceil(items / 256)],
    });
    return out;
  };
  return apply({ name: 'dropout', inputs: [x], forward: () => run(x), backward: ([g]) => [g ? run(g) : null] });
}
