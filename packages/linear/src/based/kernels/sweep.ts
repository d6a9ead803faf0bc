// A segment of the scan with the second-order Taylor map, token by token with the state in registers: S += phi(k_t) v_t^T, z += phi(k_t),
// out_t = phi(q_t)^T S / (phi(q_t).z + eps). phi is made in workgroup memory, a tile of tokens at a time, and is never in a buffer.
// tile    all features x `columns` of S and, as one more column, z a workgroup: a lane holds 16 features x 4 columns; `tile` tokens a step
// bytes   reads q, k, v once a column tile, writes out once; mode `states` reads k, v and writes one state a segment
// limits  feature dimension <= 40; 2 multiply-adds a state element and token
// source  Arora et al. 2024 (arXiv 2402.18668), section 4; its backward reads v as the weighted cotangent and runs from the last token
import type { Tensor } from '@heed/core';
import { defineKernel, read, readWrite, unroll, write } from '@heed/core/~internal';
import { segmentOf, tokenOf, vectorLoad, vectorStore } from '../../scan/text.js';
import { rowWidth } from '../../scan/views.js';
import { coordinateBlocks, featureBlocks } from '../layout.js';
import { basedStrides, basedUniforms, blockPairs, featureText, HeldState, segmentText } from '../text.js';
import { type BasedSweep, sweepUniforms } from './sweep-uniforms.js';

interface SweepSpec {
  [name: string]: string | number | boolean;
  /** `states`: only what each segment adds. */
  mode: 'states' | 'outputs';
  featureDim: number;
  valueDim: number;
  columns: number;
  tile: number;
  qWidth: number;
  kWidth: number;
  vWidth: number;
  outWidth: number;
  stateWidth: number;
  /** State before a segment: zeros, `initialKv` and `initialZ`, or `kv` that is also written, with `initialZ`. */
  initial: 'none' | 'given' | 'inPlace';
  /** A column for z. */
  normaliser: boolean;
  /** Divides by phi(q).z. */
  normalise: boolean;
  /** v is multiplied by the first of two weights a token and head, z adds the second in place of 1. */
  weights: boolean;
  /** Adds the segment's tokens; otherwise its state is the one given. */
  update: boolean;
  /** Writes the denominators. */
  norm: boolean;
  lengths: boolean;
  /** See `HeldState`. */
  unrolled: boolean;
}

const reads = (s: SweepSpec): boolean => s.mode === 'outputs';
const writesState = (s: SweepSpec): boolean => s.mode === 'states' || s.initial === 'inPlace';

const kernel = defineKernel({
  name: 'based-sweep',
  bindings: {
    q: read<SweepSpec>('float', { width: (s) => s.qWidth, when: reads }),
    k: read<SweepSpec>('float', { width: (s) => s.kWidth, when: (s) => s.update }),
    v: read<SweepSpec>('float', { width: (s) => s.vWidth, when: (s) => s.update }),
    weights: read<SweepSpec>('f32', { when: (s) => s.weights && s.update }),
    lengths: read<SweepSpec>('i32', { when: (s) => s.lengths }),
    initialKv: read<SweepSpec>('f32', { width: (s) => s.stateWidth, when: (s) => s.initial === 'given' }),
    initialZ: read<SweepSpec>('f32', { when: (s) => s.initial !== 'none' && s.normaliser }),
    kv: readWrite<SweepSpec>('f32', { width: (s) => s.stateWidth, when: writesState }),
    z: write<SweepSpec>('f32', { when: (s) => writesState(s) && s.normaliser }),
    norm: write<SweepSpec>('f32', { when: (s) => s.norm }),
    out: write<SweepSpec>('float', { width: (s) => s.outWidth, when: reads }),
  },
  uniforms: { ...basedStrides.uniforms, ...basedUniforms },
  wgsl: sweepText,
});

