// Merges the parts of each query row: out = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s.
// tile    eight quads of a row x 32 slices of the parts a workgroup; slices are joined in order, in two rounds
// bytes   reads (valueDim + 4) x 4 a part, writes a row of valueDim and its logsumexp
// limits  valueDim up to 256; a row without weight gives zeros and minus infinity
// source  flash-decoding (Dao et al. 2023), reduction
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { unroll } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { ln2 } from './common.js';

type MergeSpec = { valueDim: number };

const lanes = 256;
/** Quads of a row that a workgroup takes: eight lie in one line of memory. */
const quadsAGroup = 8;
const slices = lanes / quadsAGroup;
/** Slices that a lane joins in the first of two rounds. */
const joined = 4;
/** Parts that a lane loads at once. */
const flight = 4;

const mergeParts = defineKernel({
  name: 'attention-decode-merge',
  bindings: {
    parts: read<MergeSpec>('f32', { width: 4 }),
    out: write<MergeSpec>('float', { width: ({ valueDim }) => (valueDim % 4 === 0 ? 4 : 1) }),
    lse: write<MergeSpec>('f32', { raw: 'u32' }),
  },
  uniforms: { rows: 'u32', splits: 'u32', one: 'u32' },
  wgsl: ({ valueDim }: MergeSpec) => {
    const quads = Math.ceil(valueDim / 4);
    const blocks = Math.ceil(quads / quadsAGroup);
    const store =
      valueDim % 4 === 0
        ? `store_out(row * ${quads}u + quad, result);`
        : [0, 1, 2, 3]
            .map((e) => `if (quad * 4u + ${e}u < ${valueDim}u) { store_out(row * ${valueDim}u + quad * 4u + ${e}u, result.${'xyzw'[e]}); }`)
            .join('\n');
    return `
    var<workgroup> sums: array<vec4f, ${lanes}>;
    // maximum and total weight
    var<workgroup> states: array<vec2f, ${lanes}>;
    struct Merged { sum: vec4f, top: f32, weight: f32 }
    fn join(a: Merged, sum: vec4f, state: vec2f) -> Merged {
      let top = max(a.top, state.x);
      let shrink = exp2(a.top - top);
      let share = exp2(state.x - top);
      return Merged(a.sum * shrink + sum * share, top, a.weight * shrink + state.y * share);
    }
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      let row = index / ${blocks}u;
      if (row >= uniforms.rows) { return; }
      let slice = lane / ${quadsAGroup}u;
      let quad = index % ${blocks}u * ${quadsAGroup}u + lane % ${quadsAGroup}u;
      let column = min(quad, ${quads - 1}u);
      let first = row * uniforms.splits * ${quads + 1}u;
      var all = Merged(vec4f(), NEG, 0.0);
      for (var s = slice; s < uniforms.splits; s += ${flight * slices}u) {
        // the loads of several parts wait together; a part past the end counts for nothing
        ${unroll(flight, (i) => `let at${i} = first + min(s + ${i * slices}u, uniforms.splits - 1u) * ${quads + 1}u; let state${i} = load_parts(at${i} + ${quads}u); let part${i} = load_parts(at${i} + column);`)}
        ${unroll(flight, (i) => `all = join(all, part${i}, select(vec2f(NEG, 0.0), state${i}.xy, s + ${i * slices}u < uniforms.splits));`)}
      }
      sums[lane] = all.sum;
      states[lane] = vec2f(all.top, all.weight);
      workgroupBarrier();
      if (slice < ${slices / joined}u) {
        for (var s = 1u; s < ${joined}u * uniforms.one; s++) { all = join(all, sums[lane + s * ${lanes / joined}u], states[lane + s * ${lanes / joined}u]); }
      }
      workgroupBarrier();
      sums[lane] = all.sum;
      states[lane] = vec2f(all.top, all.weight);
      workgroupBarrier();
      if (slice > 0u || quad >= ${quads}u) { return; }
      for (var s = 1u; s < ${slices / joined}u * uniforms.one; s++) { all = join(all, sums[lane + s * ${quadsAGroup}u], states[lane + s * ${quadsAGroup}u]); }
      let result = select(vec4f(), all.sum / max(all.weight, 1e-37), all.weight > 0.0);
      ${store}
      if (quad == 0u) {
        lse[base_lse() + row] = select(0xff800000u, bitcast<u32>((all.top + log2(max(all.weight, 1e-37))) * ${ln2}), all.weight > 0.0);
      }
    }`;
  },
});

/** Merges parts f32 [rows, splits, 4 (quads of valueDim + 1)] into `out` and `lse`. */
export function runDecodeMerge(device: Device, parts: Tensor, splits: number, out: Tensor, lse: Tensor): void {
  const valueDim = out.dim(-1);
  mergeParts.run(device, {
    spec: { valueDim },
    tensors: { parts, out, lse },
    uniforms: { rows: lse.size, splits, one: 1 },
    grid: [lse.size * Math.ceil(Math.ceil(valueDim / 4) / quadsAGroup)],
  });
}
