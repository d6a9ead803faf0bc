import type { Device } from '../../device/device.js';
import type { FloatDType } from '../../dtype.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { asContiguous } from '../../tensor/copy.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { epilogueText, matmulUniforms, type OutSpec, placeText, type ProductCall } from './text.js';

// Second half of a product that was cut along K: sums the parts in order and applies the epilogue.
// tile    4 neighbouring elements (or 1) a lane, 256 lanes
// bytes   reads splits x matrices x M x N f32, writes M x N once
export interface SplitSumSpec extends OutSpec {
  partial: false;
}

const splitSum = defineKernel({
  name: 'matmul-split-sum',
  bindings: {
    parts: read<SplitSumSpec>('f32', { width: (spec) => spec.outWidth }),
    out: write<SplitSumSpec>('float', { width: (spec) => spec.outWidth }),
    bias: read<SplitSumSpec>('float', { when: (spec) => spec.bias }),
    addTo: read<SplitSumSpec>('float', { width: (spec) => spec.outWidth, when: (spec) => spec.addTo }),
  },
  uniforms: matmulUniforms,
  wgsl: (spec: SplitSumSpec) => {
    const { outWidth } = spec;
    return `
      ${placeText(false)}
      ${epilogueText(spec)}
      @compute @workgroup_size(256)
      fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
        let size = uniforms.M * uniforms.N;
        let all = uniforms.matrices * size / ${outWidth}u;
        let i = workgroupIndex(group, groups) * 256u + lane;
        if (i >= all) { return; }
        var sum = load_parts(i);
        for (var s = 1u; s < uniforms.splits; s++) { sum += load_parts(s * all + i); }
        let element = i * ${outWidth}u;
        let inMatrix = element % size;
        let column = inMatrix % uniforms.N;
        let at = dot(batchIndex(element / size), uniforms.batch[1]) + inMatrix / uniforms.N * uniforms.rowOut + column;
        ${outWidth === 4 ? 'finishFour' : 'finishOne'}(at, column, sum);
      }`;
  },
});

/** Records the sum of the parts of a split product. */
export function runSplitSum(
  device: Device,
  spec: SplitSumSpec,
  call: {
    tensors: { parts: Operand; out: Operand; bias?: Operand | undefined; addTo?: Operand | undefined };
    uniforms: ProductCall['uniforms'];
  },
): void {
  const { M, N, matrices } = call.uniforms;
  splitSum.run(device, { spec, ...call, grid: [Math.ceil((M * N * matrices) / spec.outWidth / 256)] });
}

// out[g, s, i] = sum of x[g, n, i] over the n of segment s: sums over one axis in two deterministic steps.
// tile    one element a lane, 256 lanes
// bytes   reads x once, writes groups x segments x inner
const segmentSums = defineKernel({
  name: 'segment-sums',
  bindings: { x: read('float'), out: write('float') },
  uniforms: { count: 'u32', segment: 'u32', segments: 'u32', inner: 'u32', size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let column = i % uniforms.inner;
      let segment = i / uniforms.inner % uniforms.segments;
      let outer = i / uniforms.inner / uniforms.segments;
      let end = min((segment + 1u) * uniforms.segment, uniforms.count);
      var sum = 0.0;
      for (var n = segment * uniforms.segment; n < end; n++) { sum += load_x((outer * uniforms.count + n) * uniforms.inner + column); }
      store_out(i, sum);
    }`,
});

/** Sum over the middle axis of x seen as [outer, count, inner], in f32 and in fixed order; gives [outer, inner]. */
export function sumMiddle(x: Tensor, [outer, count, inner]: readonly [number, number, number], dtype: FloatDType): Tensor {
  const pass = (from: Tensor, n: number, segments: number, to: FloatDType): Tensor => {
    const out = empty(x.device, [outer, segments, inner], to);
    const size = outer * segments * inner;
    segmentSums.run(x.device, {
      spec: {},
      tensors: { x: from, out },
      uniforms: { count: n, segment: Math.max(1, Math.ceil(n / segments)), segments, inner, size },
      grid: [Math.ceil(size / 256)],
    });
    return out;
  };
  const source = asContiguous(x);
  const segments = count <= 64 ? 1 : Math.min(256, Math.ceil(Math.sqrt(count)));
  const first = pass(source, count, segments, segments === 1 ? dtype : 'f32');
  return segments === 1 ? first : pass(first, segments, 1, dtype);
}
