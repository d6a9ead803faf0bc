// A segment of the recurrence S_t = lambda S_(t-1) + k_t v_t^T, out_t = q_t S_t, token by token with S in registers.
// tile    keyDim x `columns` of S a workgroup: a lane holds `rows` x 4; `tile` tokens of q, k, v are staged a step
// bytes   reads q, k, v once a column tile, writes out once; mode `states` reads k, v and writes one S a segment
// limits  keyDim <= 1024; three multiply-adds a state element and token, so no chunk of scores and no matrix product
// source  Qin et al. 2024 (arXiv 2401.04658), section 3; roles are swapped and time reversed for its backward
import type { Tensor, Tier } from '@heed/core';
import { defineKernel, read, readWrite, unroll, write } from '@heed/core/~internal';
import type { RecurrentTile } from './plan.js';
import { type Sweep, sweepUniforms, sweepValues } from './sweep.js';
import {
  aliveFrom,
  aliveOf,
  initialOf,
  lengthOf,
  rateOf,
  segmentOf,
  sweptSegment,
  tokenOf,
  vectorLoad,
  vectorStore,
  zeroTail,
} from './text.js';
import { rowWidth } from './views.js';

/** `states`: only the state that each segment adds; `outputs`: the outputs of each segment. */
type Mode = 'states' | 'outputs';

interface RecurrentSpec extends RecurrentTile {
  [name: string]: string | number | boolean;
  mode: Mode;
  keyDim: number;
  valueDim: number;
  qWidth: number;
  kWidth: number;
  vWidth: number;
  outWidth: number;
  stateWidth: number;
  /** State before a segment: zeros, the binding `initial`, or the binding `state` that is also written at the end. */
  initial: 'none' | 'given' | 'inPlace';
  /** Writes the state after a segment. */
  final: boolean;
  lengths: boolean;
}

const kernelWith = (forms: readonly Tier[]) =>
  defineKernel({
    name: 'linear-recurrent',
    bindings: {
      q: read<RecurrentSpec>('float', { width: (s) => s.qWidth, when: (s) => s.mode === 'outputs' }),
      k: read<RecurrentSpec>('float', { width: (s) => s.kWidth }),
      v: read<RecurrentSpec>('float', { width: (s) => s.vWidth }),
      decay: read<RecurrentSpec>('f32'),
      lengths: read<RecurrentSpec>('i32', { when: (s) => s.lengths }),
      initial: read<RecurrentSpec>('f32', { when: (s) => s.initial === 'given' }),
      state: readWrite<RecurrentSpec>('f32', { width: (s) => s.stateWidth, when: (s) => s.final }),
      out: write<RecurrentSpec>('float', { width: (s) => s.outWidth, when: (s) => s.mode === 'outputs' }),
    },
    uniforms: sweepUniforms,
    forms,
    wgsl: recurrentText,
  });
const kernel = kernelWith(['baseline']);
// where chunks of f16 on fragments would have been the form: a trace shows that this is a fall-back
const fallback = kernelWith(['baseline', 'matrix']);

