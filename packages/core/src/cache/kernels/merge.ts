// Merges the parts of each query row: out = sum 2^(m_s - m) o_s / sum 2^(m_s - m) l_s.
// tile    1 quad of a row a lane, 64 lanes
// bytes   reads (valueDim + 4) x 4 a part, writes a row of valueDim and its logsumexp
// limits  a row without weight gives zeros and minus infinity
// source  flash-decoding (Dao et al. 2023)
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';

type MergeSpec = { valueDim: number };

const mergeParts = defineKernel({
  name: 'kv-merge',
  bindings: {
    parts: read<MergeSpec>('f32', { width: 4 }),
    out: write<MergeSpec>('float', { width: ({ valueDim }) => (valueDim % 4 === 0 ? 4 : 1) }),
    lse: write<MergeSpec>('f32', { raw: 'u32' }),
  },
  uniforms: { rows: 'u32', splits: 'u32' },
  wgsl: ({ valueDim }: MergeSpec) => {
    const quads = Math.ceil(valueDim / 4);
    const store =
      valueDim % 4 === 0
        ? `store_out(row * ${quads}u + quad, result);`
        : [0, 1, 2, 3]
            .map((e) => `if (quad * 4u + ${e}u < ${valueDim}u) { store_out(row * ${valueDim}u + quad * 4u + ${e}u, result.${'xyzw'[e]}); }`)
            .join('\n');
    return `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let item = workgroupIndex(group, groups) * 64u + lane;
      if (item >= uniforms.rows * ${quads}u) { return; }
      let row = item / ${quads}u;
      let quad = item % ${quads}u;
      let first = row * uniforms.splits * ${quads + 1}u;
      var m = NEG;
      for (var s = 0u; s < uniforms.splits; s++) { m = max(m, load_parts(first + s * ${quads + 1}u + ${quads}u).x); }
      var sum = vec4f();
      var weight = 0.0;
      for (var s = 0u; s < uniforms.splits; s++) {
        let at = first + s * ${quads + 1}u;
        let state = load_parts(at + ${quads}u);
        let w = exp2(state.x - m);
        sum += w * load_parts(at + quad);
        weight += w * state.y;
      }
      let result = select(vec4f(), sum / max(weight, 1e-37), weight > 0.0);
      ${store}
      if (quad == 0u) {
        lse[base_lse() + row] = select(0xff800000u, bitcast<u32>((m + log2(max(weight, 1e-37))) * 0.6931471805599453), weight > 0.0);
      }
    }`;
  },
});

export function mergeInto(device: Device, parts: Tensor, splits: number, out: Tensor, lse: Tensor): void {
  const rows = lse.size;
  const valueDim = out.dim(-1);
  mergeParts.run(device, {
    spec: { valueDim },
    tensors: { parts, out, lse },
    uniforms: { rows, splits },
    grid: [Math.ceil((rows * Math.ceil(valueDim / 4)) / 64)],
  });
}
