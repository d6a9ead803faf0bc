import type { DType } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

// out[i, :] = x[index[i], :]; an index beyond the last row reads the last one (never out of bounds).
// tile    4 elements a lane where rows allow, 256 lanes
// bytes   reads 4 a row and one element each, writes one element each
const rowGather = defineKernel({
  name: 'gather-table-rows',
  bindings: {
    x: read('any', { width: (spec: { width: number }) => spec.width }),
    index: read('u32'),
    out: write('any', { width: (spec: { width: number }) => spec.width }),
  },
  uniforms: { items: 'u32', rowItems: 'u32', rows: 'u32' },
  wgsl: (_: { width: number }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = min(load_index(i / uniforms.rowItems), uniforms.rows - 1u);
      store_out(i, load_x(row * uniforms.rowItems + i % uniforms.rowItems));
    }`,
});

/** Rows of x [rows, ...row] by a u32 index of any shape: [...index shape, ...row]. */
export function gatherRowsOf(x: Tensor, index: Tensor, dtype: DType = x.dtype): Tensor {
  const rest = x.shape.slice(1);
  const out = empty(x.device, [...index.shape, ...rest], dtype);
  if (out.size === 0) return out;
  const row = rest.reduce((product, n) => product * n, 1);
  const width = row % 4 === 0 ? 4 : 1;
  const items = out.size / width;
  rowGather.run(x.device, {
    spec: { width },
    tensors: { x: asContiguous(x), index: asContiguous(index, 1), out },
    uniforms: { items, rowItems: row / width, rows: x.dim(0) },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}