function recurrentText(s: RecurrentSpec): string {
  const groups = s.columns / 4;
  const slabs = Math.ceil(s.keyDim / s.rows);
  const lanes = groups * slabs;
  const keyVectors = (slabs * s.rows) / 4;
  const outputs = s.mode === 'outputs';
  const vectors = s.rows / 4;
  const row = (r: number): string => {
    const of = `${Math.floor(r / 4)}.${'xyzw'[r % 4]}`;
    return `s${r} = fma(vec4f(loss), s${r}, s${r}) + key${of} * value; ${outputs ? `sum += query${of} * s${r};` : ''}`;
  };
  const stage = (name: string, vectorsPerToken: number, scale: string, first: string): string => `
      for (var e = lane; e < tokens * ${vectorsPerToken}u; e += ${lanes}u) {
        let token = tokenAt(at + e / ${vectorsPerToken}u, length);
        let base = batch * uniforms.${name}Batch + token * uniforms.${name}Token + head * uniforms.${name}Head;
        staged_${name}[e] = vector_${name}(base, ${first}(e % ${vectorsPerToken}u) * 4u)${scale};
      }`;
  return `
    ${outputs ? vectorLoad('q', s.qWidth, s.keyDim) : ''}
    ${vectorLoad('k', s.kWidth, s.keyDim)}
    ${vectorLoad('v', s.vWidth, s.valueDim)}
    ${segmentOf}
    ${s.mode === 'states' ? aliveOf : ''}
    ${lengthOf(s.lengths)}
    ${tokenOf}
    ${s.initial === 'inPlace' ? vectorLoad('state', s.stateWidth, s.valueDim) : ''}
    ${s.initial === 'given' ? initialOf(s.keyDim, s.valueDim) : ''}
    ${s.final ? vectorStore('state', s.stateWidth, s.valueDim) : ''}
    ${outputs ? vectorStore('out', s.outWidth, s.valueDim) : ''}
    ${outputs ? `var<workgroup> staged_q: array<vec4f, ${s.tile * keyVectors}>;` : ''}
    var<workgroup> staged_k: array<vec4f, ${s.tile * keyVectors}>;
    var<workgroup> staged_v: array<vec4f, ${s.tile * groups}>;
    ${outputs && slabs > 1 ? `var<workgroup> partial: array<vec4f, ${s.tile * lanes}>;` : ''}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${sweptSegment(s.columns)}
      // a bound that compilers cannot see: some unroll the sum over slabs and take seconds for it
      let slabs = min(${slabs}u, ${slabs - 1}u + groups.x);
      let column = lane % ${groups}u;
      let slab = lane / ${groups}u;
      let rate = ${rateOf('head')};
      let lambda = exp2(rate);
      // lambda - 1 by its series where lambda is close to 1: rounded lambda itself would be off by 1e-4 after 1,000 tokens
      let g = max(load_decay(head), -1e4);
      let lambdaLess1 = select(lambda - 1.0, g * (1.0 + g * (0.5 + g * (0.16666667 + g * 0.041666667))), g > -0.03);
      let stateBase = ((batch * uniforms.heads + head) * uniforms.segments + place.z) * ${s.keyDim * s.valueDim}u;
      ${unroll(s.rows, (r) => `var s${r} = vec4f();`, ' ')}
      ${s.initial === 'none' ? '' : loadState(s)}
      var at = first;
      ${s.mode === 'states' ? aliveFrom : ''}
      while (at < end) {
        let tokens = min(${s.tile}u, end - at);
        workgroupBarrier();
        ${outputs ? stage('q', keyVectors, ' * uniforms.queryScale', '') : ''}
        ${stage('k', keyVectors, ' * uniforms.keyScale', '')}
        ${stage('v', groups, '', `columns + `)}
        workgroupBarrier();
        for (var i = 0u; i < tokens; i++) {
          let value = staged_v[i * ${groups}u + column];
          // in reverse the state that the first token meets is the one behind it, undecayed
          let loss = select(lambdaLess1, 0.0, uniforms.reverse == 1u && at + i == first);
          ${unroll(vectors, (r) => `let key${r} = staged_k[i * ${keyVectors}u + slab * ${vectors}u + ${r}u];`, ' ')}
          ${outputs ? unroll(vectors, (r) => `let query${r} = staged_q[i * ${keyVectors}u + slab * ${vectors}u + ${r}u];`, ' ') : ''}
          ${outputs ? 'var sum = vec4f();' : ''}
          ${unroll(s.rows, row)}
          ${outputs ? (slabs > 1 ? `partial[(i * ${slabs}u + slab) * ${groups}u + column] = sum;` : storeOut('at + i', 'column', 'sum')) : ''}
        }
        ${
          outputs && slabs > 1
            ? `workgroupBarrier();
        for (var e = lane; e < tokens * ${groups}u; e += ${lanes}u) {
          let i = e / ${groups}u;
          let c = e % ${groups}u;
          var sum = vec4f();
          for (var slab = 0u; slab < slabs; slab++) { sum += partial[(i * ${slabs}u + slab) * ${groups}u + c]; }
          ${storeOut('at + i', 'c', 'sum')}
        }`
            : ''
        }
        at += tokens;
      }
      ${s.final ? storeState(s) : ''}
      ${outputs && s.lengths ? zeroTail(s.columns, lanes) : ''}
    }`;
}

