import { apply } from '../autodiff/tape.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

// Insertion points by binary search.
// tile    1 query a lane, 256 lanes
// bytes   reads 4 log2(n) dependent words a query, writes 4
const insertionPoints = defineKernel({
  name: 'search-sorted',
  bindings: { sorted: read('any'), queries: read('any'), out: write('u32') },
  uniforms: { size: 'u32', n: 'u32', m: 'u32', sortedStride: 'u32' },
  wgsl: ({ side }: { side: string }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let base = (i / uniforms.m) * uniforms.sortedStride;
      let wanted = load_queries(i);
      var low = 0u;
      var high = uniforms.n;
      while (low < high) {
        let middle = (low + high) >> 1u;
        if (load_sorted(base + middle) ${side === 'left' ? '<' : '<='} wanted) { low = middle + 1u; } else { high = middle; }
      }
      store_out(i, low);
    }`,
});

/**
 * Where each query would be inserted into sorted rows: for side `left` the count of elements below it, for `right` the
 * count of elements not above it.
 * @param sorted ascending along the last axis, [..., n], or [n] for all queries
 * @param queries [..., m], the dtype of sorted
 * @returns u32, the shape of queries
 */
export function searchSorted(sorted: Tensor, queries: Tensor, options: { side?: 'left' | 'right' } = {}): Tensor {
  if (sorted.dtype !== queries.dtype)
    throw new HeedError('DTYPE_MISMATCH', `searchSorted: sorted is ${sorted.dtype}, queries are ${queries.dtype}; cast one to the other`);
  const shared = sorted.rank === 1;
  const [n, m] = [sorted.dim(-1), queries.rank === 0 ? 1 : queries.dim(-1)];
  if (!shared && sorted.shape.slice(0, -1).join() !== queries.shape.slice(0, -1).join()) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `searchSorted: sorted ${sorted.describe()} and queries ${queries.describe()} differ in their outer axes; give one row of sorted a row of queries, or one row for all`,
    );
  }
  return apply({
    name: 'searchSorted',
    inputs: [sorted, queries],
    forward: () => {
      const out = empty(queries.device, queries.shape, 'u32');
      insertionPoints.run(queries.device, {
        spec: { side: options.side ?? 'left' },
        tensors: { sorted: asContiguous(sorted, 1), queries: asContiguous(queries, 1), out },
        uniforms: { size: queries.size, n, m, sortedStride: shared ? 0 : n },
        grid: [Math.ceil(queries.size / 256)],
      });
      return out;
    },
  });
}
