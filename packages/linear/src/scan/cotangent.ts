// An f32 cotangent as an f16 operand: x = gain y, gain a power of two that brings the largest element to 2^14 .. 2^15. First its largest
// magnitude; what lies behind a batch entry's length does not count.
// tile    1 item (4 elements where rows allow) a lane and step, 256 lanes, at most 1,024 workgroups
// bytes   reads 4 an element; one atomic operation a workgroup
// limits  finite elements
import { type Tensor, zeros } from '@heed/core';
import { asContiguous, atomic, defineKernel, empty, read, write } from '@heed/core/~internal';
import { pieceOf, planPieces, spanOf } from './pieces.js';
import { lengthOf } from './text.js';

interface PeakSpec {
  [name: string]: number | boolean;
  width: number;
  lengths: boolean;
}

const peakKernel = defineKernel({
  name: 'linear-cotangent-peak',
  bindings: {
    x: read<PeakSpec>('f32', { width: (s) => s.width }),
    lengths: read<PeakSpec>('i32', { when: (s) => s.lengths }),
    peak: atomic<PeakSpec>('u32'),
  },
  uniforms: { items: 'u32', step: 'u32', perToken: 'u32', tokens: 'u32', tokensBefore: 'u32' },
  wgsl: (s: PeakSpec) => `
    ${lengthOf(s.lengths)}
    var<workgroup> most: array<atomic<u32>, 4>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      var own = 0.0;
      for (var i = workgroupIndex(group, groups) * 256u + lane; i < uniforms.items; i += uniforms.step) {
        let token = i / uniforms.perToken;
        if (token % uniforms.tokens < lengthOf(token / uniforms.tokens)) {
          let x = abs(load_x(i));
          own = max(own, ${s.width === 4 ? 'max(max(x.x, x.y), max(x.z, x.w))' : 'x'});
        }
      }
      // floats >= 0 order as their bits do
      if (own > 0.0) { atomicMax(&most[0], bitcast<u32>(own)); }
      workgroupBarrier();
      if (lane == 0u) { atomicMax(&peak[base_peak()], atomicLoad(&most[0])); }
    }`,
});

interface HalveSpec {
  [name: string]: number;
  width: number;
}

// y = x / gain, and a table of the decays with the gain behind them, so that kernels that read decays bind nothing more for it.
// tile    1 item a lane, 256 lanes
// bytes   reads 4, writes 2 an element
// limits  elements under 2^-39 of the largest become 0; the gain stays between 2^-110 and 2^110 (141: the exponent's bias, and 14)
const halveKernel = defineKernel({
  name: 'linear-cotangent-halve',
  bindings: {
    x: read<HalveSpec>('f32', { width: (s) => s.width }),
    peak: read<HalveSpec>('u32'),
    decay: read<HalveSpec>('f32'),
    y: write<HalveSpec>('f16', { width: (s) => s.width }),
    table: write<HalveSpec>('f32'),
  },
  uniforms: { items: 'u32', heads: 'u32' },
  wgsl: (_spec: HalveSpec) => `
    fn powerOfTwo(exponent: i32) -> f32 { return bitcast<f32>(u32(exponent + 127) << 23u); }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      let i = index * 256u + lane;
      let exponent = clamp(i32(load_peak(0u) >> 23u) - 141, -110, 110);
      if (index == 0u) {
        for (var h = lane; h < uniforms.heads; h += 256u) { store_table(h, load_decay(h)); }
        if (lane == 0u) { store_table(uniforms.heads, powerOfTwo(exponent)); }
      }
      if (i < uniforms.items) { store_y(i, load_x(i) * powerOfTwo(-exponent)); }
    }`,
});

// A state times the gain, or divided by it.
// tile    4 elements a lane, 256 lanes
// bytes   reads 4, writes 4 an element
const gainKernel = defineKernel({
  name: 'linear-cotangent-gain',
  bindings: { x: read('f32', { width: 4 }), table: read('f32'), y: write('f32', { width: 4 }) },
  uniforms: { items: 'u32', heads: 'u32', inverse: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      let gain = load_table(uniforms.heads);
      if (i < uniforms.items) { store_y(i, load_x(i) * select(gain, 1.0 / gain, uniforms.inverse == 1u)); }
    }`,
});

/** Halves of a cotangent, and the decays [heads + 1] with its gain behind them. */
export interface HalvedCotangent {
  halves: Tensor;
  table: Tensor;
}

/** @param x f32 [batch, tokens, heads, dim] */
export function halveCotangent(x: Tensor, decay: Tensor, lengths: Tensor | undefined): HalvedCotangent {
  const { device } = x;
  const whole = asContiguous(x);
  const halves = empty(device, x.shape, 'f16');
  const table = empty(device, [decay.size + 1]);
  const peak = zeros(device, [4], { dtype: 'u32' });
  const perToken = x.dim(2) * x.dim(3);
  const width = perToken % 4 === 0 ? 4 : 1;
  const pieces = planPieces(x.dim(0), x.dim(1), [spanOf(whole)], device.limits.maxStorageBufferBindingSize).flat();
  for (const piece of pieces) {
    const part = pieceOf(whole, piece);
    const items = part.size / width;
    const workgroups = Math.min(1024, Math.ceil(items / 256));
    const entries = lengths?.view({ shape: [piece.batch], offset: lengths.offset + piece.batchFirst });
    peakKernel.run(device, {
      spec: { width, lengths: lengths !== undefined },
      tensors: { x: part, lengths: entries, peak },
      uniforms: { items, step: workgroups * 256, perToken: perToken / width, tokens: piece.tokens, tokensBefore: piece.tokenFirst },
      grid: [workgroups],
    });
  }
  for (const piece of pieces) {
    const [part, y] = [pieceOf(whole, piece), pieceOf(halves, piece)];
    const items = part.size / width;
    halveKernel.run(device, {
      spec: { width },
      tensors: { x: part, peak, decay, y, table },
      uniforms: { items, heads: decay.size },
      grid: [Math.ceil(items / 256)],
    });
  }
  return { halves, table };
}

/** A contiguous state times the gain, or (`inverse`) divided by it. */
export function timesGain(x: Tensor, table: Tensor, inverse: boolean): Tensor {
  const y = empty(x.device, x.shape);
  const items = Math.ceil(x.size / 4);
  gainKernel.run(x.device, {
    spec: {},
    tensors: { x, table, y },
    uniforms: { items, heads: table.size - 1, inverse: inverse ? 1 : 0 },
    grid: [Math.ceil(items / 256)],
  });
  return y;
}
