// A segment of S_t = diag(exp g_t) S_(t-1) + k_t v_t^T, out_t = q_t S_t, token by token with S in registers.
// tile    keyDim x `columns` of S a workgroup: a lane holds `rows` x 4; `tile` tokens of q, k, v and of exp(g) - 1 are staged a step
// bytes   reads q, k, v, g once a column tile, writes out once; mode `states` reads k, v, g and writes one S a segment
// limits  keyDim <= 1024; any gate: no product of decays is formed, so nothing can overflow
// source  Yang et al. 2023 (arXiv 2312.06635), eq. 3 (gates of rows); roles swapped (gates of columns) and time reversed for its backward
import type { Tensor } from '@heed/core';
import { defineKernel, read, readWrite, unroll, write } from '@heed/core/~internal';
import { runBlocks } from './gated-blocks.js';
import type { BlockTile } from './gated-plan.js';
import type { RecurrentTile } from './plan.js';
import { gateStrides } from './strides.js';
import { sweepUniforms, sweepValues } from './sweep.js';
import { initialOf, lengthOf, lossText, segmentOf, sweptSegment, tokenOf, vectorLoad, vectorStore, zeroTail } from './text.js';
import { rowWidth } from './views.js';

/** What a gate decays: the whole state of a head, its rows (the key dimension) or, with roles swapped, its columns. */
export type GateForm = 'head' | 'rows' | 'columns';

interface GatedSpec extends RecurrentTile {
  [name: string]: string | number | boolean;
  mode: 'states' | 'outputs';
  gate: GateForm;
  /** Last token first; a token's gate then decays what passes it on the way to the tokens before. */
  reverse: boolean;
  keyDim: number;
  valueDim: number;
  qWidth: number;
  kWidth: number;
  vWidth: number;
  gWidth: number;
  outWidth: number;
  stateWidth: number;
  initial: 'none' | 'given' | 'inPlace';
  final: boolean;
  lengths: boolean;
}

const kernel = defineKernel({
  name: 'linear-gated-recurrent',
  bindings: {
    q: read<GatedSpec>('float', { width: (s) => s.qWidth, when: (s) => s.mode === 'outputs' }),
    k: read<GatedSpec>('float', { width: (s) => s.kWidth }),
    v: read<GatedSpec>('float', { width: (s) => s.vWidth }),
    g: read<GatedSpec>('f32', { width: (s) => s.gWidth }),
    lengths: read<GatedSpec>('i32', { when: (s) => s.lengths }),
    initial: read<GatedSpec>('f32', { when: (s) => s.initial === 'given' }),
    state: readWrite<GatedSpec>('f32', { width: (s) => s.stateWidth, when: (s) => s.final }),
    out: write<GatedSpec>('float', { width: (s) => s.outWidth, when: (s) => s.mode === 'outputs' }),
  },
  uniforms: { ...sweepUniforms, ...gateStrides.uniforms },
  wgsl: gatedText,
});

/** Vectors of the gate that a token stages. */
export function gateVectors(gate: GateForm, keyVectors: number, groups: number): number {
  return gate === 'head' ? 1 : gate === 'rows' ? keyVectors : groups;
}

