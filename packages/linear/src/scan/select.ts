// Rows of a state by index: out[n] = state[batch[n]].
// tile    4 elements a lane where rows allow, 256 lanes
// bytes   reads and writes each kept state once
// limits  an index beyond the batch gives zeros
import type { Tensor } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';

interface SelectSpec {
  [name: string]: number;
  width: number;
}

const kernel = defineKernel({
  name: 'linear-select-states',
  bindings: {
    state: read<SelectSpec>('f32', { width: (s) => s.width }),
    batch: read<SelectSpec>('u32'),
    out: write<SelectSpec>('f32', { width: (s) => s.width }),
  },
  uniforms: { rowItems: 'u32', items: 'u32', rows: 'u32' },
  wgsl: (s: SelectSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = load_batch(i / uniforms.rowItems);
      var value = ${s.width === 4 ? 'vec4f()' : '0.0'};
      if (row < uniforms.rows) { value = load_state(row * uniforms.rowItems + i % uniforms.rowItems); }
      store_out(i, value);
    }`,
});

/** The batch entries `batch`, u32 [n], of a contiguous f32 state [batch, ...], in that order. */
export function selectStates(state: Tensor, batch: Tensor): Tensor {
  const out = empty(state.device, [batch.size, ...state.shape.slice(1)]);
  const perRow = state.size / Math.max(1, state.dim(0));
  const width = perRow % 4 === 0 ? 4 : 1;
  const items = out.size / width;
  kernel.run(state.device, {
    spec: { width },
    tensors: { state, batch, out },
    uniforms: { rowItems: perRow / width, items, rows: state.dim(0) },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}
