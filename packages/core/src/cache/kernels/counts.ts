// Counts of a cache on the device: tokens seen, tokens of the last append, stored rows a head.
// tile    1 head of a batch entry a lane, 64 lanes
// bytes   reads 8 a head (where entries differ and 4 more) and 8 an entry, writes 4 a head and 8 an entry
// limits  counts never fall below 0, stored rows never grow beyond what a head retains
import { read, readWrite } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Device } from '../../device/device.js';
import type { Tensor } from '../../tensor/tensor.js';

const bump = defineKernel({
  name: 'kv-counts',
  bindings: {
    counts: readWrite<{ ragged: boolean }>('i32'),
    retained: read<{ ragged: boolean }>('u32'),
    lengths: read<{ ragged: boolean }>('i32', { when: ({ ragged }) => ragged }),
  },
  uniforms: { batch: 'u32', maxBatch: 'u32', kvHeads: 'u32', tokens: 'i32', offset: 'i32' },
  wgsl: ({ ragged }: { ragged: boolean }) => `
    // lane 0 of each entry counts its tokens; a head stores what it may retain of them
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let at = group.x * 64u + lane;
      if (at >= uniforms.batch * uniforms.kvHeads) { return; }
      let b = at / uniforms.kvHeads;
      let head = at % uniforms.kvHeads;
      let more = ${ragged ? 'clamp(load_lengths(b) - uniforms.offset, 0i, uniforms.tokens)' : 'uniforms.tokens'};
      let place = 2u * uniforms.maxBatch + at;
      store_counts(place, clamp(load_counts(place) + more, 0i, i32(load_retained(head))));
      if (head == 0u) {
        store_counts(b, max(load_counts(b) + more, 0i));
        let earlier = select(load_counts(uniforms.maxBatch + b), 0i, uniforms.offset == 0i);
        store_counts(uniforms.maxBatch + b, max(earlier + more, 0i));
      }
    }`,
});

/** Adds the tokens of a piece (of which `lengths` tells the valid ones), or takes -tokens back. */
export function addTokens(
  device: Device,
  counts: Tensor,
  retained: Tensor,
  sizes: { batch: number; maxBatch: number; kvHeads: number },
  { tokens, offset, lengths }: { tokens: number; offset: number; lengths?: Tensor | undefined },
): void {
  bump.run(device, {
    spec: { ragged: lengths !== undefined },
    tensors: { counts, retained, lengths },
    uniforms: { tokens, offset, ...sizes },
    grid: [Math.ceil((sizes.batch * sizes.kvHeads) / 64)],
  });
}
