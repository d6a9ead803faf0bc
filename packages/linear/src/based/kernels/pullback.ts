// Gradients of q, or of k, of the scan with the Taylor map: the transposed state meets a cotangent, which gives a cotangent of phi, and the
// Jacobian of phi takes it to the coordinates: dq_t = J(q_t)^T S_t g_t, dk_t = J(k_t)^T G_t [v_t, 1] with G the state of the reverse sweep
// and g_t = [dOut_t / Z_t, -(dOut_t . out_t) / Z_t]. No cotangent of phi is ever in a buffer.
// tile    all features x 16 value rows a slab of lanes: a lane holds 16 rows x 4 features, lanes of slab 0 those of the normaliser, too
// bytes   reads both points, v, dOut once, writes f numbers a token and tile of slabs
// limits  feature dimension <= 40; 2 multiply-adds a state element and token, f^2 more for the Jacobian
// source  Arora et al. 2024 (arXiv 2402.18668), section 4, differentiated
import type { Tensor } from '@heed/core';
import { defineKernel, read, unroll, write } from '@heed/core/~internal';
import { segmentOf, tokenOf, vectorLoad } from '../../scan/text.js';
import { rowWidth } from '../../scan/views.js';
import { coordinateBlocks, featureBlocks } from '../layout.js';
import { basedStrides, basedUniforms, blockPairs, featureText, HeldState, segmentText } from '../text.js';
import type { TaylorState } from './sweep.js';
import { type BasedSweep, sweepUniforms } from './sweep-uniforms.js';

interface PullbackSpec {
  [name: string]: string | number | boolean;
  /** Of q: keys and values make the state, weighted cotangents meet it. Of k: queries and weighted cotangents make it, values meet it. */
  of: 'q' | 'k';
  featureDim: number;
  valueDim: number;
  slabs: number;
  tile: number;
  qWidth: number;
  kWidth: number;
  vWidth: number;
  dWidth: number;
  initial: boolean;
  normaliser: boolean;
  update: boolean;
  lengths: boolean;
  /** See `HeldState`. */
  unrolled: boolean;
}

const kernel = defineKernel({
  name: 'based-pullback',
  bindings: {
    q: read<PullbackSpec>('float', { width: (s) => s.qWidth, when: (s) => s.update || s.of === 'q' }),
    k: read<PullbackSpec>('float', { width: (s) => s.kWidth, when: (s) => s.update || s.of === 'k' }),
    v: read<PullbackSpec>('float', { width: (s) => s.vWidth, when: (s) => s.update || s.of === 'k' }),
    d: read<PullbackSpec>('float', { width: (s) => s.dWidth, when: (s) => s.update || s.of === 'q' }),
    weights: read<PullbackSpec>('f32', { when: (s) => s.update || s.of === 'q' }),
    initialKv: read<PullbackSpec>('f32', { when: (s) => s.initial }),
    initialZ: read<PullbackSpec>('f32', { when: (s) => s.initial && s.normaliser }),
    lengths: read<PullbackSpec>('i32', { when: (s) => s.lengths }),
    out: write<PullbackSpec>('f32'),
  },
  uniforms: { ...basedStrides.uniforms, ...basedUniforms },
  wgsl: pullbackText,
});

