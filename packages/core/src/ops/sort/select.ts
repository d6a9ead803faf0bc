import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { type KeyKind, keyOf, orderedKeyModule } from './keys.js';

// Indices of the m first elements in order of each row, themselves ascending: radix select by 8-bit digits, then compaction.
// Of elements equal to the last one kept, those of lower index stay.
// tile    1 row x 256 lanes
// bytes   reads 5 x 4 n, writes 4 m a row
// limits  m <= n
// source  Alabi et al. 2012 (radix select)
const selectRows = defineKernel({
  name: 'select-rows',
  bindings: { x: read('any'), out: write('u32') },
  uniforms: { rows: 'u32', n: 'u32', m: 'u32' },
  modules: (spec: { kind: KeyKind; descending: boolean }) => [orderedKeyModule(spec.kind, spec.descending)],
  wgsl: ({ kind }) => `
    var<workgroup> bins: array<atomic<u32>, 256>;
    var<workgroup> found: vec4u;
    var<workgroup> sums: array<u32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups);
      if (row >= uniforms.rows) { return; }
      let base = row * uniforms.n;
      var prefix = 0u;
      var fixedBits = 0u;
      var wanted = uniforms.m;
      for (var digit = 0u; digit < 4u; digit++) {
        let shift = 24u - digit * 8u;
        atomicStore(&bins[lane], 0u);
        workgroupBarrier();
        for (var i = lane; i < uniforms.n; i += 256u) {
          let key = ${keyOf(kind, 'base + i')};
          if ((key & fixedBits) == prefix) { atomicAdd(&bins[(key >> shift) & 255u], 1u); }
        }
        workgroupBarrier();
        if (lane == 0u) {
          var before = 0u;
          var bin = 0u;
          for (; bin < 255u; bin++) {
            let count = atomicLoad(&bins[bin]);
            if (before + count >= wanted) { break; }
            before += count;
          }
          found = vec4u(bin, before, 0u, 0u);
        }
        let f = workgroupUniformLoad(&found);
        prefix |= f.x << shift;
        fixedBits |= 255u << shift;
        wanted -= f.y;
        workgroupBarrier();
      }
      // prefix is the last key kept, wanted how many equal to it stay
      var written = 0u;
      var equalBefore = 0u;
      for (var start = 0u; start < uniforms.n; start += 256u) {
        let i = start + lane;
        var flags = 0u;
        if (i < uniforms.n) {
          let key = ${keyOf(kind, 'base + i')};
          flags = select(0u, 1u, key < prefix) | select(0u, 0x10000u, key == prefix);
        }
        sums[lane] = flags;
        workgroupBarrier();
        for (var step = 1u; step < 256u; step <<= 1u) {
          var left = 0u;
          if (lane >= step) { left = sums[lane - step]; }
          workgroupBarrier();
          sums[lane] += left;
          workgroupBarrier();
        }
        let before = sums[lane] - flags;
        let equals = equalBefore + (before >> 16u);
        let equalKept = min(equals, wanted);
        if ((flags & 0xffffu) != 0u || (flags != 0u && equals < wanted)) {
          store_out(row * uniforms.m + written + (before & 0xffffu) + equalKept - min(equalBefore, wanted), i);
        }
        let total = sums[255];
        written += (total & 0xffffu) + min(equalBefore + (total >> 16u), wanted) - min(equalBefore, wanted);
        equalBefore += total >> 16u;
        workgroupBarrier();
      }
    }`,
});

/** Ascending indices [rows, m] of the m first elements in order of contiguous rows x [rows, n]. */
export function selectFirst(x: Tensor, kind: KeyKind, descending: boolean, rows: number, n: number, out: Tensor): void {
  selectRows.run(x.device, { spec: { kind, descending }, tensors: { x, out }, uniforms: { rows, n, m: out.dim(-1) }, grid: [rows] });
}
