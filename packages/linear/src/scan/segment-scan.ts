// The states that segments add, to the state before each: H_0 = initial, H_(s+1) = lambda^n_s H_s + U_s; in place, or from
// `added`, where each segment added several states.
// tile    one lane an item (4 elements or 1) of a state, all segments in turn
// bytes   reads and writes each segment's state once
// limits  none; the loop over segments is serial, their loads are independent
import type { Tensor } from '@heed/core';
import { defineKernel, type Operand, range, read, readWrite, write } from '@heed/core/~internal';
import type { Sweep } from './sweep.js';
import { aliveOf, lengthOf, rateOf, shareOf } from './text.js';

/** Segments whose states are loaded before the first of them is written. */
const ahead = 8;

interface SegmentScanSpec {
  [name: string]: number | boolean;
  width: number;
  initial: boolean;
  final: boolean;
  lengths: boolean;
  parts: boolean;
}

const kernel = defineKernel({
  name: 'linear-segment-scan',
  bindings: {
    states: readWrite<SegmentScanSpec>('f32', { width: (s) => s.width }),
    added: read<SegmentScanSpec>('f32', { width: (s) => s.width, when: (s) => s.parts }),
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
    parts: 'u32',
    partStep: 'u32',
    partItems: 'u32',
    groupsPerHead: 'u32',
    workgroups: 'u32',
  },
  wgsl: (s: SegmentScanSpec) => {
    const zero = s.width === 4 ? 'vec4f()' : '0.0';
    return `
    ${lengthOf(s.lengths)}
    ${s.parts ? `${aliveOf} ${shareOf} fn partsOf(alive: u32) -> u32 { return select(0u, (alive + shareOf(alive) - 1u) / max(shareOf(alive), 1u), alive > 0u); }` : ''}
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
      var state = ${s.initial ? 'load_initial(own)' : zero};
      ${s.parts ? 'let alive = aliveOf(rate);' : ''}
      let stride = uniforms.size / ${s.width}u;
      let at = (pair * uniforms.segments * uniforms.size + element) / ${s.width}u;
      // some segments and two parts at a time: their loads are independent
      for (var begin = 0u; begin < uniforms.segments; begin += ${ahead}u) {
        ${range(ahead)
          .map((i) =>
            s.parts
              ? `
        let count${i} = min(uniforms.segmentTokens, length - min((begin + ${i}u) * uniforms.segmentTokens, length));
        let parts${i} = partsOf(min(count${i}, alive));
        var added${i} = ${zero};`
              : `
        let count${i} = min(uniforms.segmentTokens, length - min((begin + ${i}u) * uniforms.segmentTokens, length));
        let added${i} = load_states(at + min(begin + ${i}u, uniforms.segments - 1u) * stride);`,
          )
          .join('')}
        ${
          s.parts
            ? `
        for (var part = 0u; part < uniforms.parts; part += 2u) {
          let ownFirst = at + begin * stride + part * uniforms.partItems;
          ${range(ahead)
            .map(
              (i) => `
          if (part < parts${i}) { added${i} += load_added(ownFirst + ${i}u * stride); }
          if (part + 1u < parts${i}) { added${i} += load_added(ownFirst + ${i}u * stride + uniforms.partItems); }`,
            )
            .join('\n')}
        }`
            : ''
        }
        ${range(ahead)
          .map(
            (i) => `
        if (begin + ${i}u < uniforms.segments) {
          store_states(at + (begin + ${i}u) * stride, state);
          state = state * select(exp2(rate * f32(count${i})), whole, count${i} == uniforms.segmentTokens) + added${i};
        }`,
          )
          .join('')}
      }
      ${s.final ? 'store_last(own, state);' : ''}
    }`;
  },
});

/**
 * Records the scan over segments: `states`, of `size` elements each, become the state before each segment.
 * @param tensors.added [parts, batch, heads, segments, ..]: what segments add, instead of what `states` hold
 * @param tensors.partStep parts are multiples of so many tokens
 */
export function runSegmentScan(
  sweep: Sweep,
  size: number,
  tensors: {
    states: Operand;
    added?: Tensor | undefined;
    partStep?: number | undefined;
    initial?: Operand | undefined;
    final?: Operand | undefined;
  },
): void {
  const width = size % 4 === 0 ? 4 : 1;
  const { states, added, partStep = 1, initial, final } = tensors;
  const groupsPerHead = Math.ceil(size / width / 256);
  const workgroups = groupsPerHead * sweep.batch * sweep.heads;
  kernel.run(sweep.decay.device, {
    spec: {
      width,
      initial: initial !== undefined,
      final: final !== undefined,
      lengths: sweep.lengths !== undefined,
      parts: added !== undefined,
    },
    tensors: { states, added, initial, last: final, decay: sweep.decay, lengths: sweep.lengths },
    uniforms: {
      tokens: sweep.tokens,
      tokensBefore: sweep.tokensBefore,
      heads: sweep.heads,
      segments: sweep.segments,
      segmentTokens: sweep.segmentTokens,
      size,
      parts: added?.dim(0) ?? 1,
      partStep,
      partItems: (sweep.batch * sweep.heads * sweep.segments * size) / width,
      groupsPerHead,
      workgroups,
    },
    grid: [workgroups],
  });
}