function sweepText(s: SweepSpec): string {
  const valueGroups = s.columns / 4;
  const groups = valueGroups + (s.normaliser ? 1 : 0);
  const blocks = featureBlocks(s.featureDim);
  const coordinates = coordinateBlocks(s.featureDim);
  const lanes = groups * blocks;
  const outputs = s.mode === 'outputs';
  const held = new HeldState(s.unrolled);
  const operands = [...(outputs ? ['q'] : []), ...(s.update ? ['k'] : [])];
  const stage = (name: string): string => `
        for (var e = lane; e < count * ${coordinates}u; e += ${lanes}u) {
          let token = tokenAt(at + e / ${coordinates}u, length);
          let base = batch * uniforms.${name}Batch + token * uniforms.${name}Token + head * uniforms.${name}Head;
          raw_${name}[e] = vector_${name}(base, (e % ${coordinates}u) * 4u) * uniforms.featureScale;
        }`;
  return `
    ${operands.map((name) => vectorLoad(name, name === 'q' ? s.qWidth : s.kWidth, s.featureDim)).join('\n')}
    ${s.update ? vectorLoad('v', s.vWidth, s.valueDim) : ''}
    ${featureText(s.featureDim)}
    ${segmentOf}
    ${tokenOf}
    ${stateAccess(s)}
    ${blockPairs(s.featureDim).declare}
    ${operands.map((name) => `var<workgroup> raw_${name}: array<vec4f, ${s.tile * coordinates}>; var<workgroup> phi_${name}: array<vec4f, ${s.tile * blocks * 4}>;`).join('\n')}
    ${s.update ? `var<workgroup> staged_v: array<vec4f, ${s.tile * groups}>;` : ''}
    ${outputs ? `var<workgroup> partial: array<vec4f, ${s.tile * lanes}>;` : ''}
    ${outputs ? vectorStore('out', s.outWidth, s.valueDim) : ''}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      ${segmentText(s.featureDim, s.lengths)}
      let columns = place.x * ${s.columns}u;
      // bounds that compilers cannot see: some unroll these loops and take seconds for it
      let blockCount = min(${blocks}u, ${blocks - 1}u + groups.x);
      let column = lane % ${groups}u;
      let block = lane / ${groups}u;
      ${blockPairs(s.featureDim).fill(lanes)}
      workgroupBarrier();
      let pair = pairs[block];
      ${held.declare()}
      ${s.initial === 'none' ? '' : held.each((name, r, c) => `${name} = stateAt(stateFirst, stateIndex(pair, ${r}, ${c}), columns, column);`)}
      for (var at = first; at < end; at += ${s.tile}u) {
        let count = min(${s.tile}u, end - at);
        ${operands.map(stage).join('\n')}
        ${s.update ? stageValues(s, groups, lanes) : ''}
        workgroupBarrier();
        for (var e = lane; e < count * ${blocks * 4}u; e += ${lanes}u) {
          let token = e / ${blocks * 4}u;
          let r = e % 4u;
          let own = pairs[(e / 4u) % ${blocks}u];
          let row = token * ${coordinates}u + (own & 0xffffu);
          let other = token * ${coordinates}u + (own >> 16u);
          ${operands.map((name) => `phi_${name}[e] = featureRow(raw_${name}[row], raw_${name}[other], r, own);`).join('\n')}
        }
        workgroupBarrier();
        for (var t = 0u; t < count; t++) {
          let features = (t * ${blocks}u + block) * 4u;
          ${s.update ? `let value = staged_v[t * ${groups}u + column];` : ''}
          ${outputs ? 'var total = vec4f();' : ''}
          ${held.step(s.update ? 'phi_k' : undefined, 'value', outputs ? 'phi_q' : undefined, 'features')}
          ${outputs ? `partial[t * ${lanes}u + lane] = total;` : ''}
        }
        workgroupBarrier();
        ${outputs ? finishTile(s, valueGroups, groups, lanes) : ''}
      }
      ${writesState(s) ? held.each((name, r, c) => `keepState(stateFirst, stateIndex(pair, ${r}, ${c}), columns, column, place.x, ${name});`) : ''}
      ${outputs ? zeroTail(s, valueGroups, lanes) : ''}
    }`;
}

function stageValues(s: SweepSpec, groups: number, lanes: number): string {
  const normaliserValue = s.weights ? 'load_weights(2u * weightRow + 1u)' : '1.0';
  return `
        for (var e = lane; e < count * ${groups}u; e += ${lanes}u) {
          let token = tokenAt(at + e / ${groups}u, length);
          let own = e % ${groups}u;
          ${s.weights ? 'let weightRow = (batch * uniforms.tokens + token) * uniforms.heads + head;' : ''}
          var value = vec4f();
          if (own < ${s.columns / 4}u) {
            let base = batch * uniforms.vBatch + token * uniforms.vToken + head * uniforms.vHead;
            value = vector_v(base, columns + own * 4u)${s.weights ? ' * load_weights(2u * weightRow)' : ''};
          } ${s.normaliser ? `else { value = vec4f(${normaliserValue}, 0.0, 0.0, 0.0); }` : ''}
          staged_v[e] = value;
        }`;
}

// The sums over blocks of a tile's tokens, divided by those of the normaliser's column.
function finishTile(s: SweepSpec, valueGroups: number, groups: number, lanes: number): string {
  return `
        for (var e = lane; e < count * ${valueGroups}u; e += ${lanes}u) {
          let t = e / ${valueGroups}u;
          let own = e % ${valueGroups}u;
          let token = tokenAt(at + t, length);
          var total = vec4f();
          ${s.normalise ? 'var denominator = 0.0;' : ''}
          for (var b = 0u; b < blockCount; b++) {
            total += partial[t * ${lanes}u + b * ${groups}u + own];
            ${s.normalise ? `denominator += partial[t * ${lanes}u + b * ${groups}u + ${valueGroups}u].x;` : ''}
          }
          ${s.normalise ? 'denominator += uniforms.epsilon; total /= denominator;' : ''}
          vectorTo_out(batch * uniforms.outBatch + token * uniforms.outToken + head * uniforms.outHead, columns + own * 4u, total);
          ${s.norm ? 'if (own == 0u && place.x == 0u) { store_norm((batch * uniforms.tokens + token) * uniforms.heads + head, denominator); }' : ''}
        }
        workgroupBarrier();`;
}