function gatedText(s: GatedSpec): string {
  const groups = s.columns / 4;
  const slabs = Math.ceil(s.keyDim / s.rows);
  const lanes = groups * slabs;
  const vectors = s.rows / 4;
  const keyVectors = slabs * vectors;
  const gates = gateVectors(s.gate, keyVectors, groups);
  const outputs = s.mode === 'outputs';
  const row = (r: number): string => {
    const of = `${Math.floor(r / 4)}.${'xyzw'[r % 4]}`;
    const loss = s.gate === 'rows' ? `vec4f(loss${of})` : 'loss';
    const decay = `s${r} = fma(${loss}, s${r}, s${r});`;
    const add = `s${r} = fma(vec4f(key${of}), value, s${r}); ${outputs ? `sum = fma(vec4f(query${of}), s${r}, sum);` : ''}`;
    return s.reverse ? `${add} ${decay}` : `${decay} ${add}`;
  };
  const lossOf =
    s.gate === 'rows'
      ? unroll(vectors, (r) => `let loss${r} = staged_g[i * ${gates}u + slab * ${vectors}u + ${r}u];`, ' ')
      : `let loss = staged_g[${s.gate === 'head' ? 'i' : `i * ${gates}u + column`}];`;
  const stage = (name: string, count: number, value: (base: string, e: string) => string): string => `
        for (var e = lane; e < tokens * ${count}u; e += ${lanes}u) {
          let token = tokenAt(at + e / ${count}u, length);
          let base = batch * uniforms.${name}Batch + token * uniforms.${name}Token + head * uniforms.${name}Head;
          staged_${name}[e] = ${value('base', `(e % ${count}u) * 4u`)};
        }`;
  const load = (name: string, first = ''): ((base: string, e: string) => string) => {
    return (base, e) => `vector_${name}(${base}, ${first}${e})`;
  };
  const four = [0, 1, 2, 3].map((c) => `initialAt(stateBase, row, columns + column * 4u + ${c}u)`).join(', ');
  const eachRow = (text: (r: number) => string): string => unroll(s.rows, (r) => `{ let row = slab * ${s.rows}u + ${r}u; ${text(r)} }`);
  const inside = `if (row < ${s.keyDim}u)`;
  const stateAt = `stateBase + row * ${s.valueDim}u, columns + column * 4u`;
  const storeOut = (i: string, column: string): string => `{ let token = tokenAt(${i}, length);
            vectorTo_out(batch * uniforms.outBatch + token * uniforms.outToken + head * uniforms.outHead, columns + ${column} * 4u, sum); }`;
  return `
    ${outputs ? vectorLoad('q', s.qWidth, s.keyDim) : ''}
    ${vectorLoad('k', s.kWidth, s.keyDim)}
    ${vectorLoad('v', s.vWidth, s.valueDim)}
    ${s.gate === 'head' ? '' : vectorLoad('g', s.gWidth, s.gate === 'rows' ? s.keyDim : s.valueDim)}
    ${segmentOf}
    ${lengthOf(s.lengths)}
    ${tokenOf}
    ${s.initial === 'inPlace' ? vectorLoad('state', s.stateWidth, s.valueDim) : ''}
    ${s.initial === 'given' ? initialOf(s.keyDim, s.valueDim) : ''}
    ${s.final ? vectorStore('state', s.stateWidth, s.valueDim) : ''}
    ${outputs ? vectorStore('out', s.outWidth, s.valueDim) : ''}
    ${lossText}
    ${outputs ? `var<workgroup> staged_q: array<vec4f, ${s.tile * keyVectors}>;` : ''}
    var<workgroup> staged_k: array<vec4f, ${s.tile * keyVectors}>;
    var<workgroup> staged_v: array<vec4f, ${s.tile * groups}>;
    var<workgroup> staged_g: array<vec4f, ${s.tile * gates}>;
    ${outputs && slabs > 1 ? `var<workgroup> partial: array<vec4f, ${s.tile * lanes}>;` : ''}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${sweptSegment(s.columns)}
      // a bound that compilers cannot see: some unroll the sum over slabs and take seconds for it
      let slabs = min(${slabs}u, ${slabs - 1}u + groups.x);
      let column = lane % ${groups}u;
      let slab = lane / ${groups}u;
      let stateBase = ((batch * uniforms.heads + head) * uniforms.segments + place.z) * ${s.keyDim * s.valueDim}u;
      ${unroll(s.rows, (r) => `var s${r} = vec4f();`, ' ')}
      ${s.initial === 'given' ? eachRow((r) => `s${r} = vec4f(${four});`) : ''}
      ${s.initial === 'inPlace' ? eachRow((r) => `${inside} { s${r} = vector_state(${stateAt}); }`) : ''}
      var at = first;
      while (at < end) {
        let tokens = min(${s.tile}u, end - at);
        workgroupBarrier();
        ${outputs ? stage('q', keyVectors, (base, e) => `${load('q')(base, e)} * uniforms.queryScale`) : ''}
        ${stage('k', keyVectors, (base, e) => `${load('k')(base, e)} * uniforms.keyScale`)}
        ${stage('v', groups, load('v', 'columns + '))}
        ${stage('g', gates, (base, e) => `lossOf(${s.gate === 'head' ? `vec4f(load_g(${base}))` : load('g', s.gate === 'columns' ? 'columns + ' : '')(base, e)})`)}
        workgroupBarrier();
        for (var i = 0u; i < tokens; i++) {
          let value = staged_v[i * ${groups}u + column];
          ${lossOf}
          ${unroll(vectors, (r) => `let key${r} = staged_k[i * ${keyVectors}u + slab * ${vectors}u + ${r}u];`, ' ')}
          ${outputs ? unroll(vectors, (r) => `let query${r} = staged_q[i * ${keyVectors}u + slab * ${vectors}u + ${r}u];`, ' ') : ''}
          ${outputs ? 'var sum = vec4f();' : ''}
          ${unroll(s.rows, row)}
          ${outputs ? (slabs > 1 ? `partial[(i * ${slabs}u + slab) * ${groups}u + column] = sum;` : storeOut('at + i', 'column')) : ''}
        }
        ${
          outputs && slabs > 1
            ? `workgroupBarrier();
        for (var e = lane; e < tokens * ${groups}u; e += ${lanes}u) {
          let i = e / ${groups}u;
          let c = e % ${groups}u;
          var sum = vec4f();
          for (var slab = 0u; slab < slabs; slab++) { sum += partial[(i * ${slabs}u + slab) * ${groups}u + c]; }
          ${storeOut('at + i', 'c')}
        }`
            : ''
        }
        at += tokens;
      }
      ${s.final ? eachRow((r) => `${inside} { vectorTo_state(${stateAt}, s${r}); }`) : ''}
      ${outputs && s.lengths ? zeroTail(s.columns, lanes) : ''}
    }`;
}

