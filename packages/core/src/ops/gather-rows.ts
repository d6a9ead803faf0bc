import type { DType } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous, type MoveSpec, moveText, moveWords } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

type RowsSpec = MoveSpec & { width: number };
const raw = ({ word }: RowsSpec): string | undefined => (word === '' ? undefined : word);

// out[i, :] = x[index[i], :]; an index beyond the last row reads the last one (never out of bounds).
// tile    a word of up to 16 bytes a lane where rows allow, else one or four elements; 256 lanes
// bytes   reads 4 a row and one element each, writes one element each
const rowGather = defineKernel({
  name: 'gather-table-rows',
  bindings: {
    x: read<RowsSpec>('any', { raw, width: (spec) => spec.width }),
    index: read<RowsSpec>('u32'),
    out: write<RowsSpec>('any', { raw, width: (spec) => spec.width }),
  },
  uniforms: { items: 'u32', rowItems: 'u32', rows: 'u32' },
  wgsl: (spec: RowsSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.items) { return; }
      let row = min(load_index(i / uniforms.rowItems), uniforms.rows - 1u);
      ${moveText(spec, 'i', 'row * uniforms.rowItems + i % uniforms.rowItems')}
    }`,
});

/** Rows of x [rows, ...row] by a u32 index of any shape: [...index shape, ...row]. */
export function gatherRowsOf(x: Tensor, index: Tensor, dtype: DType = x.dtype): Tensor {
  const rest = x.shape.slice(1);
  const out = empty(x.device, [...index.shape, ...rest], dtype);
  if (out.size === 0) return out;
  const row = rest.reduce((product, n) => product * n, 1);
  // rows of another dtype are converted on the way: by their elements
  const plain: { word: MoveSpec['word']; per: number } = { word: '', per: row % 4 === 0 ? 4 : 1 };
  const { word, per } = dtype === x.dtype ? moveWords(dtype, [row]) : plain;
  const spec = word === '' ? { word, width: per } : { word, width: 1 };
  const items = out.size / per;
  rowGather.run(x.device, {
    spec,
    tensors: { x: asContiguous(x, per), index: asContiguous(index, 1), out },
    uniforms: { items, rowItems: row / per, rows: x.dim(0) },
    grid: [Math.ceil(items / 256)],
  });
  return out;
}