function zeroTail(s: SweepSpec, valueGroups: number, lanes: number): string {
  if (!s.lengths) return '';
  return `
      let tailFirst = max(length, firstToken);
      let tailEnd = min(firstToken + uniforms.segmentTokens, uniforms.tokens);
      for (var e = lane + tailFirst * ${valueGroups}u; e < tailEnd * ${valueGroups}u; e += ${lanes}u) {
        vectorTo_out(batch * uniforms.outBatch + (e / ${valueGroups}u) * uniforms.outToken + head * uniforms.outHead, columns + (e % ${valueGroups}u) * 4u, vec4f());
      }`;
}

/** `stateAt` and `keepState`: four columns, or z, of one feature; kv is [.., features, valueDim], z [.., features]. */
function stateAccess(s: SweepSpec): string {
  const kv = s.initial === 'inPlace' ? 'kv' : 'initialKv';
  const valueGroups = s.columns / 4;
  const wide = s.stateWidth === 4;
  const load = wide
    ? `return load_${kv}(base / 4u);`
    : `return vec4f(${[0, 1, 2, 3].map((c) => `select(0.0, load_${kv}(base + ${c}u), d + ${c}u < ${s.valueDim}u)`).join(', ')});`;
  const store = wide
    ? 'store_kv(base / 4u, value);'
    : unroll(4, (c) => `if (d + ${c}u < ${s.valueDim}u) { store_kv(base + ${c}u, value[${c}]); }`, ' ');
  return `
    ${
      s.initial === 'none'
        ? ''
        : `fn stateAt(first: u32, feature: u32, columns: u32, column: u32) -> vec4f {
      if (feature == noFeature) { return vec4f(); }
      ${s.normaliser ? `if (column == ${valueGroups}u) { return vec4f(load_initialZ(first + feature), 0.0, 0.0, 0.0); }` : ''}
      let d = columns + column * 4u;
      if (d >= ${s.valueDim}u) { return vec4f(); }
      let base = (first + feature) * ${s.valueDim}u + d;
      ${load}
    }`
    }
    ${
      writesState(s)
        ? `fn keepState(first: u32, feature: u32, columns: u32, column: u32, tile: u32, value: vec4f) {
      if (feature == noFeature) { return; }
      ${s.normaliser ? `if (column == ${valueGroups}u) { if (tile == 0u) { store_z(first + feature, value.x); } return; }` : ''}
      let d = columns + column * 4u;
      if (d >= ${s.valueDim}u) { return; }
      let base = (first + feature) * ${s.valueDim}u + d;
      ${store}
    }`
        : ''
    }`;
}

/** A state of the compressed map: kv f32 [batch, heads, segments, features, valueDim], z f32 [batch, heads, segments, features]. */
export interface TaylorState {
  kv: Tensor;
  z: Tensor | undefined;
}

/** What one dispatch of the scan reads and writes. */
export interface SweepRun {
  sweep: BasedSweep;
  columns: number;
  tile: number;
  /** With `out`: outputs. Without: only what each segment adds to the state. */
  q?: Tensor | undefined;
  k: Tensor;
  v: Tensor;
  weights?: Tensor | undefined;
  initial?: TaylorState | undefined;
  /** Written with what each segment adds; with `inPlace` its kv is updated and its z written. */
  state?: TaylorState | undefined;
  inPlace?: boolean;
  /** Default true. */
  update?: boolean;
  normalise: boolean;
  norm?: Tensor | undefined;
  out?: Tensor | undefined;
}

/** Records one dispatch of the scan over every segment, head and batch entry. */
export function runSweep(run: SweepRun): void {
  const { sweep, columns, tile, q, k, v, weights, initial, state, norm, out, inPlace = false, update = true } = run;
  const [featureDim, valueDim] = [k.dim(3), v.dim(3)];
  const normaliser = state?.z !== undefined || (out !== undefined && run.normalise);
  kernel.run(k.device, {
    spec: {
      mode: out ? 'outputs' : 'states',
      featureDim,
      valueDim,
      columns,
      tile,
      qWidth: rowWidth(q),
      kWidth: rowWidth(k),
      vWidth: rowWidth(v),
      outWidth: rowWidth(out),
      stateWidth: valueDim % 4 === 0 ? 4 : 1,
      initial: inPlace ? 'inPlace' : initial ? 'given' : 'none',
      normaliser,
      normalise: run.normalise && out !== undefined,
      weights: weights !== undefined,
      update,
      norm: norm !== undefined,
      lengths: sweep.lengths !== undefined,
      unrolled: !k.device.isSoftware,
    },
    tensors: {
      q,
      k,
      v,
      weights,
      lengths: sweep.lengths,
      initialKv: initial?.kv,
      initialZ: initial?.z,
      kv: state?.kv,
      z: state?.z,
      norm,
      out,
    },
    uniforms: sweepUniforms(sweep, { q, k, v, out }, Math.ceil(valueDim / columns)),
    grid: [Math.ceil(valueDim / columns) * sweep.heads * sweep.segments * sweep.batch],
  });
}
