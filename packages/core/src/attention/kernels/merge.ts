import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { WgslModule } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { log2e } from './common.js';

// A logsumexp as words: minus infinity is a bit pattern that no f32 arithmetic sees.
const lseWords: WgslModule = {
  name: 'attention-lse',
  text: `
    fn lseOf(bits: u32) -> f32 { return select(bitcast<f32>(bits), NEG, bits == 0xff800000u); }
    fn lseBits(value: f32) -> u32 { return select(0xff800000u, bitcast<u32>(value), value > 0.5 * NEG); }`,
};

type MergeSpec = { valueDim: number };

// Combines partial attention results by their logsumexp: out = sum_p exp(lse_p - lse) out_p.
// tile    one element a lane, 256 lanes
// bytes   reads every partial element once and each row's lse once an element (cached), writes the result
// limits  any number of parts; parts that see nothing do not count, rows that no part sees give 0 and minus infinity
// source  Dao et al. 2023 (FlashDecoding), reduction
const mergeParts = defineKernel({
  name: 'attention-merge',
  bindings: {
    parts: read('f32'),
    partLse: read('f32', { raw: 'u32' }),
    out: write('float'),
    lse: write('f32', { raw: 'u32' }),
  },
  uniforms: { rows: 'u32', parts: 'u32', size: 'u32' },
  modules: [lseWords],
  wgsl: ({ valueDim }: MergeSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let row = i / ${valueDim}u;
      var top = NEG;
      for (var p = 0u; p < uniforms.parts; p++) { top = max(top, lseOf(partLse[base_partLse() + p * uniforms.rows + row])); }
      var sum = 0.0;
      var value = 0.0;
      for (var p = 0u; p < uniforms.parts; p++) {
        let part = lseOf(partLse[base_partLse() + p * uniforms.rows + row]);
        let weight = select(0.0, exp2((part - top) * ${log2e}), part > 0.5 * NEG);
        sum += weight;
        if (weight > 0.0) { value += weight * load_parts(p * uniforms.size + i); }
      }
      store_out(i, value / max(sum, 1e-37));
      if (i % ${valueDim}u == 0u) { lse[base_lse() + row] = lseBits(select(NEG, top + log(max(sum, 1e-37)), sum > 0.0)); }
    }`,
});

type MergeBackwardSpec = { valueDim: number; dOut: boolean; dLse: boolean };

// Cotangents of one partial result: w = exp(lse_p - lse), dOut_p = w dOut, dLse_p = w (dLse + sum_d dOut (out_p - out)).
// tile    one row a lane, 64 lanes
// bytes   reads out_p, out and dOut, writes dOut_p, once
const mergeBackward = defineKernel({
  name: 'attention-merge-backward',
  bindings: {
    part: read<MergeBackwardSpec>('float'),
    partLse: read<MergeBackwardSpec>('f32', { raw: 'u32' }),
    out: read<MergeBackwardSpec>('float'),
    lse: read<MergeBackwardSpec>('f32', { raw: 'u32' }),
    dOut: read<MergeBackwardSpec>('float', { when: (s) => s.dOut }),
    dLse: read<MergeBackwardSpec>('f32', { when: (s) => s.dLse }),
    dPart: write<MergeBackwardSpec>('float'),
    dPartLse: write<MergeBackwardSpec>('f32'),
  },
  uniforms: { rows: 'u32' },
  modules: [lseWords],
  wgsl: ({ valueDim, dOut, dLse }: MergeBackwardSpec) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups) * 64u + lane;
      if (row >= uniforms.rows) { return; }
      let part = lseOf(partLse[base_partLse() + row]);
      let weight = select(0.0, exp2((part - lseOf(lse[base_lse() + row])) * ${log2e}), part > 0.5 * NEG);
      var sum = ${dLse ? 'load_dLse(row)' : '0.0'};
      for (var d = 0u; d < ${valueDim}u; d++) {
        let at = row * ${valueDim}u + d;
        ${dOut ? 'let g = load_dOut(at); sum += g * (load_part(at) - load_out(at)); store_dPart(at, weight * g);' : 'store_dPart(at, 0.0);'}
      }
      store_dPartLse(row, select(0.0, weight * sum, weight > 0.0));
    }`,
});

/** Merges stacked partial results into `out` and `lse`: parts f32 [parts, rows, valueDim], partLse f32 [parts, rows]. */
export function runMergeParts(device: Device, tensors: { parts: Tensor; partLse: Tensor; out: Tensor; lse: Tensor }, parts: number): void {
  const { out, lse } = tensors;
  const uniforms = { rows: lse.size, parts, size: out.size };
  mergeParts.run(device, { spec: { valueDim: out.dim(-1) }, tensors, uniforms, grid: [Math.ceil(out.size / 256)] });
}

/** Cotangents of one part from those of the merged result; absent ones count as zero. */
export function runMergeBackward(
  device: Device,
  tensors: {
    part: Tensor;
    partLse: Tensor;
    out: Tensor;
    lse: Tensor;
    dOut: Tensor | undefined;
    dLse: Tensor | undefined;
    dPart: Tensor;
    dPartLse: Tensor;
  },
): void {
  const { part, partLse, dOut, dLse } = tensors;
  mergeBackward.run(device, {
    spec: { valueDim: part.dim(-1), dOut: dOut !== undefined, dLse: dLse !== undefined },
    tensors,
    uniforms: { rows: partLse.size },
    grid: [Math.ceil(partLse.size / 64)],
  });
}