function storeOut(i: string, column: string, value: string): string {
  return `{ let token = tokenAt(${i}, length);
            vectorTo_out(batch * uniforms.outBatch + token * uniforms.outToken + head * uniforms.outHead, columns + ${column} * 4u, ${value}); }`;
}

function loadState(s: RecurrentSpec): string {
  const four = [0, 1, 2, 3].map((c) => `initialAt(stateBase, row, columns + column * 4u + ${c}u)`).join(', ');
  return unroll(s.rows, (r) =>
    s.initial === 'given'
      ? `{ let row = slab * ${s.rows}u + ${r}u; s${r} = vec4f(${four}); }`
      : `{ let row = slab * ${s.rows}u + ${r}u; if (row < ${s.keyDim}u) { s${r} = vector_state(stateBase + row * ${s.valueDim}u, columns + column * 4u); } }`,
  );
}

// In reverse the state behind the last token is decayed by it, too.
function storeState(s: RecurrentSpec): string {
  return `
      let last = select(1.0, lambda, uniforms.reverse == 1u && first < end);
      ${unroll(
        s.rows,
        (r) =>
          `{ let row = slab * ${s.rows}u + ${r}u; if (row < ${s.keyDim}u) { vectorTo_state(stateBase + row * ${s.valueDim}u, columns + column * 4u, s${r} * last); } }`,
      )}`;
}

/** What one dispatch of the recurrence reads and writes. */
export interface RecurrentRun {
  sweep: Sweep;
  tile: RecurrentTile;
  k: Tensor;
  v: Tensor;
  /** With `out`: outputs. Without: only what each segment adds to the state. */
  q?: Tensor | undefined;
  out?: Tensor | undefined;
  /** State before each segment, f32 [batch, heads, segments, keyDim, valueDim], or [.., valueDim, keyDim] with `transposed`. */
  initial?: Tensor | undefined;
  transposed?: boolean | undefined;
  /** Written with the state behind each segment; with `inPlace` also read as the state before it. */
  state?: Tensor | undefined;
  inPlace?: boolean | undefined;
  /** A whole scan of f16, for which there is a form on fragments. */
  fallback?: boolean | undefined;
}

/** Records one dispatch of the recurrence over every segment, head and batch entry. */
export function runRecurrent(run: RecurrentRun): void {
  const { sweep, tile, q, k, v, out, initial, state } = run;
  const keyDim = k.dim(3);
  const valueDim = v.dim(3);
  const values = sweepValues(sweep, { q, k, v, out }, Math.ceil(valueDim / tile.columns), run.transposed ?? false);
  (run.fallback ? fallback : kernel).run(k.device, {
    spec: {
      ...tile,
      mode: out ? 'outputs' : 'states',
      keyDim,
      valueDim,
      qWidth: rowWidth(q),
      kWidth: rowWidth(k),
      vWidth: rowWidth(v),
      outWidth: rowWidth(out),
      stateWidth: valueDim % 4 === 0 ? 4 : 1,
      initial: run.inPlace ? 'inPlace' : initial ? 'given' : 'none',
      final: state !== undefined,
      lengths: sweep.lengths !== undefined,
    },
    tensors: { q, k, v, decay: sweep.decay, lengths: sweep.lengths, initial, state, out },
    uniforms: values,
    grid: [values.workgroups],
  });
}
