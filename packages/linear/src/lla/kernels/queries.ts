// Sums of the gradient of q: sum_j P_j k_j, P the gradient of the scores.
// tile    `rows` queries x `others` keys; sums as 4 rows x 4 channels a lane
// bytes   reads q, g, rho, u once, k and v once a tile of queries (from L2), writes 4 dim a row
// limits  f32; (8 dim + 2 valueDim) operations a pair
// source  Zuo et al. 2025 (arXiv 2510.01450), backward; products of E, R, U block by block where Sigma is block-diagonal
import type { Tensor } from '@heed/core';
import { defineKernel, read, unroll, write } from '@heed/core/~internal';
import type { PairTile, RowLayout } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { fixedLoops, layoutsOf, type Place, placeText, placeUniforms, placeValues, tileFor } from './common.js';

interface QuerySpec extends PairTile {
  fixed: number;
  dim: number;
  valueDim: number;
  block: number;
  items: number;
  valueItems: number;
}

const kernel = defineKernel({
  name: 'lla-query-sums',
  bindings: {
    q: read<QuerySpec>('f32', { width: (s) => s.items }),
    k: read<QuerySpec>('f32', { width: (s) => s.items }),
    v: read<QuerySpec>('f32', { width: (s) => s.valueItems }),
    g: read<QuerySpec>('f32', { width: (s) => s.valueItems }),
    rho: read<QuerySpec>('f32', { width: (s) => s.items }),
    u: read<QuerySpec>('f32', { width: (s) => s.items }),
    rows: read<QuerySpec>('f32', { width: 4 }),
    out: write<QuerySpec>('f32', { width: (s) => s.items }),
  },
  uniforms: { ...placeUniforms, vectors: 'u32', valueVectors: 'u32' },
  wgsl: (s: QuerySpec) => {
    const { keyRow, valueRow } = layoutsOf(s);
    const { blockVectors } = keyRow;
    const each = (text: (n: number) => string): string => unroll(4, text);
    const rowTile = { count: s.rows, lanes: s.lanes, first: 'firstRow', end: 'uniforms.queries' };
    const passing = { count: s.others, lanes: s.lanes, first: 'at0', end: 'end' };
    return `
    ${['q', 'k', 'rho', 'u'].map((name) => pairs.rowLoad(name, keyRow, s.items)).join('\n')}
    ${['v', 'g'].map((name) => pairs.rowLoad(name, valueRow, s.valueItems)).join('\n')}
    ${pairs.rowStore('out', keyRow, s.items)}
    ${placeText(s.dim, s.valueDim)}
    ${pairs.totalText}
    ${['q', 'rho', 'u'].map((name) => pairs.tileMemory(name, keyRow, s.rows)).join('\n')}
    ${pairs.tileMemory('g', valueRow, s.rows)}
    ${pairs.tileMemory('k', keyRow, s.others)}
    ${pairs.tileMemory('v', valueRow, s.others)}
    ${pairs.planeMemory('w', s)}
    var<workgroup> rowStats: array<vec4f, ${s.rows}>;
    @compute @workgroup_size(${s.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${pairs.placeText}
      let firstRow = (uniforms.tiles - 1u - index % uniforms.tiles) * ${s.rows}u;
      ${pairs.laneText(s)}
      ${['q', 'rho', 'u'].map((name) => pairs.stage(name, keyRow, { ...rowTile, base: (r) => `qBase(batch, ${r}, head)` })).join('\n')}
      ${pairs.stage('g', valueRow, { ...rowTile, base: (r) => `gBase(batch, ${r}, head)` })}
      for (var e = lane; e < ${s.rows}u; e += ${s.lanes}u) {
        var stat = vec4f();
        if (firstRow + e < uniforms.queries) { stat = load_rows((batch * uniforms.queries + firstRow + e) * uniforms.heads + head); }
        rowStats[e] = stat;
      }
      let end = visible(min(firstRow + ${s.rows}u, uniforms.queries) - 1u);
      ${each((n) => `var a${n} = vec4f();`)}
      for (var at0 = 0u; at0 < end; at0 += ${s.others}u) {
        ${pairs.stage('k', keyRow, { ...passing, base: (r) => `kBase(batch, ${r}, head)` })}
        ${pairs.stage('v', valueRow, { ...passing, base: (r) => `vBase(batch, ${r}, head)` })}
        workgroupBarrier();
        {
          ${pairs.eachPair(s, (i, j) => `var score_${i}_${j} = 0.0; var r_${i}_${j} = 0.0; var e_${i}_${j} = 0.0; var products_${i}_${j} = 0.0;`)}
          for (var block = 0u; block < uniforms.vectors; block += ${blockVectors}u) {
            ${blockScores(s, keyRow, 'row')}
            ${pairs.eachPair(
              s,
              (i, j) => `{ let beta = rowStats[${pairs.rowOf(s, i)}].z;
              let r = s_rho_${i}_${j} - o_rho_${i};
              let u = s_u_${i}_${j} - o_u_${i};
              let e = 2.0 * beta * r - u;
              score_${i}_${j} += s_score_${i}_${j};
              r_${i}_${j} += r; e_${i}_${j} += e; products_${i}_${j} += 0.5 * r * (u - e); }`,
            )}
          }
          ${pairs.scores(s, valueRow.stride, [{ name: 'g', left: 'g', right: 'v' }], [], { from: '0u', to: pairs.bound(s.fixed, valueRow.vectors, 'uniforms.valueVectors') })}
          ${pairs.eachPair(
            s,
            (i, j) => `{ let stat = rowStats[${pairs.rowOf(s, i)}];
            let weight = select(0.0, exp2(score_${i}_${j} * uniforms.scale2 - stat.x), at0 + ${pairs.otherOf(s, j)} < visible(firstRow + ${pairs.rowOf(s, i)}));
            let slope = weight * (s_g_${i}_${j} * (1.0 - r_${i}_${j}) * stat.y - stat.z + e_${i}_${j} + products_${i}_${j} + stat.w);
            ${pairs.putWeight('w', s, i, j, 'slope')} }`,
          )}
        }
        workgroupBarrier();
        ${pairs.addRows(s, keyRow.stride, [{ plane: 'w', tile: 'k', to: 'a' }], pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`))}
        workgroupBarrier();
      }
      ${each((n) => `if (firstRow + 4u * rb + ${n}u < uniforms.queries) { put_out(qBase(batch, firstRow + 4u * rb + ${n}u, head), c, a${n}); }`)}
    }`;
  },
});

/** Scores of q, rho and u with k over vectors `block` .. `block + blockVectors`, and q.rho, q.u of the queries. */
export function blockScores(s: PairTile & { fixed: number }, keyRow: RowLayout, side: 'row' | 'other'): string {
  const { stride, blockVectors, vectors } = keyRow;
  const dot = (name: string, query: string): pairs.Dot =>
    side === 'row' ? { name, left: query, right: 'k' } : { name, left: 'k', right: query };
  return pairs.scores(
    s,
    stride,
    [dot('score', 'q'), dot('rho', 'rho'), dot('u', 'u')],
    [
      { name: 'rho', a: 'rho', b: 'q', side },
      { name: 'u', a: 'u', b: 'q', side },
    ],
    s.fixed === 1 && blockVectors === vectors ? { from: '0u', to: `${vectors}u` } : { from: 'block', to: `block + ${blockVectors}u` },
  );
}

/** Writes sum_j P_j k_j, [batch, queries, heads, dim]. */
export function runQuerySums(
  place: Place,
  operands: { q: Tensor; k: Tensor; v: Tensor; g: Tensor; rho: Tensor; u: Tensor; rows: Tensor; out: Tensor },
): void {
  const { q, k, v } = operands;
  const { keyRow, valueRow } = layoutsOf(place);
  const memory = { perRow: 3 * keyRow.stride + valueRow.stride, perOther: keyRow.stride + valueRow.stride, planes: 1 };
  const tile = tileFor('the backward', memory, { columns: keyRow.vectors, dots: 3 }, q.device);
  const values = placeValues(place, Math.ceil(place.queries / tile.rows), k, v);
  const { dim, valueDim, block } = place;
  kernel.run(q.device, {
    spec: {
      ...tile,
      fixed: fixedLoops(q.device),
      dim,
      valueDim,
      block,
      items: pairs.rowItems(keyRow),
      valueItems: pairs.rowItems(valueRow),
    },
    tensors: operands,
    uniforms: { ...values, vectors: keyRow.vectors, valueVectors: valueRow.vectors },
    grid: [values.workgroups],
  });
}
