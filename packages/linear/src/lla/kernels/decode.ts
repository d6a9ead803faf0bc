// One query over a cache in one pass: sums of w y y^T over keys, y = [k, v, 1], hold omega, M, s0, Sigma and N = sum w v k^T at once;
// then rho by Cholesky and o = (s0 - (N - s0 q^T) rho) / delta.
// tile    a span of keys a workgroup, 16 keys a step; 4 x 4 blocks of the sums in registers, the lower triangle of k k^T only
// bytes   reads k and v once; writes 64 bytes a block and span, about (D^2 / 2 + D Dv) floats
// limits  headDim <= 64; dim^2 + 2 dim valueDim operations a key; spans join by exp(m) in a fixed order
// source  Zuo et al. 2025 (arXiv 2510.01450), section 3, with N in place of a second pass
import type { Device, Tensor } from '@heed/core';
import { constantTable, defineKernel, empty, read, unroll, write } from '@heed/core/~internal';
import { rowLayout } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { log2e } from './common.js';
import { blocksOf, runFactor } from './sigma.js';

const tokens = 16;

/** Pairs of vectors (row, column) of y whose products are summed; k first, then v, then the one. */
export function decodeBlocks(dim: number, valueDim: number): [number, number][] {
  const [n, m] = [Math.ceil(dim / 4), Math.ceil(valueDim / 4)];
  const list: [number, number][] = [];
  for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) list.push([i, j]);
  for (let j = 0; j < n; j++) list.push([n + m, j]);
  for (let i = 0; i < m; i++) list.push([n + i, n + m]);
  list.push([n + m, n + m]);
  for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) list.push([n + i, j]);
  return list;
}

interface DecodeSpec {
  [name: string]: number;
  dim: number;
  valueDim: number;
  items: number;
  valueItems: number;
  lanes: number;
}

