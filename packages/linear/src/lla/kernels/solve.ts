// Conjugate gradients, one system a query, matrix free: Sigma x = rhs, Sigma = sum_j p_j z_j z_j^T + lambda I, z_j = k_j - q.
// tile    `rows` queries x `others` keys; iterates x, r, p as 4 rows x 4 channels a lane; ends when no query of the tile is active
// bytes   reads q, rhs, writes x once; k once an iteration and tile of queries (from L2); nothing that grows with pairs
// limits  f32; block < dim keeps the diagonal blocks of Sigma; 6 dim operations a pair and iteration
// source  Zuo et al. 2025 (arXiv 2510.01450), official flashlla/ops/cg.py; weights divided by their sum, so that lambda stands alone
import type { Device, Tensor } from '@heed/core';
import { defineKernel, read, unroll, write } from '@heed/core/~internal';
import type { PairTile, RowLayout } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { fixedLoops, layoutsOf, log2e, type Place, placeText, placeUniforms, placeValues, tileFor } from './common.js';

interface SolveSpec extends PairTile {
  fixed: number;
  dim: number;
  block: number;
  items: number;
  tokenLambda: number;
  jacobi: number;
}

const kernel = defineKernel({
  name: 'lla-solve',
  bindings: {
    q: read<SolveSpec>('f32', { width: (s) => s.items }),
    k: read<SolveSpec>('f32', { width: (s) => s.items }),
    lse: read<SolveSpec>('f32'),
    rhs: read<SolveSpec>('f32', { width: (s) => s.items }),
    ridge: read<SolveSpec>('f32', { when: (s) => s.tokenLambda === 1 }),
    out: write<SolveSpec>('f32', { width: (s) => s.items }),
    steps: write<SolveSpec>('u32'),
  },
  uniforms: { ...placeUniforms, lambda: 'f32', maxIterations: 'u32', atol: 'f32', rtol: 'f32', vectors: 'u32' },
  wgsl: solveText,
});

