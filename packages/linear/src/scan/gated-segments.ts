// What joins the segments of a gated scan. First the log-decay of each segment.
// tile    1 channel of a segment a lane, 256 lanes
// bytes   reads 4 a token and channel, writes 4 a segment and channel
// limits  a gate under -1e4 counts as that, so that sums stay finite; a sum only ever becomes one exponential of the whole
import { empty, defineKernel, read, readWrite, write } from '@heed/core/~internal';
import type { Tensor } from '@heed/core';
import type { GatedSweep } from './gated-recurrent.js';
import { gateStrides } from './strides.js';
import { lengthOf, log2e, tokenOf } from './text.js';

interface TotalsSpec {
  [name: string]: boolean;
  lengths: boolean;
}

const totalsKernel = defineKernel({
  name: 'linear-gate-totals',
  bindings: { g: read<TotalsSpec>('f32'), lengths: read<TotalsSpec>('i32', { when: (s) => s.lengths }), totals: write<TotalsSpec>('f32') },
  uniforms: {
    ...gateStrides.uniforms,
    tokens: 'u32',
    tokensBefore: 'u32',
    heads: 'u32',
    segments: 'u32',
    segmentTokens: 'u32',
    channels: 'u32',
    size: 'u32',
    reverse: 'u32',
  },
  wgsl: (s: TotalsSpec) => `
    ${lengthOf(s.lengths)}
    ${tokenOf}
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let channel = i % uniforms.channels;
      let segment = (i / uniforms.channels) % uniforms.segments;
      let pair = i / uniforms.channels / uniforms.segments;
      let batch = pair / uniforms.heads;
      let length = lengthOf(batch);
      let first = min(segment * uniforms.segmentTokens, length);
      let end = min(first + uniforms.segmentTokens, length);
      let base = batch * uniforms.gBatch + (pair % uniforms.heads) * uniforms.gHead + channel;
      var sum = 0.0;
      for (var at = first; at < end; at++) { sum += max(load_g(base + tokenAt(at, length) * uniforms.gToken), -1e4); }
      store_totals(i, sum);
    }`,
});

interface ScanSpec {
  [name: string]: number | boolean;
  width: number;
  initial: boolean;
  final: boolean;
}

// Then the state before each segment, in place of what it adds: S <- exp(total) S + added.
// tile    1 item (4 elements or 1) of a state a lane, all segments in turn, 256 lanes
// bytes   reads and writes 4 an element of each segment's state
const scanKernel = defineKernel({
  name: 'linear-gated-segment-scan',
  bindings: {
    states: readWrite<ScanSpec>('f32', { width: (s) => s.width }),
    totals: read<ScanSpec>('f32'),
    initial: read<ScanSpec>('f32', { width: (s) => s.width, when: (s) => s.initial }),
    last: write<ScanSpec>('f32', { width: (s) => s.width, when: (s) => s.final }),
  },
  uniforms: { segments: 'u32', channels: 'u32', rowItems: 'u32', stateItems: 'u32', items: 'u32' },
  wgsl: (s: ScanSpec) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let own = workgroupIndex(group, groups) * 256u + lane;
      if (own >= uniforms.items) { return; }
      let pair = own / uniforms.stateItems;
      let item = own % uniforms.stateItems;
      // a gate a head has one channel for all rows
      let channel = min(item / uniforms.rowItems, uniforms.channels - 1u);
      var state = ${s.initial ? 'load_initial(own)' : s.width === 4 ? 'vec4f()' : '0.0'};
      for (var segment = 0u; segment < uniforms.segments; segment++) {
        let place = pair * uniforms.segments + segment;
        let at = place * uniforms.stateItems + item;
        let added = load_states(at);
        store_states(at, state);
        state = state * exp2(max(load_totals(place * uniforms.channels + channel), -1e4) * ${log2e}) + added;
      }
      ${s.final ? 'store_last(own, state);' : ''}
    }`,
});

/** The log-decay of each segment, f32 [batch, heads, segments, channels]. */
function gateTotals(sweep: GatedSweep, channels: number): Tensor {
  const { gate, lengths } = sweep;
  const totals = empty(gate.device, [sweep.batch, sweep.heads, sweep.segments, channels]);
  totalsKernel.run(gate.device, {
    spec: { lengths: lengths !== undefined },
    tensors: { g: gate, lengths, totals },
    uniforms: {
      tokens: sweep.tokens,
      tokensBefore: sweep.tokensBefore,
      heads: sweep.heads,
      segments: sweep.segments,
      segmentTokens: sweep.segmentTokens,
      channels,
      size: totals.size,
      reverse: sweep.reverse ? 1 : 0,
      ...gateStrides.values({ g: gate }),
    },
    grid: [Math.ceil(totals.size / 256)],
  });
  return totals;
}

/**
 * Records the scan over segments: `states`, f32 [batch, heads, segments, keyDim, valueDim], what each segment adds, become the
 * state before each segment.
 */
export function runGatedSegments(
  sweep: GatedSweep,
  {
    states,
    initial,
    final,
    totals,
  }: { states: Tensor; initial?: Tensor | undefined; final?: Tensor | undefined; totals?: Tensor | undefined },
): void {
  const [keyDim, valueDim] = [states.dim(3), states.dim(4)];
  const channels = sweep.gate.rank === 4 ? keyDim : 1;
  const width = valueDim % 4 === 0 ? 4 : 1;
  const stateItems = (keyDim * valueDim) / width;
  const items = sweep.batch * sweep.heads * stateItems;
  scanKernel.run(states.device, {
    spec: { width, initial: initial !== undefined, final: final !== undefined },
    tensors: { states, totals: totals ?? gateTotals(sweep, channels), initial, last: final },
    uniforms: { segments: sweep.segments, channels, rowItems: valueDim / width, stateItems, items },
    grid: [Math.ceil(items / 256)],
  });
}