function pullbackText(s: PullbackSpec): string {
  const blocks = featureBlocks(s.featureDim);
  const coordinates = coordinateBlocks(s.featureDim);
  const groups = 4 * blocks;
  const lanes = groups * s.slabs;
  const held = new HeldState(s.unrolled);
  const point = s.of;
  const source = s.of === 'q' ? 'k' : 'q';
  const coordinateRows = [point, ...(s.update ? [source] : [])];
  // what makes the state and what meets it, a vector of 16 value rows a slab each
  const [maker, meeter] = s.of === 'q' ? ['v', 'd'] : ['d', 'v'];
  const valueRows = [meeter, ...(s.update ? [maker] : [])];
  const width = { q: s.qWidth, k: s.kWidth, v: s.vWidth, d: s.dWidth } as Record<string, number>;
  const stageValue = (name: string): string => `
        for (var e = lane; e < count * ${s.slabs * 4}u; e += ${lanes}u) {
          let token = tokenAt(at + e / ${s.slabs * 4}u, length);
          let base = batch * uniforms.${name}Batch + token * uniforms.${name}Token + head * uniforms.${name}Head;
          rows_${name}[e] = vector_${name}(base, firstRow + (e % ${s.slabs * 4}u) * 4u)${name === 'd' ? ' * load_weights(2u * ((batch * uniforms.tokens + token) * uniforms.heads + head))' : ''};
        }`;
  const normaliserOf = (name: string): string => (name === 'd' ? 'load_weights(2u * weightRow + 1u)' : '1.0');
  return `
    ${coordinateRows.map((name) => vectorLoad(name, width[name] ?? 1, s.featureDim)).join('\n')}
    ${valueRows.map((name) => vectorLoad(name, width[name] ?? 1, s.valueDim)).join('\n')}
    ${featureText(s.featureDim)}
    ${segmentOf}
    ${tokenOf}
    ${blockPairs(s.featureDim).declare}
    ${coordinateRows.map((name) => `var<workgroup> raw_${name}: array<vec4f, ${s.tile * coordinates}>;`).join('\n')}
    ${valueRows.map((name) => `var<workgroup> rows_${name}: array<vec4f, ${s.tile * s.slabs * 4}>;`).join('\n')}
    // phi of the source, then the cotangent of phi at the point
    var<workgroup> phi: array<vec4f, ${s.tile * groups}>;
    var<workgroup> partial: array<vec4f, ${s.tile * lanes}>;
    // per token: what makes the normaliser's row of the state, and what meets it
    ${s.normaliser ? `var<workgroup> ones: array<vec4f, ${s.tile}>;` : ''}
    fn outAt(tile: u32, batch: u32, token: u32, head: u32) -> u32 {
      return tile * uniforms.outBatch + ((batch * uniforms.tokens + token) * uniforms.heads + head) * ${s.featureDim}u;
    }
    // place of the feature of coordinates i and j among those of the blocks
    fn slot(i: u32, j: u32) -> u32 {
      let low = min(i, j);
      let high = max(i, j);
      let row = low / 4u;
      return ((row * ${2 * coordinates}u - row * row + row) / 2u + high / 4u - row) * 16u + (low % 4u) * 4u + high % 4u;
    }
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      ${segmentText(s.featureDim, s.lengths)}
      // bounds that compilers cannot see
      let slabCount = min(${s.slabs}u, ${s.slabs - 1}u + groups.x);
      let coordinateCount = min(${s.featureDim}u, ${s.featureDim - 1}u + groups.x);
      let own = lane % ${groups}u;
      let slab = lane / ${groups}u;
      let firstRow = place.x * ${16 * s.slabs}u;
      let holdsOnes = ${s.normaliser ? 'slab == 0u && place.x == 0u' : 'false'};
      ${blockPairs(s.featureDim).fill(lanes)}
      workgroupBarrier();
      let pair = pairs[own / 4u];
      ${held.declare()}
      ${s.normaliser ? 'var onesState = vec4f();' : ''}
      ${s.initial ? loadInitial(s, held) : ''}
      for (var at = first; at < end; at += ${s.tile}u) {
        let count = min(${s.tile}u, end - at);
        ${coordinateRows
          .map(
            (name) => `
        for (var e = lane; e < count * ${coordinates}u; e += ${lanes}u) {
          let token = tokenAt(at + e / ${coordinates}u, length);
          let base = batch * uniforms.${name}Batch + token * uniforms.${name}Token + head * uniforms.${name}Head;
          raw_${name}[e] = vector_${name}(base, (e % ${coordinates}u) * 4u) * uniforms.featureScale;
        }`,
          )
          .join('\n')}
        ${valueRows.map(stageValue).join('\n')}
        ${
          s.normaliser
            ? `
        for (var e = lane; e < count; e += ${lanes}u) {
          let token = tokenAt(at + e, length);
          let weightRow = (batch * uniforms.tokens + token) * uniforms.heads + head;
          ones[e] = vec4f(${s.update ? normaliserOf(maker ?? '') : '0.0'}, ${normaliserOf(meeter ?? '')}, 0.0, 0.0);
        }`
            : ''
        }
        workgroupBarrier();
        ${
          s.update
            ? `
        for (var e = lane; e < count * ${groups}u; e += ${lanes}u) {
          let t = e / ${groups}u;
          let owner = pairs[(e / 4u) % ${blocks}u];
          phi[e] = featureRow(raw_${source}[t * ${coordinates}u + (owner & 0xffffu)], raw_${source}[t * ${coordinates}u + (owner >> 16u)], e % 4u, owner);
        }
        workgroupBarrier();`
            : ''
        }
        for (var t = 0u; t < count; t++) {
          let rows = (t * ${s.slabs}u + slab) * 4u;
          ${s.update ? `let features = phi[t * ${groups}u + own];` : ''}
          var total = vec4f();
          ${held.step(s.update ? `rows_${maker}` : undefined, 'features', `rows_${meeter}`, 'rows')}
          ${s.normaliser ? `if (holdsOnes) { ${s.update ? 'onesState += ones[t].x * features;' : ''} total += ones[t].y * onesState; }` : ''}
          partial[t * ${lanes}u + lane] = total;
        }
        workgroupBarrier();
        for (var e = lane; e < count * ${groups}u; e += ${lanes}u) {
          let t = e / ${groups}u;
          var total = vec4f();
          for (var other = 0u; other < slabCount; other++) { total += partial[t * ${lanes}u + other * ${groups}u + e % ${groups}u]; }
          phi[e] = total;
        }
        workgroupBarrier();
        for (var e = lane; e < count * coordinateCount; e += ${lanes}u) {
          let t = e / coordinateCount;
          let i = e % coordinateCount;
          let token = tokenAt(at + t, length);
          // linear features lie at (1, 0), (2, 0), (2, 1), (3, 0) of a diagonal block
          let diagonal = t * ${groups}u + slot(i & ~3u, i & ~3u) / 4u;
          var total = 0.0;
          switch i % 4u {
            case 0u: { total = phi[diagonal + 1u].x; }
            case 1u: { total = phi[diagonal + 2u].x; }
            case 2u: { total = phi[diagonal + 2u].y; }
            default: { total = phi[diagonal + 3u].x; }
          }
          for (var j = 0u; j < coordinateCount; j++) {
            let at = slot(i, j);
            // d(x_i^2 / sqrt 2) = sqrt 2 x_i
            total += select(1.0, 1.41421356, i == j) * raw_${point}[t * ${coordinates}u + j / 4u][j % 4u] * phi[t * ${groups}u + at / 4u][at % 4u];
          }
          store_out(outAt(place.x, batch, token, head) + i, total * uniforms.featureScale);
        }
        workgroupBarrier();
      }
      ${s.lengths ? zeroTail(lanes) : ''}
    }`;
}

