// One token of a stream with the second-order Taylor map: S += phi(k) v^T and z += phi(k) in place of the old, out = phi(q)^T S / (phi(q).z + eps).
// tile    all features x `columns` of a head's S a workgroup, `rows` x 4 of it a lane, in the compressed order 1, x_i, x_i x_j (i <= j)
// bytes   reads and writes every state once, which bounds it; phi is made in workgroup memory while S is on its way
// limits  feature dimension <= 40; z is written to a tensor of its own: every column tile reads it
// source  Arora et al. 2024 (arXiv 2402.18668), section 4
import type { Tensor } from '@heed/core';
import { defineKernel, read, readWrite, unroll, wgslFloat, write } from '@heed/core/~internal';
import { vectorLoad, vectorStore } from '../../scan/text.js';
import { tokenStepTile } from '../../scan/token-step.js';
import { rowWidth } from '../../scan/views.js';
import { symmetricFeatures } from '../layout.js';

interface StepSpec {
  [name: string]: string | number | boolean;
  featureDim: number;
  valueDim: number;
  columns: number;
  /** A multiple of 4. */
  rows: number;
  normalise: boolean;
  vWidth: number;
  outWidth: number;
  stateWidth: number;
}

const kernel = defineKernel({
  name: 'based-token-step',
  bindings: {
    q: read<StepSpec>('float'),
    k: read<StepSpec>('float'),
    v: read<StepSpec>('float', { width: (s) => s.vWidth }),
    before: read<StepSpec>('f32'),
    z: write<StepSpec>('f32'),
    state: readWrite<StepSpec>('f32', { width: (s) => s.stateWidth }),
    out: write<StepSpec>('float', { width: (s) => s.outWidth }),
  },
  uniforms: {
    qBatch: 'u32',
    qHead: 'u32',
    kBatch: 'u32',
    kHead: 'u32',
    vBatch: 'u32',
    vHead: 'u32',
    outBatch: 'u32',
    outHead: 'u32',
    heads: 'u32',
    columnTiles: 'u32',
    workgroups: 'u32',
    featureScale: 'f32',
    epsilon: 'f32',
  },
  wgsl: stepText,
});

