import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';

// Workgroup counts of an indirect dispatch from a count on the device, clamped and folded into y where x has no room.
// tile    1 lane
// bytes   reads 4, writes 12
// limits  `most` items fit a folded grid (checked before the dispatch)
const gridOfCount = defineKernel({
  name: 'indirect-grid',
  bindings: { count: read('u32'), out: write('u32') },
  uniforms: { perWorkgroup: 'u32', most: 'u32', widest: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(1)
    fn main() {
      let items = min(load_count(0u), uniforms.most);
      let workgroups = (items + uniforms.perWorkgroup - 1u) / uniforms.perWorkgroup;
      let rows = (workgroups + uniforms.widest - 1u) / uniforms.widest;
      store_out(0u, (workgroups + max(rows, 1u) - 1u) / max(rows, 1u));
      store_out(1u, max(rows, 1u));
      store_out(2u, 1u);
    }`,
});

/**
 * The grid of an indirect dispatch over `count` items: u32 [3], for `grid: { indirect }` of a kernel that finds its index
 * by `workgroupIndex(group, groups)`. Counts made on the device are never trusted: more than `most` is cut to it.
 * @param count u32 [1], written by an earlier dispatch
 * @param options.perWorkgroup items that one workgroup covers
 * @param options.most items that the outputs have room for
 */
export function indirectGrid(count: Tensor, options: { perWorkgroup: number; most: number }): Tensor {
  if (count.dtype !== 'u32' || count.size !== 1)
    throw new HeedError('SHAPE_MISMATCH', `indirectGrid: count is ${count.describe()}; it must be one u32`);
  const widest = count.device.limits.maxComputeWorkgroupsPerDimension;
  if (Math.ceil(options.most / options.perWorkgroup) > widest * widest)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `indirectGrid: ${options.most} items at ${options.perWorkgroup} a workgroup need more than ${widest} x ${widest} workgroups; raise perWorkgroup`,
    );
  const out = empty(count.device, [3], 'u32');
  gridOfCount.run(count.device, {
    spec: {},
    tensors: { count, out },
    uniforms: { perWorkgroup: options.perWorkgroup, most: options.most, widest },
    grid: [1],
  });
  return out;
}