function loadInitial(s: PullbackSpec, held: HeldState): string {
  const four = (text: (c: number) => string): string => [0, 1, 2, 3].map(text).join(', ');
  return `
      ${unroll(4, (c) => `let feature${c} = stateIndex(pair, own % 4u, ${c}u);`)}
      ${held.each(
        (name, r, c) => `{
        let row = firstRow + slab * 16u + ${r} * 4u + ${c};
        if (row < ${s.valueDim}u) { ${name} = vec4f(${four((e) => `select(0.0, load_initialKv((stateFirst + feature${e}) * ${s.valueDim}u + row), feature${e} != noFeature)`)}); }
      }`,
      )}
      ${s.normaliser ? `if (holdsOnes) { onesState = vec4f(${four((e) => `select(0.0, load_initialZ(stateFirst + feature${e}), feature${e} != noFeature)`)}); }` : ''}`;
}

function zeroTail(lanes: number): string {
  return `
      let tailFirst = max(length, firstToken);
      let tailEnd = min(firstToken + uniforms.segmentTokens, uniforms.tokens);
      for (var e = lane + tailFirst * coordinateCount; e < tailEnd * coordinateCount; e += ${lanes}u) {
        store_out(outAt(place.x, batch, e / coordinateCount, head) + e % coordinateCount, 0.0);
      }`;
}

/** What one dispatch of the gradients of q or k reads and writes. */
export interface PullbackRun {
  of: 'q' | 'k';
  sweep: BasedSweep;
  slabs: number;
  tile: number;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Cotangent of the output. */
  d: Tensor;
  /** f32 [batch, tokens, heads, 2]: 1 / Z and -(dOut . out) / Z. */
  weights: Tensor;
  initial?: TaylorState | undefined;
  normaliser: boolean;
  /** Default true. */
  update?: boolean;
  /** f32 [tiles of slabs, batch, tokens, heads, featureDim], contiguous; their sum is the gradient. */
  out: Tensor;
}

/** Records one dispatch over every segment, head, batch entry and tile of slabs. */
export function runPullback(run: PullbackRun): void {
  const { of, sweep, slabs, tile, q, k, v, d, weights, initial, normaliser, update = true, out } = run;
  const [featureDim, valueDim] = [q.dim(3), v.dim(3)];
  const tiles = out.dim(0);
  kernel.run(q.device, {
    spec: {
      of,
      featureDim,
      valueDim,
      slabs,
      tile,
      qWidth: rowWidth(q),
      kWidth: rowWidth(k),
      vWidth: rowWidth(v),
      dWidth: rowWidth(d),
      initial: initial !== undefined,
      normaliser,
      update,
      lengths: sweep.lengths !== undefined,
      unrolled: !q.device.isSoftware,
    },
    tensors: { q, k, v, d, weights, initialKv: initial?.kv, initialZ: initial?.z, lengths: sweep.lengths, out },
    uniforms: { ...sweepUniforms(sweep, { q, k, v, d }, tiles), outBatch: out.strides[0] ?? 0 },
    grid: [tiles * sweep.heads * sweep.segments * sweep.batch],
  });
}
