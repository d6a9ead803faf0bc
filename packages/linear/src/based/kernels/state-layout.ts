// A state between the compressed order 1, x_i, x_i x_j (i <= j) and the official one 1, x_i, vec(x x^T) / sqrt 2.
// tile    one element a lane, 256 lanes
// bytes   reads and writes each state once, off-diagonal entries of the official order twice
// limits  compressing keeps the symmetric part, the only one that a state of phi has
import type { Tensor } from '@heed/core';
import { asContiguous, defineKernel, empty, read, wgslFloat, write } from '@heed/core/~internal';
import { fullFeatures, symmetricFeatures } from '../layout.js';

interface LayoutSpec {
  [name: string]: boolean;
  expand: boolean;
}

const half = wgslFloat(Math.SQRT1_2);

const kernel = defineKernel({
  name: 'based-state-layout',
  bindings: { state: read('f32'), out: write('f32') },
  uniforms: { featureDim: 'u32', features: 'u32', others: 'u32', columns: 'u32', size: 'u32' },
  wgsl: ({ expand }: LayoutSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let e = workgroupIndex(group, groups) * 256u + lane;
      if (e >= uniforms.size) { return; }
      let f = uniforms.featureDim;
      let column = e % uniforms.columns;
      let feature = e / uniforms.columns % uniforms.features;
      let first = e / uniforms.columns / uniforms.features * uniforms.others;
      if (feature <= f) { store_out(e, load_state((first + feature) * uniforms.columns + column)); return; }
      let second = feature - f - 1u;
      ${
        expand
          ? `
      let i = min(second / f, second % f);
      let j = max(second / f, second % f);
      let value = load_state((first + 1u + f + (i * (2u * f - 1u - i)) / 2u + j) * uniforms.columns + column);
      store_out(e, value * select(${half}, 1.0, i == j));`
          : `
      var i = 0u;
      var rest = second;
      loop {
        if (rest < f - i) { break; }
        rest -= f - i;
        i++;
      }
      let j = i + rest;
      let upper = load_state((first + 1u + f + i * f + j) * uniforms.columns + column);
      let lower = load_state((first + 1u + f + j * f + i) * uniforms.columns + column);
      store_out(e, select((upper + lower) * ${half}, upper, i == j));`
      }
    }`,
});

function converted(state: Tensor, featureDim: number, expand: boolean): Tensor {
  const [to, source] = expand
    ? [fullFeatures(featureDim), symmetricFeatures(featureDim)]
    : [symmetricFeatures(featureDim), fullFeatures(featureDim)];
  const out = empty(state.device, [state.dim(0), state.dim(1), to, ...state.shape.slice(3)]);
  if (out.size === 0) return out;
  kernel.run(state.device, {
    spec: { expand },
    tensors: { state: asContiguous(state), out },
    uniforms: { featureDim, features: to, others: source, columns: state.shape[3] ?? 1, size: out.size },
    grid: [Math.ceil(out.size / 256)],
  });
  return out;
}

/** [batch, heads, features, ...] from the compressed to the official order. */
export function expandState(state: Tensor, featureDim: number): Tensor {
  return converted(state, featureDim, true);
}

/** [batch, heads, features, ...] from the official to the compressed order. */
export function compressState(state: Tensor, featureDim: number): Tensor {
  return converted(state, featureDim, false);
}
