// The states that segments add, to the state before each: H_0 = initial, H_(s+1) = lambda^n_s H_s + U_s, in place.
// tile    one lane an item (4 elements or 1) of a state, all segments in turn
// bytes   reads and writes each segment's state once
// limits  none; the loop over segments is serial, their loads are independent
import { defineKernel, type Operand, read, readWrite, write } from '@heed/core/~internal';
import type { Sweep } from './sweep.js';
import { lengthOf, rateOf } from './text.js';

interface SegmentScanSpec {
  [name: string]: number | boolean;
  width: number;
  initial: boolean;
  final: boolean;
  lengths: boolean;
}

const kernel = defineKernel({
  name: 'linear-segment-scan',
  bindings: {
    states: readWrite<SegmentScanSpec>('f32', { width: (s) => s.width }),
    decay: read<SegmentScanSpec>('f32'),
    lengths: read<SegmentScanSpec>('i32', { when: (s) => s.lengths }),
    initial: read<SegmentScanSpec>('f32', { width: (s) => s.width, when: (s) => s.initial }),
    last: write<SegmentScanSpec>('f32', { width: (s) => s.width, when: (s) => s.final }),
  },
  uniforms: {
    tokens: 'u32',
    tokensBefore: 'u32',
    heads: 'u32',
    segments: 'u32',
    segmentTokens: 'u32',
    size: 'u32',
    groupsPerHead: 'u32',
    workgroups: 'u32',
  },
  wgsl: (s: SegmentScanSpec) => `
    ${lengthOf(s.lengths)}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let pair = index / uniforms.groupsPerHead;
      let element = ((index % uniforms.groupsPerHead) * 256u + lane) * ${s.width}u;
      if (element >= uniforms.size) { return; }
      let length = lengthOf(pair / uniforms.heads);
      let rate = ${rateOf('pair % uniforms.heads')};
      let whole = exp2(rate * f32(uniforms.segmentTokens));
      let own = (pair * uniforms.size + element) / ${s.width}u;
      var state = ${s.initial ? 'load_initial(own)' : s.width === 4 ? 'vec4f()' : '0.0'};
      var at = (pair * uniforms.segments * uniforms.size + element) / ${s.width}u;
      for (var segment = 0u; segment < uniforms.segments; segment++) {
        let added = load_states(at);
        store_states(at, state);
        let first = min(segment * uniforms.segmentTokens, length);
        let count = min(uniforms.segmentTokens, length - first);
        let factor = select(exp2(rate * f32(count)), whole, count == uniforms.segmentTokens);
        state = state * factor + added;
        at += uniforms.size / ${s.width}u;
      }
      ${s.final ? 'store_last(own, state);' : ''}
    }`,
});

/** Records the scan over segments: `states`, of `size` elements each, become the state before each segment. */
export function runSegmentScan(
  sweep: Sweep,
  size: number,
  tensors: { states: Operand; initial?: Operand | undefined; final?: Operand | undefined },
): void {
  const width = size % 4 === 0 ? 4 : 1;
  const groupsPerHead = Math.ceil(size / width / 256);
  const workgroups = groupsPerHead * sweep.batch * sweep.heads;
  kernel.run(sweep.decay.device, {
    spec: { width, initial: tensors.initial !== undefined, final: tensors.final !== undefined, lengths: sweep.lengths !== undefined },
    tensors: { states: tensors.states, initial: tensors.initial, last: tensors.final, decay: sweep.decay, lengths: sweep.lengths },
    uniforms: {
      tokens: sweep.tokens,
      tokensBefore: sweep.tokensBefore,
      heads: sweep.heads,
      segments: sweep.segments,
      segmentTokens: sweep.segmentTokens,
      size,
      groupsPerHead,
      workgroups,
    },
    grid: [workgroups],
  });
}