function stepText({ featureDim, valueDim, columns, rows, normalise, vWidth, outWidth, stateWidth }: StepSpec): string {
  const features = symmetricFeatures(featureDim);
  const groups = columns / 4;
  const slabs = Math.ceil(features / rows);
  const lanes = groups * slabs;
  // slabs take turns with rows: what they load together lies together
  const feature = (r: number): string => `(slab + ${r * slabs}u)`;
  const full = (r: number): boolean => (r + 1) * slabs <= features;
  const each = (text: (r: number) => string): string => unroll(rows, text);
  const stateAt = (r: number): string => `(first + ${full(r) ? feature(r) : `min(${feature(r)}, ${features - 1}u)`}) * ${valueDim}u, d`;
  const base = (name: string): string => `batch * uniforms.${name}Batch + head * uniforms.${name}Head`;
  return `
    ${vectorLoad('v', vWidth, valueDim)}
    ${vectorLoad('state', stateWidth, valueDim)}
    ${vectorStore('state', stateWidth, valueDim)}
    ${vectorStore('out', outWidth, valueDim)}
    var<workgroup> phiK: array<f32, ${slabs * rows}>;
    var<workgroup> phiQ: array<f32, ${slabs * rows}>;
    ${normalise ? `var<workgroup> weights: array<f32, ${slabs * rows}>; var<workgroup> totals: array<f32, ${4 * Math.ceil(slabs / 4)}>;` : ''}
    ${slabs > 1 ? `var<workgroup> partial: array<vec4f, ${lanes}>;` : ''}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.workgroups) { return; }
      let tile = index % uniforms.columnTiles;
      let pair = index / uniforms.columnTiles;
      let head = pair % uniforms.heads;
      let batch = pair / uniforms.heads;
      let column = lane % ${groups}u;
      let slab = lane / ${groups}u;
      let d = tile * ${columns}u + column * 4u;
      let first = pair * ${features}u;
      ${each((r) => `var s${r} = vector_state(${stateAt(r)});`)}
      let value = vector_v(${base('v')}, d);
      let queryAt = ${base('q')};
      let keyAt = ${base('k')};
      for (var f = lane; f < ${slabs * rows}u; f += ${lanes}u) {
        // the coordinates of feature f: the j-th behind the i-th, counted in rows of a triangle
        var i = 0u;
        var rest = max(f, ${featureDim + 1}u) - ${featureDim + 1}u;
        loop {
          if (rest < ${featureDim}u - i || i >= ${featureDim - 1}u) { break; }
          rest -= ${featureDim}u - i;
          i++;
        }
        var j = min(i + rest, ${featureDim - 1}u);
        if (f <= ${featureDim}u) { i = max(f, 1u) - 1u; j = i; }
        let scale = uniforms.featureScale;
        var key = load_k(keyAt + i) * scale;
        var query = load_q(queryAt + i) * scale;
        if (f > ${featureDim}u) {
          let half = select(1.0, ${wgslFloat(Math.SQRT1_2)}, i == j);
          key *= load_k(keyAt + j) * scale * half;
          query *= load_q(queryAt + j) * scale * half;
        }
        if (f == 0u) { key = 1.0; query = 1.0; }
        if (f >= ${features}u) { key = 0.0; query = 0.0; }
        phiK[f] = key;
        phiQ[f] = query;
        if (f < ${features}u) {
          let sum = load_before(first + f) + key;
          if (tile == 0u) { store_z(first + f, sum); }
          ${normalise ? 'weights[f] = query * sum;' : ''}
        } ${normalise ? 'else { weights[f] = 0.0; }' : ''}
      }
      workgroupBarrier();
      var sum = vec4f();
      ${normalise ? 'var total = 0.0;' : ''}
      ${each((r) => `s${r} = fma(vec4f(phiK[${feature(r)}]), value, s${r}); sum = fma(vec4f(phiQ[${feature(r)}]), s${r}, sum); ${normalise ? `total += weights[${feature(r)}];` : ''}`)}
      ${each((r) => `${full(r) ? '' : `if (${feature(r)} < ${features}u) `}{ vectorTo_state(${stateAt(r)}, s${r}); }`)}
      ${
        slabs > 1
          ? `partial[lane] = sum;
      ${normalise ? 'if (column == 0u) { totals[slab] = total; }' : ''}
      workgroupBarrier();
      if (slab > 0u) { return; }
      // a bound that compilers cannot see: some unroll the sum over slabs and take seconds for it
      let slabs = min(${slabs}u, ${slabs - 1}u + groups.x);
      for (var other = 1u; other < slabs; other++) { sum += partial[other * ${groups}u + column]; ${normalise ? 'total += totals[other];' : ''} }`
          : ''
      }
      vectorTo_out(${base('out')}, d, sum${normalise ? ' / (total + uniforms.epsilon)' : ''});
    }`;
}

/** One token of a stream. */
export interface BasedTokenStep {
  /** [batch, 1, heads, featureDim]; v [batch, 1, heads, valueDim]; views are fine. */
  q: Tensor;
  k: Tensor;
  v: Tensor;
  /** Factor on every coordinate, the square root of that on q.k. */
  featureScale: number;
  epsilon: number;
  /** Divides by phi(q).z. */
  normalise: boolean;
}

/**
 * Records the step of one token.
 * @param kv f32 [batch, heads, features, valueDim], updated in place
 * @param sums f32 [batch, heads, features], before and after
 */
export function runBasedStep(step: BasedTokenStep, kv: Tensor, sums: { before: Tensor; after: Tensor }, out: Tensor): void {
  const { q, k, v, normalise, featureScale, epsilon } = step;
  const [batch, , heads, featureDim] = k.shape as [number, number, number, number];
  const valueDim = v.dim(3);
  const { columns, rows } = tokenStepTile(batch * heads, { keyDim: symmetricFeatures(featureDim), valueDim });
  const columnTiles = Math.ceil(valueDim / columns);
  const workgroups = columnTiles * heads * batch;
  const at = (x: Tensor, axis: number): number => x.strides[axis] ?? 0;
  kernel.run(k.device, {
    spec: {
      featureDim,
      valueDim,
      columns,
      rows,
      normalise,
      vWidth: rowWidth(v),
      outWidth: rowWidth(out),
      stateWidth: valueDim % 4 === 0 ? 4 : 1,
    },
    tensors: { q, k, v, before: sums.before, z: sums.after, state: kv, out },
    uniforms: {
      qBatch: at(q, 0),
      qHead: at(q, 2),
      kBatch: at(k, 0),
      kHead: at(k, 2),
      vBatch: at(v, 0),
      vHead: at(v, 2),
      outBatch: at(out, 0),
      outHead: at(out, 2),
      heads,
      columnTiles,
      workgroups,
      featureScale,
      epsilon,
    },
    grid: [workgroups],
  });
}
