// What the cotangent of an output is multiplied by, and what the normaliser's column gets: 1 / Z and -(dOut . out) / Z; without a
// normaliser 1 and 0; zeros behind the length of a batch entry.
// tile    16 lanes a token and head, 256 lanes; their sums meet in workgroup memory
// bytes   reads out and dOut once, writes 8 a token and head
// limits  none
import type { Tensor } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';
import { rowStrides } from '../../scan/strides.js';
import { rowWidth } from '../../scan/views.js';

interface WeightsSpec {
  [name: string]: boolean | number;
  normalise: boolean;
  lengths: boolean;
  /** Elements that a lane takes at once. */
  width: number;
}

const strides = /* @__PURE__ */ rowStrides('d');

const kernel = defineKernel({
  name: 'based-weights',
  bindings: {
    out: read<WeightsSpec>('float', { width: (s) => s.width, when: (s) => s.normalise }),
    d: read<WeightsSpec>('float', { width: (s) => s.width, when: (s) => s.normalise }),
    norm: read<WeightsSpec>('f32', { when: (s) => s.normalise }),
    lengths: read<WeightsSpec>('i32', { when: (s) => s.lengths }),
    weights: write<WeightsSpec>('f32'),
  },
  uniforms: { ...strides.uniforms, tokens: 'u32', heads: 'u32', rows: 'u32', valueDim: 'u32' },
  wgsl: (s: WeightsSpec) => `
    var<workgroup> sums: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups) * 16u + lane / 16u;
      let token = row / uniforms.heads % uniforms.tokens;
      let batch = row / (uniforms.heads * uniforms.tokens);
      ${
        s.normalise
          ? `
      var sum = 0.0;
      if (row < uniforms.rows) {
        let base = batch * uniforms.dBatch + token * uniforms.dToken + row % uniforms.heads * uniforms.dHead;
        for (var at = lane % 16u * ${s.width}u; at < uniforms.valueDim; at += ${16 * s.width}u) {
          sum += ${
            s.width === 4
              ? 'dot(load_d((base + at) / 4u), load_out((row * uniforms.valueDim + at) / 4u))'
              : 'load_d(base + at) * load_out(row * uniforms.valueDim + at)'
          };
        }
      }
      sums[lane] = sum;
      workgroupBarrier();`
          : ''
      }
      if (row >= uniforms.rows || lane % 16u != 0u) { return; }
      var weights = vec2f(1.0, 0.0);
      ${
        s.normalise
          ? `
      var dot = 0.0;
      for (var i = 0u; i < 16u; i++) { dot += sums[lane + i]; }
      weights = vec2f(1.0, -dot) / load_norm(row);`
          : ''
      }
      ${s.lengths ? 'if (i32(token) >= load_lengths(batch)) { weights = vec2f(); }' : ''}
      store_weights(2u * row, weights.x);
      store_weights(2u * row + 1u, weights.y);
    }`,
});

/**
 * Weights of a cotangent d [batch, tokens, heads, valueDim], f32 [batch, tokens, heads, 2].
 * @param out contiguous, as the forward pass gave it
 * @param norm f32 [batch, tokens, heads]; absent: no normaliser
 */
export function cotangentWeights(d: Tensor, out: Tensor, norm: Tensor | undefined, lengths: Tensor | undefined): Tensor {
  const [batch, tokens, heads, valueDim] = d.shape as [number, number, number, number];
  const weights = empty(d.device, [batch, tokens, heads, 2]);
  const rows = batch * tokens * heads;
  kernel.run(d.device, {
    spec: { normalise: norm !== undefined, lengths: lengths !== undefined, width: Math.min(rowWidth(d), rowWidth(out)) },
    tensors: { out, d, norm, lengths, weights },
    uniforms: { tokens, heads, rows, valueDim, ...strides.values({ d }) },
    grid: [Math.ceil(rows / 16)],
  });
  return weights;
}
