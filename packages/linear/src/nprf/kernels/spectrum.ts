// The circulant's first column from the Toeplitz entries, its spectrum in the order of the middle pass, and the way back for the gradient.
// All but the correlation touch 4 n to 16 n bytes a head: nothing beside the convolutions.
// source  Luo et al. 2021 (arXiv 2106.12566), section 3: the Toeplitz matrix in a circulant of n >= rows + others - 1
import { type Device, irfft, rfft, type Tensor } from '@heed/core';
import { defineKernel, empty, read, readWrite, write } from '@heed/core/~internal';
import type { Positions } from '../positions.js';
import { type Slab, slabUniforms, slabValues, type TransformPlan } from './convolve.js';
import { resultAt, transformLanes, transformSteps, transformText, twiddles } from './transform.js';

// First column h of each head's circulant: at distance d (query - key) it is c_(-d), zero where the pair is hidden.
// tile    1 element a lane, 256 lanes
// bytes   reads 4 of each of the table's entries, writes 4 n a head
// limits  n >= rows + others - 1, so that no two entries want one place
const column = defineKernel({
  name: 'nprf-circulant',
  bindings: { c: read('f32'), out: write('f32') },
  uniforms: { size: 'u32', n: 'u32', table: 'u32', centre: 'i32', shift: 'i32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      var distance = i32(i % uniforms.n);
      if (distance >= i32(uniforms.n / 2u)) { distance -= i32(uniforms.n); }
      var entry = uniforms.centre - distance;
      // distances that only one half of the circle holds
      if (entry >= i32(uniforms.table)) { entry -= i32(uniforms.n); distance += i32(uniforms.n); }
      if (entry < 0) { entry += i32(uniforms.n); distance -= i32(uniforms.n); }
      var value = 0.0;
      if (entry >= 0 && entry < i32(uniforms.table) && distance >= -uniforms.shift) { value = load_c((i / uniforms.n) * uniforms.table + u32(entry)); }
      store_out(i, value);
    }`,
});

// Spectrum over n from its first half, frequency k1 + n1 k2 at place k1 n2 + k2, as the first pass leaves its columns.
// tile    1 frequency a lane, 256 lanes
// bytes   reads 8, writes 8 a frequency
// limits  h is real: bins behind n / 2 are conjugates
const order = defineKernel({
  name: 'nprf-spectrum',
  bindings: { re: read('f32'), im: read('f32'), out: write('f32', { raw: 'vec2f' }) },
  uniforms: { size: 'u32', n: 'u32', n1: 'u32', n2: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let inner = i % uniforms.n;
      let k = inner / uniforms.n2 + uniforms.n1 * (inner % uniforms.n2);
      let mirrored = 2u * k > uniforms.n;
      let at = (i / uniforms.n) * (uniforms.n / 2u + 1u) + select(k, uniforms.n - k, mirrored);
      let scale = 1.0 / f32(uniforms.n);
      out[base_out() + i] = vec2f(load_re(at), select(load_im(at), -load_im(at), mirrored)) * scale;
    }`,
});

/** Spectrum of each head's circulant, [heads, n1, n2] complex as [heads, n, 2], divided by n. */
export function spectrumOf(c: Tensor, plan: TransformPlan, { centre, shift }: Positions): Tensor {
  const [heads, table] = [c.dim(0), c.dim(1)];
  const { n, n1, n2 } = plan;
  const h = empty(c.device, [heads, n]);
  const grid = [Math.ceil((heads * n) / 256)];
  column.run(c.device, { spec: {}, tensors: { c, out: h }, uniforms: { size: heads * n, n, table, centre, shift }, grid });
  const { real: re, imaginary: im } = rfft(h, { length: n });
  const out = empty(c.device, [heads, n, 2]);
  order.run(c.device, { spec: {}, tensors: { re, im, out }, uniforms: { size: heads * n, n, n1, n2 }, grid });
  return out;
}

interface CorrelateSpec {
  [name: string]: number;
  n2: number;
}

