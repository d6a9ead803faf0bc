// Sigma of each query by itself, for narrow heads: Sigma = sum_j p_j z_j z_j^T + lambda I.
// tile    4 queries a group, one 4 x 4 block of Sigma for all four in the registers of a lane; `others` keys a step
// bytes   k once a workgroup (from L2); 64 bytes a block and query written, in slabs of queries of at most 64 MiB
// limits  headDim <= 64, Sigma whole; dim^2 + 2 dim operations a pair
// source  Zuo et al. 2025 (arXiv 2510.01450), section 3; keys and queries are shifted by the group's first query against cancellation
import type { Tensor } from '@heed/core';
import { defineKernel, empty, read, unroll, write } from '@heed/core/~internal';
import { rowLayout } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { fixedLoops, log2e, type Place, placeText, placeUniforms, placeValues } from './common.js';

interface SigmaSpec {
  fixed: number;
  [name: string]: number;
  dim: number;
  items: number;
  groups: number;
  others: number;
}

/** 4 x 4 blocks of the lower triangle. */
export const blocksOf = (dim: number): number => {
  const n = Math.ceil(dim / 4);
  return (n * (n + 1)) / 2;
};

const sigma = defineKernel({
  name: 'lla-sigma',
  bindings: {
    q: read<SigmaSpec>('f32', { width: (s) => s.items }),
    k: read<SigmaSpec>('f32', { width: (s) => s.items }),
    lse: read<SigmaSpec>('f32'),
    mu: read<SigmaSpec>('f32', { width: (s) => s.items }),
    out: write<SigmaSpec>('f32', { width: 4 }),
  },
  uniforms: { ...placeUniforms, firstTile: 'u32', vectors: 'u32' },
  wgsl: (s: SigmaSpec) => {
    const row = rowLayout(s.dim);
    const { stride } = row;
    const blocks = blocksOf(s.dim);
    const lanes = blocks * s.groups;
    const rows = 4 * s.groups;
    const each = (text: (n: number) => string): string => unroll(4, text);
    return `
    ${['q', 'k', 'mu'].map((name) => pairs.rowLoad(name, row, s.items)).join('\n')}
    ${placeText(s.dim, s.dim)}
    ${pairs.totalText}
    ${pairs.tileMemory('q', row, rows)}
    ${pairs.tileMemory('k', row, s.others)}
    var<workgroup> plane_w: array<vec4f, ${s.others * s.groups}>;
    var<workgroup> rowStats: array<vec4f, ${rows}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let own = workgroupIndex(group, groups);
      if (own >= uniforms.workgroups) { return; }
      let index = own + uniforms.firstTile;
      let row = index / uniforms.tiles;
      let head = row % uniforms.heads;
      let batch = row / uniforms.heads;
      let firstRow = (index % uniforms.tiles) * ${rows}u;
      ${pairs.stage('q', row, { count: rows, lanes, first: 'firstRow', end: 'uniforms.queries', base: (r) => `qBase(batch, ${r}, head)` })}
      for (var e = lane; e < ${rows}u; e += ${lanes}u) {
        let token = firstRow + e;
        var stat = vec4f();
        if (token < uniforms.queries) {
          let at = (batch * uniforms.queries + token) * uniforms.heads + head;
          stat = vec4f(max(load_lse(at), NEG) * ${log2e}, f32(visible(token)), 0.0, 0.0);
        }
        rowStats[e] = stat;
      }
      workgroupBarrier();
      let quad = lane / ${blocks}u;
      let block = lane % ${blocks}u;
      // row and column of the block: its place in the lower triangle
      var bi = u32(sqrt(2.0 * f32(block) + 0.25) - 0.5);
      if (bi * (bi + 1u) / 2u > block) { bi -= 1u; }
      if ((bi + 1u) * (bi + 2u) / 2u <= block) { bi += 1u; }
      let bj = block - bi * (bi + 1u) / 2u;
      let shiftI = tile_q[4u * quad * ${stride}u + bi];
      let shiftJ = tile_q[4u * quad * ${stride}u + bj];
      ${each((n) => each((r) => `var a${n}${r} = vec4f();`))}
      let end = visible(min(firstRow + ${rows}u, uniforms.queries) - 1u);
      for (var at0 = 0u; at0 < end; at0 += ${s.others}u) {
        ${pairs.stage('k', row, { count: s.others, lanes, first: 'at0', end: 'end', base: (r) => `kBase(batch, ${r}, head)` })}
        workgroupBarrier();
        for (var e = lane; e < ${rows * s.others}u; e += ${lanes}u) {
          let r = e % ${rows}u;
          let j = e / ${rows}u;
          var sum = vec4f();
          for (var vec = 0u; vec < ${pairs.bound(s.fixed, row.vectors, 'uniforms.vectors')}; vec++) { sum = fma(tile_q[r * ${stride}u + vec], tile_k[j * ${stride}u + vec], sum); }
          let stat = rowStats[r];
          plane_w[j * ${s.groups}u + r / 4u][r % 4u] = select(0.0, exp2(total(sum) * uniforms.scale2 - stat.x), at0 + j < u32(stat.y));
        }
        workgroupBarrier();
        for (var j = 0u; j < ${pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`)}; j++) {
          let w = plane_w[j * ${s.groups}u + quad];
          let ki = tile_k[j * ${stride}u + bi] - shiftI;
          let kj = tile_k[j * ${stride}u + bj] - shiftJ;
          ${each((r) => `let o${r} = ki.${'xyzw'[r]} * kj;`)}
          ${each((n) => each((r) => `a${n}${r} = fma(vec4f(w.${'xyzw'[n]}), o${r}, a${n}${r});`))}
        }
        workgroupBarrier();
      }
      ${each(
        (n) => `{ let r = 4u * quad + ${n}u;
        let token = firstRow + r;
        if (token < uniforms.queries) {
          let base = qBase(batch, token, head);
          let qi = tile_q[r * ${stride}u + bi] - shiftI;
          let qj = tile_q[r * ${stride}u + bj] - shiftJ;
          let mi = vector_mu(base, bi);
          let mj = vector_mu(base, bj);
          // sum p (k - q)(k - q)^T = sum p k k^T - mu q^T - q mu^T - q q^T
          let at = ((own * ${rows}u + r) * ${blocks}u + block) * 4u;
          ${each((r) => `store_out(at + ${r}u, select(vec4f(), a${n}${r} - mi.${'xyzw'[r]} * qj - qi.${'xyzw'[r]} * (mj + qj), visible(token) > 0u));`)}
        } }`,
      )}
    }`;
  },
});

// x of Sigma x = rhs by the Cholesky factor, one workgroup a query: the right side is a further row of the matrix, so that the
// factor's column steps substitute forward, too.
// tile    1 query x 64 lanes (256 over dim 16), the triangle in workgroup memory
// bytes   reads 64 a block and 4 dim, writes 4 dim a query; 2 (dim + 1) (dim + 2) bytes of workgroup memory
// limits  headDim <= 64; dim^3 / 3 operations a query; a pivot that rounding made smaller than 1e-30 counts as that
const factor = defineKernel({
  name: 'lla-factor-solve',
  bindings: {
    sigma: read<FactorSpec>('f32'),
    rhs: read<FactorSpec>('f32'),
    ridge: read<FactorSpec>('f32', { when: (s) => s.tokenLambda === 1 }),
    out: write<FactorSpec>('f32'),
  },
  uniforms: { workgroups: 'u32', firstTile: 'u32', tiles: 'u32', rows: 'u32', queries: 'u32', heads: 'u32', lambda: 'f32', n: 'u32' },
  wgsl: ({ dim, tokenLambda, lanes }: FactorSpec) => `
    var<workgroup> l: array<f32, ${Math.ceil(((dim + 1) * (dim + 2)) / 8) * 4}>;
    fn at(i: u32, j: u32) -> u32 { return i * (i + 1u) / 2u + j; }
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let own = workgroupIndex(group, groups);
      if (own >= uniforms.workgroups) { return; }
      let index = own / uniforms.rows + uniforms.firstTile;
      let token = (index % uniforms.tiles) * uniforms.rows + own % uniforms.rows;
      if (token >= uniforms.queries) { return; }
      let head = (index / uniforms.tiles) % uniforms.heads;
      let batch = index / uniforms.tiles / uniforms.heads;
      let row = (batch * uniforms.queries + token) * uniforms.heads + head;
      let n = uniforms.n;
      let ridge = ${tokenLambda === 1 ? 'load_ridge(row)' : 'uniforms.lambda'};
      for (var e = lane; e < n * n; e += ${lanes}u) {
        let i = e / n;
        let j = e % n;
        if (j <= i) {
          let block = (i / 4u) * (i / 4u + 1u) / 2u + j / 4u;
          l[at(i, j)] = load_sigma((own * ${blocksOf(dim)}u + block) * 16u + (i % 4u) * 4u + j % 4u) + select(0.0, ridge, i == j);
        }
      }
      for (var i = lane; i < n; i += ${lanes}u) { l[at(n, i)] = load_rhs(row * n + i); }
      workgroupBarrier();
      for (var c = 0u; c < n; c++) {
        let root = sqrt(max(l[at(c, c)], 1e-30));
        // every lane has read the diagonal before it changes
        workgroupBarrier();
        for (var i = c + lane; i <= n; i += ${lanes}u) { l[at(i, c)] = select(l[at(i, c)] / root, root, i == c); }
        workgroupBarrier();
        // a row is shared by several lanes
        for (var i = c + 1u + lane / ${lanes / 32}u; i <= n; i += 32u) {
          let share = l[at(i, c)];
          for (var j = c + 1u + lane % ${lanes / 32}u; j <= min(i, n - 1u); j += ${lanes / 32}u) { l[at(i, j)] -= share * l[at(j, c)]; }
        }
        workgroupBarrier();
      }
      for (var step = 0u; step < n; step++) {
        let c = n - 1u - step;
        let x = l[at(n, c)] / l[at(c, c)];
        workgroupBarrier();
        for (var k = lane; k < c; k += ${lanes}u) { l[at(n, k)] -= l[at(c, k)] * x; }
        if (lane == 0u) { store_out(row * n + c, x); }
        workgroupBarrier();
      }
    }`,
});

interface FactorSpec {
  [name: string]: number;
  lanes: number;
  dim: number;
  tokenLambda: number;
}

const slabBytes = 64 * 2 ** 20;

/** Queries and keys a workgroup of the matrices takes; pure. */
function sigmaTile(dim: number): { groups: number; others: number } {
  const groups = Math.min(16, Math.ceil(64 / blocksOf(dim)));
  return { groups, others: dim >= 16 ? 32 : 16 };
}

/** Writes Sigma^-1 rhs, [batch, queries, heads, dim]. `mu`: mean of the keys less the query. */
export function runSigmaSolve(
  place: Place,
  operands: { q: Tensor; k: Tensor; lse: Tensor; mu: Tensor; rhs: Tensor; out: Tensor },
  lambda: number | Tensor,
): void {
  const { q, k, lse, mu, rhs, out } = operands;
  const { dim, queries, heads, batch } = place;
  const { groups, others } = sigmaTile(dim);
  const rows = 4 * groups;
  const tiles = Math.ceil(queries / rows);
  const blocks = blocksOf(dim);
  const all = batch * heads * tiles;
  const slab = Math.max(1, Math.min(all, Math.floor(slabBytes / (rows * blocks * 64))));
  const matrices = empty(q.device, [slab * rows, blocks, 16]);
  const values = placeValues(place, tiles, k);
  for (let firstTile = 0; firstTile < all; firstTile += slab) {
    const workgroups = Math.min(slab, all - firstTile);
    sigma.run(q.device, {
      spec: { fixed: fixedLoops(q.device), dim, items: dim % 4 === 0 ? 4 : 1, groups, others },
      tensors: { q, k, lse, mu, out: matrices },
      uniforms: { ...values, workgroups, firstTile, vectors: Math.ceil(dim / 4) },
      grid: [workgroups],
    });
    runFactor({ sigma: matrices, rhs, out }, { workgroups: workgroups * rows, firstTile, tiles, rows, queries, heads, dim }, lambda);
  }
  matrices.dispose();
}

/** Writes the solutions of `workgroups` systems from tile `firstTile` on. */
export function runFactor(
  operands: { sigma: Tensor; rhs: Tensor; out: Tensor },
  place: { workgroups: number; firstTile: number; tiles: number; rows: number; queries: number; heads: number; dim: number },
  lambda: number | Tensor,
): void {
  const scalar = typeof lambda === 'number';
  const { dim, ...values } = place;
  factor.run(operands.out.device, {
    spec: { lanes: dim <= 16 ? 64 : 256, dim, tokenLambda: scalar ? 0 : 1 },
    tensors: { ...operands, ridge: scalar ? undefined : lambda },
    uniforms: { ...values, lambda: scalar ? lambda : 0, n: dim },
    grid: [place.workgroups],
  });
}
