import type { Tensor } from '@heed/core';
import { defineKernel, range, read, write } from '@heed/core/~internal';
import { codeModule, curveUniforms } from './codes.js';
import { type SearchUniforms, searchUniforms } from './search.js';

/** Pairs that a lane looks at before it gives up, a token of its window: data in no order needs fewer than 2. */
const patience = 4;

type SweepSpec = { keyDim: number };

// The window of each query, as `searchWindows` makes it, from one run: the shortest that begins with the first key and holds all
// that the query may see. More than half of it is seen, so a walk that leaves out later tokens passes few of them; where codes
// follow time and it passes many, the tile is marked and searched run by run.
// tile    32 queries, 64 lanes: one looks down, one up from the insertion point, four pairs at a time
// bytes   reads 8 log2(n) + 12 W or so, writes 4 W a query
const sweepRuns = defineKernel({
  name: 'zeta-sweep',
  bindings: {
    q: read('f32', { width: 4 }),
    pairs: read('u32', { raw: 'vec2u' }),
    windows: write('u32'),
    marks: write('u32'),
  },
  uniforms: { ...searchUniforms, steps: 'u32', ...curveUniforms },
  modules: ({ keyDim }: SweepSpec) => [codeModule(keyDim)],
  wgsl: () => `
    const NONE = 0xffffffffu;
    // tokens found below and above, after the first walk and after the second
    var<workgroup> counts: array<u32, 128>;
    var<workgroup> given: array<u32, 4>;
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let tiles = (uniforms.queries + 31u) / 32u;
      let g = workgroupIndex(group, groups);
      if (g >= uniforms.rows * tiles) { return; }
      let r = g / tiles;
      let query = (g % tiles) * 32u + (lane & 31u);
      let inside = query < uniforms.queries;
      let down = lane < 32u;
      if (lane < 4u) { given[lane] = 0u; }
      var seen = 0u;
      if (inside) { seen = select((uniforms.firstQuery + query) / uniforms.chunk * uniforms.chunk, uniforms.keys, uniforms.causal == 0u); }
      let blocks = (seen + uniforms.block - 1u) / uniforms.block;
      var level = 0u;
      if (blocks > 1u) { level = firstLeadingBit(blocks - 1u) + 1u; }
      let run = base_pairs() + ((uniforms.curveRow + r) * uniforms.levels + level) * uniforms.capacity;
      let length = select(0u, min(uniforms.block << level, uniforms.keys), seen > 0u);
      var low = 0u;
      if (inside) {
        let code = codeOf(load_q(r * uniforms.queries + query));
        var high = length;
        while (low < high) {
          let middle = (low + high) >> 1u;
          if (pairs[run + middle].x < code) { low = middle + 1u; } else { high = middle; }
        }
      }
      // lists grow from both ends
      let list = ((r * tiles + query / 32u) * uniforms.slots + uniforms.firstSlot) * 32u + (lane & 31u);
      let half = uniforms.window / 2u;
      var wanted = select(uniforms.window - half, half, down);
      let there = select(length - low, low, down);
      var found = 0u;
      var passed = 0u;
      for (var turn = 0u; turn < 2u; turn++) {
        while (found < wanted && passed < min(there, uniforms.steps)) {
          let left = there - passed;
          let at = run + select(low + passed, low - passed - 1u, down);
          ${range(4)
            .map((n) => `var token${n} = NONE; if (left > ${n}u) { token${n} = pairs[select(at + ${n}u, at - ${n}u, down)].y; }`)
            .join('\n')}
          ${range(4)
            .map(
              (n) => `if (left > ${n}u && found < wanted) {
            passed++;
            if (token${n} < seen) {
              store_windows(list + select(uniforms.window - 1u - found, found, down) * 32u, token${n});
              found++;
            }
          }`,
            )
            .join('\n')}
        }
        counts[turn * 64u + lane] = found;
        workgroupBarrier();
        // where one side ends, the other gives what is missing: wrong only after a walk that gave up, which marks the tile
        if (turn == 0u) {
          if (found < wanted && passed < there) { given[0] = 1u; }
          let other = counts[lane ^ 32u];
          let otherWanted = uniforms.window - wanted;
          wanted += otherWanted - min(otherWanted, other);
        }
      }
      if (found < wanted && passed < there) { given[0] = 1u; }
      if (inside && down) {
        let above = counts[64u + (lane ^ 32u)];
        for (var place = found; place + above < uniforms.window; place++) { store_windows(list + place * 32u, NONE); }
      }
      workgroupBarrier();
      if (lane == 0u) { store_marks(g, given[0]); }
    }`,
});

/** Runs it; the tensors and uniforms are those of `searchWindows`, `marks` u32 [rows tiles] receives 1 for tiles that gave up. */
export function sweep(
  tensors: { q: Tensor; pairs: Tensor; windows: Tensor; marks: Tensor },
  uniforms: SearchUniforms,
  keyDim: number,
): void {
  sweepRuns.run(tensors.q.device, {
    spec: { keyDim },
    tensors,
    uniforms: { ...uniforms, steps: patience * uniforms.window },
    grid: [tensors.marks.size],
  });
}
