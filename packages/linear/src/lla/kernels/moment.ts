// First moments of the backward: t = sum_j C_j z_j and tau = sum_j C_j, C_j = p_j (g.v_j) / delta~.
// tile    `rows` queries x `others` keys; t as 4 rows x 4 channels a lane
// bytes   reads q, g once, k and v once a tile of queries (from L2), writes t and 4 bytes a row
// limits  f32; (4 dim + 2 valueDim) operations a pair
// source  Zuo et al. 2025 (arXiv 2510.01450), backward: u = Sigma^-1 t
import type { Tensor } from '@heed/core';
import { defineKernel, read, unroll, write } from '@heed/core/~internal';
import type { PairTile } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { fixedLoops, layoutsOf, type Place, placeText, placeUniforms, placeValues, tileFor } from './common.js';

interface MomentSpec extends PairTile {
  fixed: number;
  dim: number;
  valueDim: number;
  items: number;
  valueItems: number;
}

const kernel = defineKernel({
  name: 'lla-moment',
  bindings: {
    q: read<MomentSpec>('f32', { width: (s) => s.items }),
    k: read<MomentSpec>('f32', { width: (s) => s.items }),
    v: read<MomentSpec>('f32', { width: (s) => s.valueItems }),
    g: read<MomentSpec>('f32', { width: (s) => s.valueItems }),
    stats: read<MomentSpec>('f32'),
    out: write<MomentSpec>('f32', { width: (s) => s.items }),
    tau: write<MomentSpec>('f32'),
  },
  uniforms: { ...placeUniforms, vectors: 'u32', valueVectors: 'u32' },
  wgsl: (s: MomentSpec) => {
    const { keyRow, valueRow } = layoutsOf({ dim: s.dim, valueDim: s.valueDim, block: s.dim });
    const each = (text: (n: number) => string): string => unroll(4, text);
    const rowTile = { count: s.rows, lanes: s.lanes, first: 'firstRow', end: 'uniforms.queries' };
    const passing = { count: s.others, lanes: s.lanes, first: 'at0', end: 'end' };
    const weight = (i: number, j: number): string => {
      const row = pairs.rowOf(s, i);
      return `select(0.0, exp2(s_score_${i}_${j} * uniforms.scale2 - rowStats[${row}].x) * s_g_${i}_${j}, at0 + ${pairs.otherOf(s, j)} < u32(rowStats[${row}].y))`;
    };
    return `
    ${['q', 'k'].map((name) => pairs.rowLoad(name, keyRow, s.items)).join('\n')}
    ${['v', 'g'].map((name) => pairs.rowLoad(name, valueRow, s.valueItems)).join('\n')}
    ${pairs.rowStore('out', keyRow, s.items)}
    ${placeText(s.dim, s.valueDim)}
    ${pairs.totalText}
    ${pairs.tileMemory('q', keyRow, s.rows)}
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
      ${pairs.stage('q', keyRow, { ...rowTile, base: (r) => `qBase(batch, ${r}, head)` })}
      ${pairs.stage('g', valueRow, { ...rowTile, base: (r) => `gBase(batch, ${r}, head)` })}
      for (var e = lane; e < ${s.rows}u; e += ${s.lanes}u) {
        let token = firstRow + e;
        var stat = vec4f();
        if (token < uniforms.queries) {
          let at = (batch * uniforms.queries + token) * uniforms.heads + head;
          stat = vec4f(load_stats(2u * at), f32(visible(token)), 1.0 / load_stats(2u * at + 1u), 0.0);
        }
        rowStats[e] = stat;
      }
      let end = visible(min(firstRow + ${s.rows}u, uniforms.queries) - 1u);
      ${each((n) => `var a${n} = vec4f();`)}
      var ws = vec4f();
      for (var at0 = 0u; at0 < end; at0 += ${s.others}u) {
        ${pairs.stage('k', keyRow, { ...passing, base: (r) => `kBase(batch, ${r}, head)` })}
        ${pairs.stage('v', valueRow, { ...passing, base: (r) => `vBase(batch, ${r}, head)` })}
        workgroupBarrier();
        {
          ${pairs.scores(s, keyRow.stride, [{ name: 'score', left: 'q', right: 'k' }], [], { from: '0u', to: pairs.bound(s.fixed, keyRow.vectors, 'uniforms.vectors') })}
          ${pairs.scores(s, valueRow.stride, [{ name: 'g', left: 'g', right: 'v' }], [], { from: '0u', to: pairs.bound(s.fixed, valueRow.vectors, 'uniforms.valueVectors') })}
          ${pairs.eachPair(s, (i, j) => pairs.putWeight('w', s, i, j, weight(i, j)))}
        }
        workgroupBarrier();
        ${pairs.addRows(s, keyRow.stride, [{ plane: 'w', tile: 'k', to: 'a', weights: 'ws' }], pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`))}
        workgroupBarrier();
      }
      ${each(
        (n) => `{ let row = 4u * rb + ${n}u;
        let token = firstRow + row;
        if (token < uniforms.queries) {
          let share = rowStats[row].z;
          put_out(qBase(batch, token, head), c, (a${n} - ws.${'xyzw'[n]} * tile_q[row * ${keyRow.stride}u + c]) * share);
          if (c == 0u) { store_tau((batch * uniforms.queries + token) * uniforms.heads + head, ws.${'xyzw'[n]} * share); }
        } }`,
      )}
    }`;
  },
});

/** Writes t [batch, queries, heads, dim] and tau [batch, queries, heads]. */
export function runMoment(
  place: Place,
  operands: { q: Tensor; k: Tensor; v: Tensor; g: Tensor; stats: Tensor; out: Tensor; tau: Tensor },
): void {
  const { q, k, v } = operands;
  const { keyRow, valueRow } = layoutsOf({ ...place, block: place.dim });
  const both = keyRow.stride + valueRow.stride;
  const tile = tileFor('the backward', { perRow: both, perOther: both, planes: 1 }, { columns: keyRow.vectors, dots: 1 }, q.device);
  const values = placeValues(place, Math.ceil(place.queries / tile.rows), k, v);
  kernel.run(q.device, {
    spec: {
      ...tile,
      fixed: fixedLoops(q.device),
      dim: place.dim,
      valueDim: place.valueDim,
      items: pairs.rowItems(keyRow),
      valueItems: pairs.rowItems(valueRow),
    },
    tensors: operands,
    uniforms: { ...values, vectors: keyRow.vectors, valueVectors: valueRow.vectors },
    grid: [values.workgroups],
  });
}