/** What every dispatch of a gated scan goes over. */
export interface GatedSweep {
  batch: number;
  tokens: number;
  heads: number;
  segments: number;
  segmentTokens: number;
  /** Log-decay a token and head, f32 [batch, tokens, heads], or also a channel. */
  gate: Tensor;
  lengths: Tensor | undefined;
  tokensBefore: number;
  reverse: boolean;
  queryScale: number;
  keyScale: number;
}

/** What one dispatch of the recurrence reads and writes. */
export interface GatedRun {
  sweep: GatedSweep;
  tile: RecurrentTile;
  /** Where the device has the subgroups for blocks of tokens. */
  blocks?: BlockTile | undefined;
  form: GateForm;
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
}

/** Records one dispatch of the recurrence over every segment, head and batch entry. */
export function runGated(run: GatedRun): void {
  const { sweep, tile, form, q, k, v, out, initial, state } = run;
  const { gate } = sweep;
  const keyDim = k.dim(3);
  const valueDim = v.dim(3);
  const transposed = run.transposed ?? false;
  const blocks = run.inPlace ? undefined : run.blocks;
  const values = sweepValues({ ...sweep, decay: gate }, { q, k, v, out }, Math.ceil(valueDim / (blocks ?? tile).columns), transposed);
  const spec = {
    mode: out ? ('outputs' as const) : ('states' as const),
    gate: form,
    reverse: sweep.reverse,
    keyDim,
    valueDim,
    qWidth: rowWidth(q),
    kWidth: rowWidth(k),
    vWidth: rowWidth(v),
    gWidth: form === 'head' ? 1 : rowWidth(gate),
    outWidth: rowWidth(out),
    stateWidth: valueDim % 4 === 0 ? 4 : 1,
    final: state !== undefined,
    lengths: sweep.lengths !== undefined,
  };
  const tensors = { q, k, v, g: gate, lengths: sweep.lengths, initial, state, out };
  const uniforms = { ...values, ...gateStrides.values({ g: gate }) };
  const grid = [values.workgroups];
  if (blocks) {
    const side = transposed || form === 'columns' ? ('columns' as const) : ('rows' as const);
    runBlocks(k.device, { spec: { ...spec, ...blocks, side, initial: initial ? 'given' : 'none' }, tensors, uniforms, grid });
    return;
  }
  const from = run.inPlace ? 'inPlace' : initial ? 'given' : 'none';
  kernel.run(k.device, { spec: { ...spec, ...tile, initial: from }, tensors, uniforms, grid });
}
