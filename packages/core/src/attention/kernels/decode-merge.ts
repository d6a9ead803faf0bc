// Merges the parts of each query row: out = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s.
// tile    a row a workgroup of 256 lanes: quads of the row, and slices of the parts side by side, joined in order
// bytes   reads (valueDim + 4) x 4 a part, writes a row of valueDim and its logsumexp
// limits  valueDim up to 256; a row without weight gives zeros and minus infinity
// source  flash-decoding (Dao et al. 2023), reduction
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { ln2 } from './common.js';

type MergeSpec = { valueDim: number };

const lanes = 256;

const mergeParts = defineKernel({
  name: 'attention-decode-merge',
  bindings: {
    parts: read<MergeSpec>('f32', { width: 4 }),
    out: write<MergeSpec>('float', { width: ({ valueDim }) => (valueDim % 4 === 0 ? 4 : 1) }),
    lse: write<MergeSpec>('f32', { raw: 'u32' }),
  },
  uniforms: { rows: 'u32', splits: 'u32', slices: 'u32' },
  wgsl: ({ valueDim }: MergeSpec) => {
    const quads = Math.ceil(valueDim / 4);
    const store =
      valueDim % 4 === 0
        ? `store_out(row * ${quads}u + lane, result);`
        : [0, 1, 2, 3]
            .map((e) => `if (lane * 4u + ${e}u < ${valueDim}u) { store_out(row * ${valueDim}u + lane * 4u + ${e}u, result.${'xyzw'[e]}); }`)
            .join('\n');
    return `
    var<workgroup> sums: array<vec4f, ${lanes}>;
    // maximum and total weight of a slice, twice over for whole vectors
    var<workgroup> states: array<vec2f, ${lanes}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups);
      if (row >= uniforms.rows) { return; }
      let slice = lane / ${quads}u;
      let quad = lane % ${quads}u;
      let first = row * uniforms.splits * ${quads + 1}u;
      var top = NEG;
      var weight = 0.0;
      var sum = vec4f();
      if (slice < uniforms.slices) {
        for (var s = slice; s < uniforms.splits; s += uniforms.slices) {
          let at = first + s * ${quads + 1}u;
          let state = load_parts(at + ${quads}u);
          let part = load_parts(at + quad);
          let next = max(top, state.x);
          let shrink = exp2(top - next);
          let share = exp2(state.x - next);
          sum = sum * shrink + part * share;
          weight = weight * shrink + state.y * share;
          top = next;
        }
      }
      sums[lane] = sum;
      states[lane] = vec2f(top, weight);
      workgroupBarrier();
      if (lane >= ${quads}u) { return; }
      for (var s = 1u; s < uniforms.slices; s++) {
        let state = states[s * ${quads}u + lane];
        let next = max(top, state.x);
        let shrink = exp2(top - next);
        let share = exp2(state.x - next);
        sum = sum * shrink + sums[s * ${quads}u + lane] * share;
        weight = weight * shrink + state.y * share;
        top = next;
      }
      let result = select(vec4f(), sum / max(weight, 1e-37), weight > 0.0);
      ${store}
      if (lane == 0u) {
        lse[base_lse() + row] = select(0xff800000u, bitcast<u32>((top + log2(max(weight, 1e-37))) * ${ln2}), weight > 0.0);
      }
    }`;
  },
});

/** Merges parts f32 [rows, splits, 4 (quads of valueDim + 1)] into `out` and `lse`. */
export function runDecodeMerge(device: Device, parts: Tensor, splits: number, out: Tensor, lse: Tensor): void {
  const valueDim = out.dim(-1);
  const quads = Math.ceil(valueDim / 4);
  mergeParts.run(device, {
    spec: { valueDim },
    tensors: { parts, out, lse },
    uniforms: { rows: lse.size, splits, slices: Math.max(1, Math.min(splits, Math.floor(lanes / quads))) },
    grid: [lse.size],
  });
}