// Gradient of the spectrum: sums over a slab of U conj(X), frequency by frequency, from what the first pass left of both.
// tile    the n2 frequencies of one k1, a head and a part of the rows, 256 lanes; rows in order, so sums are deterministic
// bytes   reads 16 n a row of the slab, reads and writes 8 n a head and part
// limits  n2 <= 1024
// source  adjoint of the convolution theorem: d h^ = sum conj(x^) u^
const correlate = defineKernel({
  name: 'nprf-correlate',
  bindings: {
    x: read<CorrelateSpec>('f32', { raw: 'vec2f' }),
    u: read<CorrelateSpec>('f32', { raw: 'vec2f' }),
    twiddles: read<CorrelateSpec>('f32'),
    out: readWrite<CorrelateSpec>('f32', { raw: 'vec2f' }),
  },
  uniforms: { ...slabUniforms, total: 'u32', heads: 'u32', entries: 'u32', parts: 'u32' },
  wgsl: ({ n2 }: CorrelateSpec) => {
    const each = Math.ceil(n2 / transformLanes);
    const loop = (text: (e: number) => string): string => Array.from({ length: each }, (_, e) => text(e)).join('\n');
    const at = resultAt(n2, 0);
    return `
    ${transformText}
    @compute @workgroup_size(${transformLanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let k1 = group.x;
      let head = group.y % uniforms.heads;
      let part = group.y / uniforms.heads;
      ${loop((e) => `var sum${e} = vec2f();`)}
      let rows = uniforms.entries * uniforms.features * uniforms.pairs;
      for (var row = part; row < rows; row += uniforms.parts) {
        if ((row / (uniforms.pairs * uniforms.features) + uniforms.entryFirst) % uniforms.heads != head) { continue; }
        let from_ = row * uniforms.total + k1 * ${n2}u;
        for (var e = lane; e < ${n2}u; e += ${transformLanes}u) { field[e] = x[base_x() + from_ + e]; }
        workgroupBarrier();
        ${transformSteps(n2, 1, false, 0)}
        ${loop((e) => `var x${e} = vec2f(); if (lane + ${e * transformLanes}u < ${n2}u) { x${e} = conjugate(field[${at}u + lane + ${e * transformLanes}u]); }`)}
        workgroupBarrier();
        for (var e = lane; e < ${n2}u; e += ${transformLanes}u) { field[e] = u[base_u() + from_ + e]; }
        workgroupBarrier();
        ${transformSteps(n2, 1, false, 0)}
        ${loop((e) => `if (lane + ${e * transformLanes}u < ${n2}u) { sum${e} += product(field[${at}u + lane + ${e * transformLanes}u], x${e}); }`)}
        workgroupBarrier();
      }
      let to = base_out() + group.y * uniforms.total + k1 * ${n2}u;
      ${loop((e) => `if (lane + ${e * transformLanes}u < ${n2}u) { out[to + lane + ${e * transformLanes}u] += sum${e}; }`)}
    }`;
  },
});

/** Parts that the rows of a slab are summed in, so that few heads fill a device, too; pure. */
export function correlateParts(n1: number, heads: number): number {
  return Math.max(1, Math.min(16, Math.ceil(2048 / (n1 * heads))));
}

/** Adds to `out` [parts, heads, n, 2] what a slab gives. */
export function runCorrelate(
  device: Device,
  plan: TransformPlan,
  slab: Slab,
  operands: { x: Tensor; u: Tensor; out: Tensor },
  heads: number,
): void {
  correlate.run(device, {
    spec: { n2: plan.n2 },
    tensors: { ...operands, twiddles: twiddles(device, plan.n) },
    uniforms: { ...slabValues(slab), total: plan.n, heads, entries: slab.entries, parts: operands.out.dim(0) },
    grid: [plan.n1, heads * operands.out.dim(0)],
  });
}

// Half the spectrum of a real signal from the order of the middle pass: what is imaginary in the signal drops out.
// tile    1 frequency a lane, 256 lanes
// bytes   reads 16, writes 8 a frequency of the half
const fold = defineKernel({
  name: 'nprf-fold',
  bindings: { x: read('f32', { raw: 'vec2f' }), re: write('f32'), im: write('f32') },
  uniforms: { size: 'u32', n: 'u32', n1: 'u32', n2: 'u32' },
  wgsl: () => `
    fn place(k: u32) -> u32 { return (k % uniforms.n1) * uniforms.n2 + k / uniforms.n1; }
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let bins = uniforms.n / 2u + 1u;
      let first = base_x() + (i / bins) * uniforms.n;
      let k = i % bins;
      let a = x[first + place(k)];
      let b = x[first + place((uniforms.n - k) % uniforms.n)];
      store_re(i, 0.5 * (a.x + b.x));
      store_im(i, 0.5 * (a.y - b.y));
    }`,
});

// Gradients of the table's entries from that of the circulant's first column: the first kernel here, transposed.
// tile    1 entry a lane, 256 lanes
// bytes   reads 4, writes 4 an entry
const entries = defineKernel({
  name: 'nprf-entries',
  bindings: { h: read('f32'), out: write('f32') },
  uniforms: { size: 'u32', n: 'u32', table: 'u32', centre: 'i32', shift: 'i32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let distance = uniforms.centre - i32(i % uniforms.table);
      let at = u32(distance + i32(uniforms.n)) % uniforms.n;
      store_out(i, select(0.0, load_h((i / uniforms.table) * uniforms.n + at), distance >= -uniforms.shift));
    }`,
});

/** dc [heads, table] from the summed spectrum. */
export function entriesOf(spectrum: Tensor, plan: TransformPlan, { centre, shift }: Positions, table: number): Tensor {
  const heads = spectrum.dim(0);
  const { n, n1, n2 } = plan;
  const bins = n / 2 + 1;
  const [re, im] = [empty(spectrum.device, [heads, bins]), empty(spectrum.device, [heads, bins])];
  fold.run(spectrum.device, {
    spec: {},
    tensors: { x: spectrum, re, im },
    uniforms: { size: heads * bins, n, n1, n2 },
    grid: [Math.ceil((heads * bins) / 256)],
  });
  const h = irfft(re, im);
  const out = empty(spectrum.device, [heads, table]);
  entries.run(spectrum.device, {
    spec: {},
    tensors: { h, out },
    uniforms: { size: heads * table, n, table, centre, shift },
    grid: [Math.ceil((heads * table) / 256)],
  });
  return out;
}
