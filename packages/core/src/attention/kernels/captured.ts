// Gradients of arrays that a score function captures: each pair adds dS times the derivative by every element that it read.
// tile    as the dq kernel: rows x columns scores a workgroup and step
// bytes   reads as the dq kernel; two atomic additions a pair and term
// limits  sums in 96-bit fixed point (fixed-point.ts), so the result does not depend on the order; 24 bytes an element of scratch
// source  Dong et al. 2024 (FlexAttention), section 4, backward of captured buffers
import type { Device } from '../../device/device.js';
import { atomic, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { backwardFunctions, backwardReads, type BackwardTensors, backwardUniforms, type BackwardUniforms } from './backward-bindings.js';
import { type BackwardSpec, scoreGradients } from './dq.js';
import { accumulatorWords, fixedPointAdd, fixedPointValue } from './fixed-point.js';
import { tilePosition } from './forward.js';
import { keyLoop } from './loops.js';
import { TileText } from './tile.js';

export type CapturedSpec = BackwardSpec & {
  /** WGSL of `addTerms(g, s, b, h, q, kv)`, which calls `addFixed` for each captured element that the pair read. */
  terms: string;
};

const kernel = defineKernel({
  name: 'attention-captured',
  bindings: {
    ...backwardReads<CapturedSpec>(),
    sums: atomic<CapturedSpec>('u32'),
  },
  uniforms: { ...backwardUniforms, firstAt: 'u32x8', tiles: 'u32' },
  modules: [fixedPointAdd],
  wgsl: capturedText,
});

/** Adds to `sums`, u32 accumulators that begin at zero. */
export function runCapturedKernel(
  device: Device,
  spec: CapturedSpec,
  tensors: BackwardTensors & { sums: Tensor },
  uniforms: BackwardUniforms & { tiles: number; firstAt: readonly number[] },
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms, grid });
}

function capturedText(spec: CapturedSpec): string {
  const { headDim, valueDim } = spec;
  const widest = Math.max(headDim, valueDim);
  const t = new TileText(spec, { contract: widest, accumulate: 1 }, spec.opaque);
  const rows = t.rowNumbers();
  const tile = scoreGradients(spec, t, (n, { b, h, q, kv }) => {
    const pair = `${n.own('s')} * uniforms.scale, i32(${b}), i32(${h}), ${q}, i32(min(${kv}, uniforms.keys - 1u))`;
    return `if (g != 0.0) { addTerms(g, ${pair}); }`;
  });
  return `
    ${t.variables()}
    ${backwardFunctions(spec, spec.width)}
    ${spec.terms}
    @compute @workgroup_size(${t.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${tilePosition(spec)}
      let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
      ${t.lanePosition()}
      ${rows
        .map(
          (i) => `
      let place${i} = i32(rowStart + ${t.row(i)}) + queryOffset;
      let stat${i} = statOf((b * uniforms.queries + rowStart + ${t.row(i)}) * uniforms.heads + h, rowStart + ${t.row(i)} < rowEnd);`,
        )
        .join('\n')}
      let alive = ${rows.map((i) => `select(0u, ${t.bitsOfRow(i)}, stat${i}.x < 1e29)`).join(' | ')};
      ${keyLoop(spec, spec.columns, tile)}
    }`;
}

// Accumulators as floats.
// tile    one element a lane, 256 lanes
// bytes   reads 24, writes 4 or 2 an element
const finish = defineKernel({
  name: 'attention-captured-value',
  bindings: { sums: read('u32', { raw: 'u32' }), out: write('float') },
  uniforms: { first: 'u32', size: 'u32' },
  modules: [fixedPointValue],
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.size) { store_out(i, fixedValue(base_sums() + (uniforms.first + i) * ${accumulatorWords}u)); }
    }`,
});

/** Reads the accumulators from `first` on. */
export function runCapturedValues(device: Device, sums: Tensor, first: number, out: Tensor): void {
  finish.run(device, { spec: {}, tensors: { sums, out }, uniforms: { first, size: out.size }, grid: [Math.ceil(out.size / 256)] });
}
