// Outputs o = sum_j p_j (1 - z_j.rho) v_j / delta~ and delta~ = sum_j p_j (1 - z_j.rho), weights divided by their sum.
// tile    `rows` queries x `others` keys; outputs as 4 rows x 4 channels a lane
// bytes   reads q, rho once, k and v once a tile of queries (from L2), writes out and 8 bytes a row
// limits  f32; (4 dim + 2 valueDim) operations a pair; a row that sees nothing gives zeros and delta~ = 1
// source  Zuo et al. 2025 (arXiv 2510.01450), section 3; delta~ is summed beside the outputs, so that the weights sum to 1 in f32 too
import type { Tensor } from '@heed/core';
import { defineKernel, read, unroll, write } from '@heed/core/~internal';
import type { PairTile } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { fixedLoops, layoutsOf, log2e, type Place, placeText, placeUniforms, placeValues, tileFor } from './common.js';

interface OutputSpec extends PairTile {
  fixed: number;
  dim: number;
  valueDim: number;
  items: number;
  valueItems: number;
}

const kernel = defineKernel({
  name: 'lla-output',
  bindings: {
    q: read<OutputSpec>('f32', { width: (s) => s.items }),
    k: read<OutputSpec>('f32', { width: (s) => s.items }),
    v: read<OutputSpec>('f32', { width: (s) => s.valueItems }),
    lse: read<OutputSpec>('f32'),
    rho: read<OutputSpec>('f32', { width: (s) => s.items }),
    out: write<OutputSpec>('f32', { width: (s) => s.valueItems }),
    stats: write<OutputSpec>('f32'),
  },
  uniforms: { ...placeUniforms, deltaEps: 'f32', vectors: 'u32' },
  wgsl: (s: OutputSpec) => {
    const { keyRow, valueRow } = layoutsOf({ dim: s.dim, valueDim: s.valueDim, block: s.dim });
    const each = (text: (n: number) => string): string => unroll(4, text);
    const rowTile = {
      count: s.rows,
      lanes: s.lanes,
      first: 'firstRow',
      end: 'uniforms.queries',
      base: (r: string) => `qBase(batch, ${r}, head)`,
    };
    const passing = { count: s.others, lanes: s.lanes, first: 'at0', end: 'end' };
    const weight = (i: number, j: number): string => {
      const row = pairs.rowOf(s, i);
      return `select(0.0, exp2(s_score_${i}_${j} * uniforms.scale2 - rowStats[${row}].x) * (1.0 + o_q_${i} - s_rho_${i}_${j}), at0 + ${pairs.otherOf(s, j)} < u32(rowStats[${row}].y))`;
    };
    return `
    ${['q', 'k', 'rho'].map((name) => pairs.rowLoad(name, keyRow, s.items)).join('\n')}
    ${pairs.rowLoad('v', valueRow, s.valueItems)}
    ${pairs.rowStore('out', valueRow, s.valueItems)}
    ${placeText(s.dim, s.valueDim)}
    ${pairs.totalText}
    ${pairs.tileMemory('q', keyRow, s.rows)}
    ${pairs.tileMemory('rho', keyRow, s.rows)}
    ${pairs.tileMemory('k', keyRow, s.others)}
    ${pairs.tileMemory('v', valueRow, s.others)}
    ${pairs.planeMemory('w', s)}
    var<workgroup> rowStats: array<vec4f, ${s.rows}>;
    @compute @workgroup_size(${s.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${pairs.placeText}
      let firstRow = (uniforms.tiles - 1u - index % uniforms.tiles) * ${s.rows}u;
      ${pairs.laneText(s)}
      ${pairs.stage('q', keyRow, rowTile)}
      ${pairs.stage('rho', keyRow, rowTile)}
      for (var e = lane; e < ${s.rows}u; e += ${s.lanes}u) {
        let token = firstRow + e;
        var stat = vec4f();
        if (token < uniforms.queries) {
          let at = (batch * uniforms.queries + token) * uniforms.heads + head;
          stat = vec4f(max(load_lse(at), NEG) * ${log2e}, f32(visible(token)), 0.0, 0.0);
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
          ${pairs.scores(
            s,
            keyRow.stride,
            [
              { name: 'score', left: 'q', right: 'k' },
              { name: 'rho', left: 'rho', right: 'k' },
            ],
            [{ name: 'q', a: 'rho', b: 'q', side: 'row' }],
            { from: '0u', to: pairs.bound(s.fixed, keyRow.vectors, 'uniforms.vectors') },
          )}
          ${pairs.eachPair(s, (i, j) => pairs.putWeight('w', s, i, j, weight(i, j)))}
        }
        workgroupBarrier();
        ${pairs.addRows(s, valueRow.stride, [{ plane: 'w', tile: 'v', to: 'a', weights: 'ws' }], pairs.bound(s.fixed, s.others, `min(${s.others}u, end - at0)`))}
        workgroupBarrier();
      }
      // sign(0) counts as +: a delta of zero is guarded too
      let delta = ws + select(vec4f(-uniforms.deltaEps), vec4f(uniforms.deltaEps), ws >= vec4f(0.0));
      ${each(
        (n) => `{ let token = firstRow + 4u * rb + ${n}u;
        if (token < uniforms.queries) {
          let seen = visible(token) > 0u;
          let own = select(1.0, delta.${'xyzw'[n]}, seen);
          put_out(gBase(batch, token, head), c, select(vec4f(0.0), a${n} / own, seen));
          if (c == 0u) {
            let at = (batch * uniforms.queries + token) * uniforms.heads + head;
            store_stats(2u * at, max(load_lse(at), NEG) * ${log2e});
            store_stats(2u * at + 1u, own);
          }
        } }`,
      )}
    }`;
  },
});

/** Writes out [batch, queries, heads, valueDim] and stats [batch, queries, heads, 2]: logsumexp in base 2, delta~. */
export function runOutput(
  place: Place,
  operands: { q: Tensor; k: Tensor; v: Tensor; lse: Tensor; rho: Tensor; out: Tensor; stats: Tensor },
  deltaEps: number,
): void {
  const { q, k, v } = operands;
  const { keyRow, valueRow } = layoutsOf({ ...place, block: place.dim });
  const memory = { perRow: 2 * keyRow.stride, perOther: keyRow.stride + valueRow.stride, planes: 1 };
  const tile = tileFor('the output', memory, { columns: valueRow.vectors, dots: 2 }, q.device);
  const tiles = Math.ceil(place.queries / tile.rows);
  const values = placeValues(place, tiles, k, v);
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
    uniforms: { ...values, deltaEps, vectors: keyRow.vectors },
    grid: [values.workgroups],
  });
}