const partial = defineKernel({
  name: 'lla-decode',
  bindings: {
    q: read<DecodeSpec>('f32', { width: (s) => s.items }),
    k: read<DecodeSpec>('float', { width: (s) => s.items }),
    v: read<DecodeSpec>('float', { width: (s) => s.valueItems }),
    places: read<DecodeSpec>('u32'),
    out: write<DecodeSpec>('f32', { width: 4 }),
    maxima: write<DecodeSpec>('f32'),
  },
  uniforms: { spans: 'u32', span: 'u32', heads: 'u32', keys: 'u32', kBatch: 'u32', vBatch: 'u32', scale2: 'f32', vectors: 'u32' },
  wgsl: (s: DecodeSpec) => {
    const [keyRow, valueRow] = [rowLayout(s.dim), rowLayout(s.valueDim)];
    const width = keyRow.vectors + valueRow.vectors + 1;
    const stride = width | 1;
    const blocks = decodeBlocks(s.dim, s.valueDim).length;
    const each = Math.ceil(blocks / s.lanes);
    return `
    ${pairs.rowLoad('q', keyRow, s.items)}
    ${pairs.rowLoad('k', keyRow, s.items)}
    ${pairs.rowLoad('v', valueRow, s.valueItems)}
    ${pairs.totalText}
    var<workgroup> query: array<vec4f, ${keyRow.vectors}>;
    var<workgroup> tile: array<vec4f, ${tokens * stride}>;
    var<workgroup> weights: array<f32, ${tokens}>;
    @compute @workgroup_size(${s.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let own = group.x;
      let row = group.y;
      let head = row % uniforms.heads;
      let batch = row / uniforms.heads;
      let first = own * uniforms.span;
      let end = min(first + uniforms.span, uniforms.keys);
      for (var e = lane; e < ${keyRow.vectors}u; e += ${s.lanes}u) { query[e] = vector_q(row * ${s.dim}u, e); }
      ${unroll(each, (b) => `let place${b} = load_places(min(lane + ${b * s.lanes}u, ${blocks - 1}u)); ${unroll(4, (r) => `var a${b}${r} = vec4f();`)}`)}
      var top = NEG;
      for (var at0 = first; at0 < end; at0 += ${tokens}u) {
        let count = min(${tokens}u, end - at0);
        workgroupBarrier();
        for (var e = lane; e < ${tokens * width}u; e += ${s.lanes}u) {
          let j = e / ${width}u;
          let vec = e % ${width}u;
          var value = vec4f();
          if (j < count) {
            let token = (at0 + j) * uniforms.heads + head;
            if (vec < ${keyRow.vectors}u) { value = vector_k(batch * uniforms.kBatch + token * ${s.dim}u, vec); }
            else if (vec < ${width - 1}u) { value = vector_v(batch * uniforms.vBatch + token * ${s.valueDim}u, vec - ${keyRow.vectors}u); }
            else { value = vec4f(1.0, 0.0, 0.0, 0.0); }
          }
          tile[j * ${stride}u + vec] = value;
        }
        workgroupBarrier();
        if (lane < ${tokens}u) {
          var sum = vec4f();
          for (var vec = 0u; vec < uniforms.vectors; vec++) { sum = fma(query[vec], tile[lane * ${stride}u + vec], sum); }
          weights[lane] = select(NEG, total(sum) * uniforms.scale2, lane < count);
        }
        workgroupBarrier();
        var next = top;
        for (var j = 0u; j < count; j++) { next = max(next, weights[j]); }
        let keep = exp2(top - next);
        top = next;
        ${unroll(each, (b) => unroll(4, (r) => `a${b}${r} *= keep;`))}
        for (var j = 0u; j < count; j++) {
          let w = exp2(weights[j] - next);
          ${unroll(
            each,
            (b) => `{ let y = w * tile[j * ${stride}u + place${b} / 65536u];
            let x = tile[j * ${stride}u + place${b} % 65536u];
            ${unroll(4, (r) => `a${b}${r} = fma(vec4f(y.${'xyzw'[r]}), x, a${b}${r});`)} }`,
          )}
        }
      }
      if (lane == 0u) { store_maxima(row * uniforms.spans + own, top); }
      ${unroll(
        each,
        (b) => `if (lane + ${b * s.lanes}u < ${blocks}u) {
        let at = ((row * uniforms.spans + own) * ${blocks}u + lane + ${b * s.lanes}u) * 4u;
        ${unroll(4, (r) => `store_out(at + ${r}u, a${b}${r});`)}
      }`,
      )}
    }`;
  },
});