function solveText(s: SolveSpec): string {
  const { keyRow } = layoutsOf({ dim: s.dim, valueDim: s.dim, block: s.block });
  const { stride, vectors, blockVectors } = keyRow;
  const blocks = vectors / blockVectors;
  const each = (text: (n: number) => string): string => unroll(4, text);
  return `
    ${['q', 'k', 'rhs'].map((name) => pairs.rowLoad(name, keyRow, s.items)).join('\n')}
    ${pairs.rowStore('out', keyRow, s.items)}
    ${placeText(s.dim, s.dim)}
    ${pairs.totalText}
    ${pairs.tileMemory('q', keyRow, s.rows)}
    ${pairs.tileMemory('p', keyRow, s.rows)}
    ${pairs.tileMemory('k', keyRow, s.others)}
    ${pairs.planeMemory('w', s)}
    var<workgroup> sums: array<vec4f, ${s.lanes}>;
    var<workgroup> stats: array<vec4f, ${s.rows}>;
    var<workgroup> unfinished: vec4u;
    // sums over the lanes of a row, four rows at once
    fn rowSums(part: vec4f, lane: u32, rb: u32) -> vec4f {
      sums[lane] = part;
      workgroupBarrier();
      var all = vec4f();
      for (var i = 0u; i < ${pairs.bound(s.fixed, vectors, 'uniforms.vectors')}; i++) { all += sums[rb * ${s.columns}u + i]; }
      workgroupBarrier();
      return all;
    }
    @compute @workgroup_size(${s.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${pairs.placeText}
      let firstRow = (uniforms.tiles - 1u - index % uniforms.tiles) * ${s.rows}u;
      ${pairs.laneText(s)}
      ${pairs.stage('q', keyRow, { count: s.rows, lanes: s.lanes, first: 'firstRow', end: 'uniforms.queries', base: (r) => `qBase(batch, ${r}, head)` })}
      for (var e = lane; e < ${s.rows}u; e += ${s.lanes}u) {
        let token = firstRow + e;
        var stat = vec4f(0.0, 0.0, 1.0, 0.0);
        if (token < uniforms.queries) {
          let at = (batch * uniforms.queries + token) * uniforms.heads + head;
          stat = vec4f(max(load_lse(at), NEG) * ${log2e}, f32(visible(token)), ${s.tokenLambda === 1 ? 'load_ridge(at)' : 'uniforms.lambda'}, 0.0);
        }
        stats[e] = stat;
      }
      workgroupBarrier();
      let end = visible(min(firstRow + ${s.rows}u, uniforms.queries) - 1u);
      ${each((n) => `let token${n} = firstRow + 4u * rb + ${n}u; var x${n} = vec4f(); var r${n} = vec4f();`)}
      ${each((n) => `if (token${n} < uniforms.queries) { r${n} = vector_rhs(qBase(batch, token${n}, head), c); }`)}
      let ridge = vec4f(${[0, 1, 2, 3].map((n) => `stats[4u * rb + ${n}u].z`).join(', ')});
      ${s.jacobi === 1 ? diagonalText(s, keyRow) : ''}
      ${each((n) => `var p${n} = ${s.jacobi === 1 ? `r${n} * d${n}` : `r${n}`};`)}
      let first = rowSums(vec4f(${[0, 1, 2, 3].map((n) => `dot(r${n}, r${n})`).join(', ')}), lane, rb);
      var rz = ${s.jacobi === 1 ? `rowSums(vec4f(${[0, 1, 2, 3].map((n) => `dot(r${n}, p${n})`).join(', ')}), lane, rb)` : 'first'};
      let bound = max(first, vec4f(uniforms.atol)) * uniforms.rtol;
      var alive = vec4u(first != vec4f(0.0));
      var taken = vec4u(0u);
      for (var iteration = 0u; iteration < uniforms.maxIterations; iteration++) {
        sums[lane] = vec4f(alive);
        ${each((n) => `tile_p[(4u * rb + ${n}u) * ${stride}u + c] = p${n};`)}
        workgroupBarrier();
        if (lane == 0u) {
          var any = vec4u(0u);
          for (var i = 0u; i < ${s.rows / 4}u; i++) { any |= vec4u(sums[i * ${s.columns}u]); }
          unfinished = any;
        }
        if (all(workgroupUniformLoad(&unfinished) == vec4u(0u))) { break; }
        taken += alive;
        ${each((n) => `var a${n} = vec4f();`)}
        var ws = vec4f();
        for (var at0 = 0u; at0 < end; at0 += ${s.others}u) {
          ${pairs.stage('k', keyRow, { count: s.others, lanes: s.lanes, first: 'at0', end: 'end', base: (r) => `kBase(batch, ${r}, head)` })}
          workgroupBarrier();
          ${blocks === 1 ? wholeText(s, keyRow) : blocksText(s, keyRow)}
        }
        ${each((n) => `a${n} = a${n} - ws.${'xyzw'[n]} * tile_q[(4u * rb + ${n}u) * ${stride}u + c] + ridge.${'xyzw'[n]} * p${n};`)}
        let pa = rowSums(vec4f(${[0, 1, 2, 3].map((n) => `dot(p${n}, a${n})`).join(', ')}), lane, rb);
        let along = select(vec4f(0.0), rz / max(pa, vec4f(1e-36)), alive != vec4u(0u));
        ${each((n) => `x${n} += along.${'xyzw'[n]} * p${n}; r${n} -= along.${'xyzw'[n]} * a${n};`)}
        let rest = rowSums(vec4f(${[0, 1, 2, 3].map((n) => `dot(r${n}, r${n})`).join(', ')}), lane, rb);
        ${
          s.jacobi === 1
            ? `${each((n) => `let z${n} = r${n} * d${n};`)}
        let next = rowSums(vec4f(${[0, 1, 2, 3].map((n) => `dot(r${n}, z${n})`).join(', ')}), lane, rb);`
            : `${each((n) => `let z${n} = r${n};`)}
        let next = rest;`
        }
        alive &= vec4u(rest > bound);
        let turn = select(vec4f(0.0), next / max(rz, vec4f(1e-36)), alive != vec4u(0u));
        rz = next;
        ${each((n) => `p${n} = z${n} + turn.${'xyzw'[n]} * p${n};`)}
      }
      ${each(
        (n) => `if (token${n} < uniforms.queries) {
        put_out(qBase(batch, token${n}, head), c, x${n});
        if (c == 0u) { store_steps((batch * uniforms.queries + token${n}) * uniforms.heads + head, taken.${'xyzw'[n]}); }
      }`,
      )}
    }`;
}

/** Softmax weight of a pair, zero where the key is hidden. */
function weightOf(s: SolveSpec, i: number, j: number): string {
  const row = pairs.rowOf(s, i);
  return `select(0.0, exp2(s_score_${i}_${j} * uniforms.scale2 - stats[${row}].x), at0 + ${pairs.otherOf(s, j)} < u32(stats[${row}].y))`;
}

