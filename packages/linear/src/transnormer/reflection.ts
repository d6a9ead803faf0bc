// x - 2 (x.h) h a row: the reflection at the plane across a unit vector h, which is its own inverse and its own gradient.
// tile    256 lanes; a lane holds four fours of a row (or ones), whose sum is made in workgroup memory, in order
// bytes   reads x once, writes it once
// limits  none; sums f32
// source  Qin et al. 2022 (arXiv 2210.10340), code: projection "householder" of Urpe
import type { Tensor } from '@heed/core';
import { apply, defineKernel, empty, read, unroll, write } from '@heed/core/~internal';
import { rowWidth } from '../scan/views.js';

interface ReflectionSpec {
  [name: string]: number;
  width: number;
  /** Items of a row (`width` elements each), lanes that share them. */
  items: number;
  span: number;
}

const lanes = 256;

const kernel = defineKernel({
  name: 'linear-reflection',
  bindings: {
    x: read<ReflectionSpec>('float', { width: (s) => s.width }),
    h: read<ReflectionSpec>('f32', { width: (s) => s.width }),
    out: write<ReflectionSpec>('float', { width: (s) => s.width }),
  },
  uniforms: { rows: 'u32', tokens: 'u32', heads: 'u32', xBatch: 'u32', xToken: 'u32', xHead: 'u32' },
  wgsl: ({ width, items, span }: ReflectionSpec) => {
    const own = Math.ceil(items / span);
    const [zero, dot] = width === 4 ? ['vec4f()', 'dot'] : ['0.0', ''];
    return `
    var<workgroup> sums: array<f32, ${lanes}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups) * ${lanes / span}u + lane / ${span}u;
      let own = lane % ${span}u;
      let head = row % uniforms.heads;
      let token = row / uniforms.heads % uniforms.tokens;
      let base = row / uniforms.heads / uniforms.tokens * uniforms.xBatch + token * uniforms.xToken + head * uniforms.xHead;
      ${unroll(own, (i) => `var x${i} = ${zero}; var h${i} = ${zero}; if (row < uniforms.rows && own + ${i * span}u < ${items}u) { x${i} = ${width === 4 ? 'vec4f' : 'f32'}(load_x(base + own + ${i * span}u)); h${i} = load_h(own + ${i * span}u); }`)}
      var sum = 0.0;
      ${unroll(own, (i) => (dot ? `sum += dot(x${i}, h${i});` : `sum += x${i} * h${i};`), ' ')}
      sums[lane] = sum;
      workgroupBarrier();
      let firstLane = lane - own;
      // a bound that compilers cannot see: some unroll the sum and take seconds for it
      let span = min(${span}u, ${span - 1}u + groups.x);
      var whole = 0.0;
      for (var i = 0u; i < span; i++) { whole += sums[firstLane + i]; }
      ${unroll(own, (i) => `if (row < uniforms.rows && own + ${i * span}u < ${items}u) { store_out(row * ${items}u + own + ${i * span}u, x${i} - 2.0 * whole * h${i}); }`)}
    }`;
  },
});

/**
 * Reflects every row of x at the plane across h; differentiable in x.
 * @param x [batch, tokens, heads, headDim], f32 or f16
 * @param h unit vector, contiguous f32 [headDim], a constant
 */
export function reflected(x: Tensor, h: Tensor): Tensor {
  return apply({
    name: 'reflected',
    inputs: [x],
    forward: () => reflect(x, h),
    saves: () => [h],
    backward: ([dy], { saved: [vector] }) => [dy && vector ? reflect(dy, vector) : null],
  });
}

function reflect(x: Tensor, h: Tensor): Tensor {
  const out = empty(x.device, x.shape, x.dtype);
  const [tokens, heads, headDim] = [x.dim(1), x.dim(2), x.dim(3)];
  const width = h.offset % 4 === 0 ? rowWidth(x) : 1;
  const items = headDim / width;
  const span = Math.min(lanes, 2 ** Math.max(0, Math.ceil(Math.log2(items / 4))));
  const rows = x.size / headDim;
  if (x.size === 0) return out;
  const stride = (axis: number): number => (x.strides[axis] ?? 0) / width;
  kernel.run(x.device, {
    spec: { width, items, span },
    tensors: { x, h, out },
    uniforms: { rows, tokens, heads, xBatch: stride(0), xToken: stride(1), xHead: stride(2) },
    grid: [Math.ceil((rows * span) / lanes)],
  });
  return out;
}
