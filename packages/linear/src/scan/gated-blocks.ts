// A segment of S_t = diag(exp g_t) S_(t-1) + k_t v_t^T, out_t = q_t S_t, in blocks of four tokens with S in registers: inside a block
// products with running products of decays, between blocks the state.
// tile    keyDim x `columns` of S a workgroup: a lane holds `rows` x 4, `slabs` lanes side by side make a column; `tile` tokens are staged a step
// bytes   reads q, k, v, g once a column tile, writes out once; mode `states` reads k, v, g and writes one S a segment
// limits  slabs <= the least subgroup; decays are only ever multiplied together, so that none can overflow; 9 multiply-adds a state
//         element and four tokens (5 for states) in place of 12 (8)
// source  Yang et al. 2023 (arXiv 2312.06635), section 4; roles swapped (gates of columns) and time reversed for its backward
import type { Device } from '@heed/core';
import { defineKernel, type Operand, read, unroll, write } from '@heed/core/~internal';
import { blocksBody } from './gated-blocks-text.js';
import type { BlockTile } from './gated-plan.js';
import { gateStrides } from './strides.js';
import { sweepUniforms } from './sweep.js';
import { initialOf, lengthOf, log2e, segmentOf, sweptSegment, tokenOf, vectorLoad, vectorStore, zeroTail } from './text.js';

export interface BlocksSpec extends BlockTile {
  [name: string]: string | number | boolean;
  mode: 'states' | 'outputs';
  gate: 'head' | 'rows' | 'columns';
  /** What the gates of a head decay where it has one gate: as rows or as columns, whichever the roles are. */
  side: 'rows' | 'columns';
  reverse: boolean;
  keyDim: number;
  valueDim: number;
  qWidth: number;
  kWidth: number;
  vWidth: number;
  gWidth: number;
  outWidth: number;
  stateWidth: number;
  initial: 'none' | 'given';
  final: boolean;
  lengths: boolean;
}

const uniforms = { ...sweepUniforms, ...gateStrides.uniforms };

const kernel = defineKernel({
  name: 'linear-gated-blocks',
  bindings: {
    q: read<BlocksSpec>('float', { width: (s) => s.qWidth, when: (s) => s.mode === 'outputs' }),
    k: read<BlocksSpec>('float', { width: (s) => s.kWidth }),
    v: read<BlocksSpec>('float', { width: (s) => s.vWidth }),
    g: read<BlocksSpec>('f32', { width: (s) => s.gWidth }),
    lengths: read<BlocksSpec>('i32', { when: (s) => s.lengths }),
    initial: read<BlocksSpec>('f32', { when: (s) => s.initial === 'given' }),
    state: write<BlocksSpec>('f32', { width: (s) => s.stateWidth, when: (s) => s.final }),
    out: write<BlocksSpec>('float', { width: (s) => s.outWidth, when: (s) => s.mode === 'outputs' }),
  },
  uniforms,
  tier: 'subgroups',
  forms: ['baseline', 'subgroups'],
  wgsl: blocksText,
});

function blocksText(s: BlocksSpec): string {
  const groups = s.columns / 4;
  const lanes = groups * s.slabs;
  const outputs = s.mode === 'outputs';
  const four = [0, 1, 2, 3].map((c) => `initialAt(stateBase, row, columns + column * 4u + ${c}u)`).join(', ');
  const eachRow = (text: (r: number) => string): string => unroll(s.rows, (r) => `{ let row = slab * ${s.rows}u + ${r}u; ${text(r)} }`);
  return `
    ${outputs ? vectorLoad('q', s.qWidth, s.keyDim) : ''}
    ${vectorLoad('k', s.kWidth, s.keyDim)}
    ${vectorLoad('v', s.vWidth, s.valueDim)}
    ${s.gate === 'head' ? '' : vectorLoad('g', s.gWidth, s.gate === 'rows' ? s.keyDim : s.valueDim)}
    ${segmentOf}
    ${lengthOf(s.lengths)}
    ${tokenOf}
    ${s.initial === 'given' ? initialOf(s.keyDim, s.valueDim) : ''}
    ${s.final ? vectorStore('state', s.stateWidth, s.valueDim) : ''}
    ${outputs ? vectorStore('out', s.outWidth, s.valueDim) : ''}
    // 2^g - 1, by its series where g is small: a rounded factor close to 1 would be off by 1e-4 after 1,000 blocks
    fn lossOf(gate: vec4f) -> vec4f {
      let g = gate * 0.6931472;
      let series = g * fma(g, fma(g, fma(g, vec4f(0.041666667), vec4f(0.16666667)), vec4f(0.5)), vec4f(1.0));
      return select(exp2(gate) - 1.0, series, abs(g) < vec4f(0.03));
    }
    fn rate(gate: vec4f) -> vec4f { return max(gate, vec4f(-1e4)) * ${log2e}; }
    ${blocksBody(s).variables}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${sweptSegment(s.columns)}
      // bounds that compilers cannot see: some unroll such loops and take long for it
      let one = min(groups.x, 1u);
      // the lanes of a column lie side by side in a subgroup
      let slab = lane % ${s.slabs}u;
      let column = lane / ${s.slabs}u;
      let stateBase = ((batch * uniforms.heads + head) * uniforms.segments + place.z) * ${s.keyDim * s.valueDim}u;
      ${unroll(s.rows, (r) => `var s${r} = vec4f();`, ' ')}
      ${s.initial === 'given' ? eachRow((r) => `s${r} = vec4f(${four});`) : ''}
      for (var at = first; at < end; at += ${s.tile}u) {
        let tokens = min(${s.tile}u, end - at);
        let blocks = (tokens + 3u) / 4u;
        ${blocksBody(s).step}
      }
      ${s.final ? eachRow((r) => `if (row < ${s.keyDim}u) { vectorTo_state(stateBase + row * ${s.valueDim}u, columns + column * 4u, s${r}); }`) : ''}
      ${outputs && s.lengths ? zeroTail(s.columns, lanes) : ''}
    }`;
}

/** Records one dispatch. */
export function runBlocks(
  device: Device,
  run: {
    spec: BlocksSpec;
    tensors: { readonly [name in 'q' | 'k' | 'v' | 'g' | 'lengths' | 'initial' | 'state' | 'out']?: Operand | undefined };
    uniforms: { readonly [name in keyof typeof sweepUniforms | keyof typeof gateStrides.uniforms]: number };
    grid: readonly number[];
  },
): void {
  kernel.run(device, run);
}
