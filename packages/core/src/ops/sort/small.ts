import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type KeyKind, keyOf, orderedKeyModule } from './keys.js';

/** Longest row that one workgroup sorts in 16 KiB of workgroup memory. */
export const smallSortLength = 1024;

// Order of short rows, one workgroup a row: bitonic network over (key, index), so that equal keys keep their order.
// tile    1 row x 256 lanes, n rounded up to a power of two
// bytes   reads 4 n, writes 4 m a row; 8 n bytes of workgroup memory
// limits  n <= 1024
const sortRows = defineKernel({
  name: 'sort-rows-small',
  bindings: { x: read('any'), out: write('u32') },
  uniforms: { rows: 'u32', n: 'u32', m: 'u32', rowStride: 'u32' },
  modules: (spec: { length: number; kind: KeyKind; descending: boolean }) => [orderedKeyModule(spec.kind, spec.descending)],
  wgsl: ({ length, kind }) => `
    var<workgroup> keys: array<u32, ${length}>;
    var<workgroup> indices: array<u32, ${length}>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups);
      if (row >= uniforms.rows) { return; }
      for (var i = lane; i < ${length}u; i += 256u) {
        // past the end: the largest key, and an index above all real ones
        keys[i] = 0xffffffffu;
        if (i < uniforms.n) { keys[i] = ${keyOf(kind, 'row * uniforms.rowStride + i')}; }
        indices[i] = i;
      }
      for (var size = 2u; size <= ${length}u; size <<= 1u) {
        for (var step = size >> 1u; step > 0u; step >>= 1u) {
          workgroupBarrier();
          for (var pair = lane; pair < ${length / 2}u; pair += 256u) {
            let low = (pair / step) * 2u * step + pair % step;
            let high = low + step;
            let up = (low & size) == 0u;
            let a = keys[low]; let b = keys[high];
            let i = indices[low]; let j = indices[high];
            let greater = a > b || (a == b && i > j);
            if (greater == up) {
              keys[low] = b; keys[high] = a;
              indices[low] = j; indices[high] = i;
            }
          }
        }
      }
      workgroupBarrier();
      for (var i = lane; i < uniforms.m; i += 256u) { store_out(row * uniforms.m + i, indices[i]); }
    }`,
});

/** Indices of the first `m` of each row of x [rows, n] in order; n <= 1024. */
export function sortSmallRows(
  x: Tensor,
  kind: KeyKind,
  descending: boolean,
  rows: number,
  n: number,
  rowStride: number,
  out: Tensor,
): void {
  const length = Math.max(4, 2 ** Math.ceil(Math.log2(Math.max(1, n))));
  sortRows.run(x.device, {
    spec: { length, kind, descending },
    tensors: { x, out },
    uniforms: { rows, n, m: out.dim(-1), rowStride },
    grid: [rows],
  });
}