function wholeText(s: SolveSpec, keyRow: RowLayout): string {
  const { stride } = keyRow;
  const dots = [
    { name: 'score', left: 'q', right: 'k' },
    { name: 'z', left: 'p', right: 'k' },
  ];
  return `
          {
            ${pairs.scores(s, stride, dots, [{ name: 'pq', a: 'p', b: 'q', side: 'row' }], { from: '0u', to: pairs.bound(s.fixed, keyRow.vectors, 'uniforms.vectors') })}
            ${pairs.eachPair(s, (i, j) => pairs.putWeight('w', s, i, j, `${weightOf(s, i, j)} * (s_z_${i}_${j} - o_pq_${i})`))}
          }
          workgroupBarrier();
          ${pairs.addRows(s, stride, [{ plane: 'w', tile: 'k', to: 'a', weights: 'ws' }], pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`))}
          workgroupBarrier();`;
}

/** Block after block: weights p_j (z_j . p) over the block's channels, added up by the lanes of the block. */
function blocksText(s: SolveSpec, keyRow: RowLayout): string {
  const { stride, blockVectors } = keyRow;
  return `
          ${pairs.eachPair(s, (i, j) => `var weight_${i}_${j} = 0.0;`)}
          {
            ${pairs.scores(s, stride, [{ name: 'score', left: 'q', right: 'k' }], [], { from: '0u', to: pairs.bound(s.fixed, keyRow.vectors, 'uniforms.vectors') })}
            ${pairs.eachPair(s, (i, j) => `weight_${i}_${j} = ${weightOf(s, i, j)};`)}
          }
          for (var block = 0u; block < uniforms.vectors; block += ${blockVectors}u) {
            {
              ${pairs.scores(s, stride, [{ name: 'z', left: 'p', right: 'k' }], [{ name: 'pq', a: 'p', b: 'q', side: 'row' }], { from: 'block', to: `block + ${blockVectors}u` })}
              ${pairs.eachPair(s, (i, j) => pairs.putWeight('w', s, i, j, `weight_${i}_${j} * (s_z_${i}_${j} - o_pq_${i})`))}
            }
            workgroupBarrier();
            if (c >= block && c < block + ${blockVectors}u) {
              ${pairs.addRows(s, stride, [{ plane: 'w', tile: 'k', to: 'a', weights: 'ws' }], pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`))}
            }
            workgroupBarrier();
          }`;
}

/** d = 1 / diag(Sigma), diag = sum_j p_j (k_j - q)^2 + lambda. */
function diagonalText(s: SolveSpec, keyRow: RowLayout): string {
  const { stride } = keyRow;
  const each = (text: (n: number) => string): string => unroll(4, text);
  return `
      ${each((n) => `var d${n} = vec4f(); let q${n} = tile_q[(4u * rb + ${n}u) * ${stride}u + c];`)}
      for (var at0 = 0u; at0 < end; at0 += ${s.others}u) {
        ${pairs.stage('k', keyRow, { count: s.others, lanes: s.lanes, first: 'at0', end: 'end', base: (r) => `kBase(batch, ${r}, head)` })}
        workgroupBarrier();
        {
          ${pairs.scores(s, stride, [{ name: 'score', left: 'q', right: 'k' }], [], { from: '0u', to: pairs.bound(s.fixed, keyRow.vectors, 'uniforms.vectors') })}
          ${pairs.eachPair(s, (i, j) => pairs.putWeight('w', s, i, j, weightOf(s, i, j)))}
        }
        workgroupBarrier();
        for (var j = 0u; j < min(${s.others}u, end - at0); j++) {
          let w = plane_w[j * ${s.rows / 4}u + rb];
          let key = tile_k[j * ${stride}u + c];
          ${each((n) => `d${n} += w.${'xyzw'[n]} * (key - q${n}) * (key - q${n});`)}
        }
        workgroupBarrier();
      }
      ${each((n) => `d${n} = 1.0 / max(d${n} + vec4f(ridge.${'xyzw'[n]}), vec4f(1e-36));`)}`;
}

/** How the systems are solved. */
export interface SolveSettings {
  lambda: number | Tensor;
  maxIterations: number;
  atol: number;
  rtol: number;
  jacobi: boolean;
}

/** The tile of the solver for rows of `layout`. */
function solveTile(layout: RowLayout, device: Pick<Device, 'limits' | 'isSoftware'>): PairTile {
  const memory = { perRow: 2 * layout.stride, perOther: layout.stride, planes: 1, perLane: 1 };
  return tileFor('the solver', memory, { columns: layout.vectors, dots: 2 }, device);
}

/**
 * x of Sigma x = rhs, and the iterations that each query took.
 * @param lse natural logsumexp of the scores, [batch, queries, heads]
 * @param rhs [batch, queries, heads, dim]
 */
export function runSolve(
  place: Place,
  operands: { q: Tensor; k: Tensor; lse: Tensor; rhs: Tensor; out: Tensor; steps: Tensor },
  settings: SolveSettings,
): void {
  const { q, k } = operands;
  const { keyRow } = layoutsOf(place);
  const tile = solveTile(keyRow, q.device);
  const tiles = Math.ceil(place.queries / tile.rows);
  const values = placeValues(place, tiles, k);
  const { lambda, maxIterations, atol, rtol, jacobi } = settings;
  const scalar = typeof lambda === 'number';
  kernel.run(q.device, {
    spec: {
      ...tile,
      fixed: fixedLoops(q.device),
      dim: place.dim,
      block: place.block,
      items: pairs.rowItems(keyRow),
      tokenLambda: scalar ? 0 : 1,
      jacobi: jacobi ? 1 : 0,
    },
    tensors: { ...operands, ridge: scalar ? undefined : lambda },
    uniforms: { ...values, lambda: scalar ? lambda : 0, maxIterations, atol, rtol, vectors: keyRow.vectors },
    grid: [values.workgroups],
  });
}
