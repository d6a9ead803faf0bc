// What the backward needs of each row besides vectors: logsumexp in base 2, 1 / delta~, beta, c.
// tile    1 row a lane, 64 lanes
// bytes   reads 8 (dim + valueDim) + 8 a row, writes 16; with a lambda a query 4 more each
// limits  any head dimension
// source  Zuo et al. 2025 (arXiv 2510.01450), backward; c is the derivative of the ridge lambda omega through omega, which the
//         published formula leaves out
import type { Tensor } from '@heed/core';
import { defineKernel, read, write } from '@heed/core/~internal';

interface RowSpec {
  [name: string]: number;
  tokenLambda: number;
}

const terms = defineKernel({
  name: 'lla-row-terms',
  bindings: {
    g: read<RowSpec>('f32'),
    out: read<RowSpec>('f32'),
    stats: read<RowSpec>('f32'),
    rho: read<RowSpec>('f32'),
    u: read<RowSpec>('f32'),
    ridge: read<RowSpec>('f32', { when: (s) => s.tokenLambda === 1 }),
    rows: write<RowSpec>('f32', { width: 4 }),
    dRidge: write<RowSpec>('f32', { when: (s) => s.tokenLambda === 1 }),
  },
  uniforms: { count: 'u32', dim: 'u32', valueDim: 'u32', lambda: 'f32', exact: 'f32' },
  wgsl: (s: RowSpec) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups) * 64u + lane;
      if (row >= uniforms.count) { return; }
      let share = 1.0 / load_stats(2u * row + 1u);
      var beta = 0.0;
      for (var i = 0u; i < uniforms.valueDim; i++) { beta += load_g(row * uniforms.valueDim + i) * load_out(row * uniforms.valueDim + i); }
      beta *= share;
      var ur = 0.0;
      var rr = 0.0;
      for (var i = 0u; i < uniforms.dim; i++) {
        let rho = load_rho(row * uniforms.dim + i);
        ur += load_u(row * uniforms.dim + i) * rho;
        rr += rho * rho;
      }
      let along = ur - beta * rr;
      store_rows(row, vec4f(load_stats(2u * row), share, beta, uniforms.exact * ${s.tokenLambda === 1 ? 'load_ridge(row)' : 'uniforms.lambda'} * along));
      ${s.tokenLambda === 1 ? 'store_dRidge(row, along);' : ''}
    }`,
});

/** rows [.., 4]: logsumexp in base 2, 1 / delta~, beta, c; and the gradient of a lambda a query. */
export function runRowTerms(
  operands: { g: Tensor; out: Tensor; stats: Tensor; rho: Tensor; u: Tensor; rows: Tensor; dRidge: Tensor | undefined },
  lambda: number | Tensor,
  exact: boolean,
): void {
  const { g, rho, rows } = operands;
  const scalar = typeof lambda === 'number';
  const count = rows.size / 4;
  terms.run(g.device, {
    spec: { tokenLambda: scalar ? 0 : 1 },
    tensors: { ...operands, ridge: scalar ? undefined : lambda },
    uniforms: { count, dim: rho.dim(-1), valueDim: g.dim(-1), lambda: scalar ? lambda : 0, exact: exact ? 1 : 0 },
    grid: [Math.ceil(count / 64)],
  });
}

// dq of each row from its sums over keys.
// tile    1 diagonal block of Sigma (all coordinates of a row, where it is kept whole) a lane, 64 lanes
// bytes   reads 16 dim + 20, writes 4 dim a row
// source  Zuo et al. 2025, backward, the derivative by the query
const ends = defineKernel({
  name: 'lla-query-end',
  bindings: {
    sums: read('f32'),
    mu: read('f32'),
    rho: read('f32'),
    u: read('f32'),
    rows: read('f32', { width: 4 }),
    tau: read('f32'),
    out: write('f32'),
  },
  uniforms: { count: 'u32', dim: 'u32', block: 'u32', scale: 'f32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let part = workgroupIndex(group, groups) * 64u + lane;
      let blocks = uniforms.dim / uniforms.block;
      if (part >= uniforms.count * blocks) { return; }
      let row = part / blocks;
      let first = row * uniforms.dim + (part % blocks) * uniforms.block;
      let beta = load_rows(row).z;
      let tau = load_tau(row);
      // sums over keys of p E and p R in this block: p (z . x) sums to mu . x
      var e = 0.0;
      var r = 0.0;
      for (var i = first; i < first + uniforms.block; i++) {
        let mu = load_mu(i);
        let rho = load_rho(i);
        e += (2.0 * beta * rho - load_u(i)) * mu;
        r += rho * mu;
      }
      for (var i = first; i < first + uniforms.block; i++) {
        let rho = load_rho(i);
        let u = load_u(i);
        store_out(i, uniforms.scale * load_sums(i) + u - 2.0 * beta * rho + (tau + e) * rho - r * u);
      }
    }`,
});