// Sums of the spans, each times exp2(its maximum - the largest).
// tile    1 vector of 4 sums a lane, 64 lanes
// bytes   reads 16 a vector and span (and the maxima, 4 a span), writes 16 a vector
const merge = defineKernel({
  name: 'lla-decode-merge',
  bindings: { parts: read('f32', { width: 4 }), maxima: read('f32'), out: write('f32', { width: 4 }) },
  uniforms: { spans: 'u32', items: 'u32', rows: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.rows * uniforms.items) { return; }
      let row = i / uniforms.items;
      var top = NEG;
      for (var span = 0u; span < uniforms.spans; span++) { top = max(top, load_maxima(row * uniforms.spans + span)); }
      var sum = vec4f();
      for (var span = 0u; span < uniforms.spans; span++) {
        let at = row * uniforms.spans + span;
        sum += exp2(load_maxima(at) - top) * load_parts(at * uniforms.items + i % uniforms.items);
      }
      store_out(i, sum);
    }`,
});

interface EndSpec {
  [name: string]: number;
  dim: number;
  valueDim: number;
}

/** Places of omega, M, s0 and N in the sums of a row. */
function placesText({ dim, valueDim }: EndSpec): string {
  const [n, m] = [Math.ceil(dim / 4), Math.ceil(valueDim / 4)];
  const means = (n * (n + 1)) / 2;
  const values = means + n;
  const weights = values + m;
  return `
    fn sums(row: u32, block: u32, r: u32, c: u32) -> f32 { return load_parts(((row * ${weights + 1 + n * m}u + block) * 4u + r) * 4u + c); }
    fn omega(row: u32) -> f32 { return sums(row, ${weights}u, 0u, 0u); }
    fn meanKey(row: u32, i: u32) -> f32 { return sums(row, ${means}u + i / 4u, 0u, i % 4u) / omega(row); }
    fn meanValue(row: u32, i: u32) -> f32 { return sums(row, ${values}u + i / 4u, i % 4u, 0u) / omega(row); }
    fn valueKey(row: u32, i: u32, j: u32) -> f32 { return sums(row, ${weights + 1}u + (i / 4u) * ${n}u + j / 4u, i % 4u, j % 4u) / omega(row); }`;
}

// The system of a row from its sums: Sigma in 4 x 4 blocks of the lower triangle, and mu.
// tile    1 element of Sigma a lane, 64 lanes
// bytes   reads 4 an element and 8 dim a row, writes 4 an element and 4 dim a row
const system = defineKernel({
  name: 'lla-decode-system',
  bindings: { parts: read<EndSpec>('f32'), q: read<EndSpec>('f32'), sigma: write<EndSpec>('f32'), mu: write<EndSpec>('f32') },
  uniforms: { rows: 'u32' },
  wgsl: (s: EndSpec) => `
    ${placesText(s)}
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups) * 64u + lane;
      if (index >= uniforms.rows * ${16 * blocksOf(s.dim)}u) { return; }
      let row = index / ${16 * blocksOf(s.dim)}u;
      let inner = index % ${16 * blocksOf(s.dim)}u;
      let block = inner / 16u;
      var bi = u32(sqrt(2.0 * f32(block) + 0.25) - 0.5);
      if (bi * (bi + 1u) / 2u > block) { bi -= 1u; }
      if ((bi + 1u) * (bi + 2u) / 2u <= block) { bi += 1u; }
      let i = 4u * bi + (inner / 4u) % 4u;
      let j = 4u * (block - bi * (bi + 1u) / 2u) + inner % 4u;
      var value = 0.0;
      if (i < ${s.dim}u && j < ${s.dim}u) {
        let qi = load_q(row * ${s.dim}u + i);
        let qj = load_q(row * ${s.dim}u + j);
        let mi = meanKey(row, i) - qi;
        let mj = meanKey(row, j) - qj;
        value = sums(row, block, (inner / 4u) % 4u, inner % 4u) / omega(row) - mi * qj - qi * (mj + qj);
        if (j == 0u) { store_mu(row * ${s.dim}u + i, mi); }
      }
      store_sigma(index, value);
    }`,
});

// Outputs of a row from its sums and rho: o = (s0 - (N - s0 q^T) rho) / delta.
// tile    1 output a lane, 64 lanes
// bytes   reads 4 dim an output and 12 dim a row, writes one element an output
// limits  |delta| is kept deltaEps from 0
const finish = defineKernel({
  name: 'lla-decode-output',
  bindings: {
    parts: read<EndSpec>('f32'),
    q: read<EndSpec>('f32'),
    mu: read<EndSpec>('f32'),
    rho: read<EndSpec>('f32'),
    out: write<EndSpec>('float'),
  },
  uniforms: { rows: 'u32', dim: 'u32', deltaEps: 'f32' },
  wgsl: (s: EndSpec) => `
    ${placesText(s)}
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups) * 64u + lane;
      if (index >= uniforms.rows * ${s.valueDim}u) { return; }
      let row = index / ${s.valueDim}u;
      let c = index % ${s.valueDim}u;
      let mean = meanValue(row, c);
      var delta = 1.0;
      var slope = 0.0;
      for (var i = 0u; i < uniforms.dim; i++) {
        let rho = load_rho(row * ${s.dim}u + i);
        delta -= load_mu(row * ${s.dim}u + i) * rho;
        slope += (valueKey(row, c, i) - mean * load_q(row * ${s.dim}u + i)) * rho;
      }
      delta += select(-uniforms.deltaEps, uniforms.deltaEps, delta >= 0.0);
      store_out(index, (mean - slope) / delta);
    }`,
});

/** Spans of keys of a decode step: enough workgroups to fill a device, 64 keys or more each; pure. */
export function decodeSpans(keys: number, rows: number): { span: number; spans: number } {
  const wanted = Math.max(1, Math.min(Math.ceil(keys / 64), Math.ceil(2048 / rows)));
  const span = Math.ceil(keys / wanted / tokens) * tokens;
  return { span, spans: Math.ceil(keys / span) };
}

function placeTable(device: Device, dim: number, valueDim: number): ReturnType<typeof constantTable> {
  return constantTable(device, `lla decode ${dim} ${valueDim}`, () =>
    Uint32Array.from(decodeBlocks(dim, valueDim), ([row, column]) => row * 65536 + column),
  );
}

/**
 * Output of one query a batch entry over all of `k` and `v`.
 * @param operands q f32 [batch, 1, heads, dim] contiguous; k, v [batch, keys, heads, ..] with dense tokens; out [batch, 1, heads, valueDim]
 */
export function runDecode(
  operands: { q: Tensor; k: Tensor; v: Tensor; out: Tensor },
  settings: { lambda: number | Tensor; scale: number; deltaEps: number },
): void {
  const { q, k, v, out } = operands;
  const { device } = q;
  const [batch, keys, heads, dim] = k.shape as [number, number, number, number];
  const valueDim = v.dim(3);
  const rows = batch * heads;
  const { span, spans } = decodeSpans(keys, rows);
  const blocks = decodeBlocks(dim, valueDim).length;
  const parts = empty(device, [rows, spans, blocks, 16]);
  const maxima = empty(device, [rows, spans]);
  partial.run(device, {
    spec: {
      dim,
      valueDim,
      items: dim % 4 === 0 ? 4 : 1,
      valueItems: valueDim % 4 === 0 ? 4 : 1,
      lanes: Math.min(256, Math.max(32, 32 * Math.ceil(blocks / 64))),
    },
    tensors: { q, k, v, places: placeTable(device, dim, valueDim), out: parts, maxima },
    uniforms: {
      spans,
      span,
      heads,
      keys,
      kBatch: k.strides[0] ?? 0,
      vBatch: v.strides[0] ?? 0,
      scale2: settings.scale * log2e,
      vectors: Math.ceil(dim / 4),
    },
    grid: [spans, rows],
  });
  let sums = parts;
  if (spans > 1) {
    sums = empty(device, [rows, blocks, 16]);
    const items = blocks * 4;
    merge.run(device, {
      spec: {},
      tensors: { parts, maxima, out: sums },
      uniforms: { spans, items, rows },
      grid: [Math.ceil((rows * items) / 64)],
    });
  }
  const sigma = empty(device, [rows, blocksOf(dim), 16]);
  const mu = empty(device, [rows, dim]);
  const rho = empty(device, [rows, dim]);
  system.run(device, {
    spec: { dim, valueDim },
    tensors: { parts: sums, q, sigma, mu },
    uniforms: { rows },
    grid: [Math.ceil(sigma.size / 64)],
  });
  const place = { workgroups: rows, firstTile: 0, tiles: 1, rows: 1, queries: 1, heads, dim };
  runFactor({ sigma, rhs: mu, out: rho }, place, settings.lambda);
  finish.run(device, {
    spec: { dim, valueDim },
    tensors: { parts: sums, q, mu, rho, out },
    uniforms: { rows, dim, deltaEps: settings.deltaEps },
    grid: [Math.ceil(out.size / 64)],
  });
}