/** dq from sums = sum_j P_j k_j: h sums - e + tau rho + (sum p E) rho - (sum p R) u. */
export function runQueryEnd(
  operands: { sums: Tensor; mu: Tensor; rho: Tensor; u: Tensor; rows: Tensor; tau: Tensor; out: Tensor },
  block: number,
  scale: number,
): void {
  const { out, rho } = operands;
  const dim = rho.dim(-1);
  const count = out.size / dim;
  ends.run(out.device, {
    spec: {},
    tensors: operands,
    uniforms: { count, dim, block, scale },
    grid: [Math.ceil((count * (dim / block)) / 64)],
  });
}

// omega of each row from its logsumexp: exp(lse - row maximum), the maximum found again.
// tile    1 row x 64 lanes, lanes over keys
// bytes   reads 4 dim a row and 4 dim a pair of query and key (from L2), writes 4 a row
// limits  rows without a key write 0
const maxima = defineKernel({
  name: 'lla-row-scale',
  bindings: { q: read('f32'), k: read('f32'), lse: read('f32'), out: write('f32') },
  uniforms: { rows: 'u32', queries: 'u32', keys: 'u32', heads: 'u32', dim: 'u32', kBatch: 'u32', shift: 'i32', scale: 'f32' },
  wgsl: () => `
    var<workgroup> best: array<f32, 64>;
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups);
      if (row >= uniforms.rows) { return; }
      let head = row % uniforms.heads;
      let token = (row / uniforms.heads) % uniforms.queries;
      let batch = row / (uniforms.heads * uniforms.queries);
      let end = u32(clamp(i32(token) + 1 + uniforms.shift, 0, i32(uniforms.keys)));
      var most = NEG;
      for (var key = lane; key < end; key += 64u) {
        var score = 0.0;
        let at = batch * uniforms.kBatch + (key * uniforms.heads + head) * uniforms.dim;
        for (var i = 0u; i < uniforms.dim; i++) { score += load_q(row * uniforms.dim + i) * load_k(at + i); }
        most = max(most, score * uniforms.scale);
      }
      best[lane] = most;
      workgroupBarrier();
      if (lane != 0u) { return; }
      for (var i = 1u; i < min(64u, end); i++) { most = max(most, best[i]); }
      store_out(row, select(0.0, exp(load_lse(row) - most), end > 0u));
    }`,
});

/** omega = sum_j exp(score_j - row maximum), [batch, queries, heads]. */
export function runRowScale(
  operands: { q: Tensor; k: Tensor; lse: Tensor; out: Tensor },
  values: { queries: number; keys: number; heads: number; causal: boolean; scale: number },
): void {
  const { q, k, out } = operands;
  const { queries, keys, heads, causal, scale } = values;
  maxima.run(q.device, {
    spec: {},
    tensors: operands,
    uniforms: {
      rows: out.size,
      queries,
      keys,
      heads,
      dim: q.dim(3),
      kBatch: k.strides[0] ?? 0,
      shift: causal ? keys - queries : keys,
      scale,
    },
    grid: [out.size],
  });
}
