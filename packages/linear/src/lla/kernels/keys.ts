// Gradients of k and v: dk_j = sum_i h P q - C rho + p e - p E rho + p R u, dv_j = sum_i s g, with e = -u + 2 beta rho.
// tile    `rows` keys x `others` queries; dk and dv as 4 rows x 4 channels a lane
// bytes   reads k, v once, q, rho, u, g once a tile of keys (from L2), writes 4 (dim + valueDim) a key
// limits  f32; (12 dim + 4 valueDim) operations a pair; each key is summed by one workgroup, in a fixed order
// source  Zuo et al. 2025 (arXiv 2510.01450), backward; E and R block by block where Sigma is block-diagonal
import type { Tensor } from '@heed/core';
import { defineKernel, read, unroll, write } from '@heed/core/~internal';
import type { PairTile } from '../../pairs/plan.js';
import * as pairs from '../../pairs/text.js';
import { fixedLoops, layoutsOf, type Place, placeText, placeUniforms, placeValues, tileFor } from './common.js';
import { blockScores } from './queries.js';

interface KeySpec extends PairTile {
  fixed: number;
  dim: number;
  valueDim: number;
  block: number;
  items: number;
  valueItems: number;
}

const kernel = defineKernel({
  name: 'lla-key-gradients',
  bindings: {
    q: read<KeySpec>('f32', { width: (s) => s.items }),
    k: read<KeySpec>('f32', { width: (s) => s.items }),
    v: read<KeySpec>('f32', { width: (s) => s.valueItems }),
    g: read<KeySpec>('f32', { width: (s) => s.valueItems }),
    rho: read<KeySpec>('f32', { width: (s) => s.items }),
    u: read<KeySpec>('f32', { width: (s) => s.items }),
    rows: read<KeySpec>('f32', { width: 4 }),
    // dk and dv in one buffer, [batch, keys, heads, dim] then [batch, keys, heads, valueDim]
    out: write<KeySpec>('f32'),
  },
  uniforms: { ...placeUniforms, vectors: 'u32', valueVectors: 'u32', scale: 'f32', valuesAt: 'u32' },
  wgsl: (s: KeySpec) => {
    const { keyRow, valueRow } = layoutsOf(s);
    const { stride, blockVectors, vectors } = keyRow;
    const single = blockVectors === vectors;
    const each = (text: (n: number) => string): string => unroll(4, text);
    const rowTile = { count: s.rows, lanes: s.lanes, first: 'firstRow', end: 'uniforms.keys' };
    const passing = { count: s.others, lanes: s.lanes, first: 'at0', end: 'uniforms.queries' };
    const count = pairs.bound(s.fixed, s.others, `min(${s.others}u, uniforms.queries - at0)`);
    const keyTerms = [
      { plane: 'q', tile: 'q', to: 'a' },
      { plane: 'rho', tile: 'rho', to: 'a' },
      { plane: 'u', tile: 'u', to: 'a' },
    ];
    const valueTerm = pairs.addRows(s, valueRow.stride, [{ plane: 's', tile: 'g', to: 'b' }], count);
    // r and e are those of the block
    const blockPlanes = (i: number, j: number): string => `
              ${pairs.putWeight('rho', s, i, j, `weight_${i}_${j} * (2.0 * stat.z - e) - c_${i}_${j}`)}
              ${pairs.putWeight('u', s, i, j, `weight_${i}_${j} * (r - 1.0)`)}`;
    const blockPair = (i: number, j: number, text: string): string => `{ let stat = rowStats[${pairs.otherOf(s, j)}];
              let r = s_rho_${i}_${j} - o_rho_${j};
              let u = s_u_${i}_${j} - o_u_${j};
              let e = 2.0 * stat.z * r - u;
              ${text} }`;
    return `
    ${['q', 'k', 'rho', 'u'].map((name) => pairs.rowLoad(name, keyRow, s.items)).join('\n')}
    ${['v', 'g'].map((name) => pairs.rowLoad(name, valueRow, s.valueItems)).join('\n')}
    ${pairs.rowStore('out', keyRow, 1)}
    ${pairs.rowStore('out', valueRow, 1).replaceAll('put_out', 'putValue_out')}
    ${placeText(s.dim, s.valueDim)}
    ${pairs.totalText}
    ${['q', 'rho', 'u'].map((name) => pairs.tileMemory(name, keyRow, s.others)).join('\n')}
    ${pairs.tileMemory('g', valueRow, s.others)}
    ${pairs.tileMemory('k', keyRow, s.rows)}
    ${pairs.tileMemory('v', valueRow, s.rows)}
    ${['q', 'rho', 'u', 's'].map((name) => pairs.planeMemory(name, s)).join('\n')}
    var<workgroup> rowStats: array<vec4f, ${s.others}>;
    @compute @workgroup_size(${s.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${pairs.placeText}
      let firstRow = (index % uniforms.tiles) * ${s.rows}u;
      ${pairs.laneText(s)}
      ${pairs.stage('k', keyRow, { ...rowTile, base: (r) => `kBase(batch, ${r}, head)` })}
      ${pairs.stage('v', valueRow, { ...rowTile, base: (r) => `vBase(batch, ${r}, head)` })}
      ${each((n) => `var a${n} = vec4f(); var b${n} = vec4f();`)}
      // the first query that sees the first key of the tile
      for (var at0 = u32(max(0, i32(firstRow) - uniforms.shift)); at0 < uniforms.queries; at0 += ${s.others}u) {
        ${['q', 'rho', 'u'].map((name) => pairs.stage(name, keyRow, { ...passing, base: (r) => `qBase(batch, ${r}, head)` })).join('\n')}
        ${pairs.stage('g', valueRow, { ...passing, base: (r) => `gBase(batch, ${r}, head)` })}
        for (var e = lane; e < ${s.others}u; e += ${s.lanes}u) {
          var stat = vec4f();
          if (at0 + e < uniforms.queries) { stat = load_rows((batch * uniforms.queries + at0 + e) * uniforms.heads + head); }
          rowStats[e] = stat;
        }
        workgroupBarrier();
        ${pairs.eachPair(s, (i, j) => `var score_${i}_${j} = 0.0; var weight_${i}_${j} = 0.0; var c_${i}_${j} = 0.0; var r_${i}_${j} = 0.0; var e_${i}_${j} = 0.0; var products_${i}_${j} = 0.0;`)}
        for (var block = 0u; block < uniforms.vectors; block += ${blockVectors}u) {
          ${blockScores(s, keyRow, 'other')}
          ${pairs.eachPair(s, (i, j) =>
            blockPair(
              i,
              j,
              `score_${i}_${j} += s_score_${i}_${j};
              r_${i}_${j} += r; e_${i}_${j} += e; products_${i}_${j} += 0.5 * r * (u - e);`,
            ),
          )}
        }
        {
          ${pairs.scores(s, valueRow.stride, [{ name: 'g', left: 'v', right: 'g' }], [], { from: '0u', to: pairs.bound(s.fixed, valueRow.vectors, 'uniforms.valueVectors') })}
          ${pairs.eachPair(
            s,
            (i, j) => `{ let query = ${pairs.otherOf(s, j)};
            let stat = rowStats[query];
            let seen = at0 + query < uniforms.queries && firstRow + ${pairs.rowOf(s, i)} < visible(at0 + query);
            weight_${i}_${j} = select(0.0, exp2(score_${i}_${j} * uniforms.scale2 - stat.x), seen);
            c_${i}_${j} = s_g_${i}_${j} * weight_${i}_${j} * stat.y;
            let share = weight_${i}_${j} * (1.0 - r_${i}_${j}) * stat.y;
            let slope = s_g_${i}_${j} * share + weight_${i}_${j} * (e_${i}_${j} - stat.z + products_${i}_${j} + stat.w);
            ${pairs.putWeight('s', s, i, j, 'share')}
            ${pairs.putWeight('q', s, i, j, 'uniforms.scale * slope')}
            ${single ? `{ let r = r_${i}_${j}; let e = e_${i}_${j}; ${blockPlanes(i, j)} }` : ''} }`,
          )}
        }
        ${
          single
            ? `workgroupBarrier();
        if (c < ${vectors}u) { ${pairs.addRows(s, stride, keyTerms, count)} }`
            : `for (var block = 0u; block < uniforms.vectors; block += ${blockVectors}u) {
          {
            ${blockScores(s, keyRow, 'other')}
            ${pairs.eachPair(s, (i, j) => blockPair(i, j, blockPlanes(i, j)))}
          }
          workgroupBarrier();
          if (c >= block && c < block + ${blockVectors}u) { ${pairs.addRows(s, stride, keyTerms, count)} }
          workgroupBarrier();
        }`
        }
        if (c < ${valueRow.vectors}u) { ${valueTerm} }
        workgroupBarrier();
      }
      ${each(
        (n) => `{ let key = firstRow + 4u * rb + ${n}u;
        if (key < uniforms.keys) {
          let at = (batch * uniforms.keys + key) * uniforms.heads + head;
          if (c < ${vectors}u) { put_out(at * ${s.dim}u, c, a${n}); }
          if (c < ${valueRow.vectors}u) { putValue_out(uniforms.valuesAt + at * ${s.valueDim}u, c, b${n}); }
        } }`,
      )}
    }`;
  },
});

/** Writes dk and dv into one contiguous buffer: dk [batch, keys, heads, dim], behind it dv [batch, keys, heads, valueDim]. */
export function runKeyGradients(
  place: Place,
  operands: { q: Tensor; k: Tensor; v: Tensor; g: Tensor; rho: Tensor; u: Tensor; rows: Tensor; out: Tensor },
): void {
  const { q, k, v } = operands;
  const { keyRow, valueRow } = layoutsOf(place);
  const { batch, heads, keys, dim, valueDim, block, scale } = place;
  const memory = { perRow: keyRow.stride + valueRow.stride, perOther: 3 * keyRow.stride + valueRow.stride, planes: 4 };
  const tile = tileFor('the backward', memory, { columns: Math.max(keyRow.vectors, valueRow.vectors), dots: 3 }, q.device);
  const values = placeValues(place, Math.ceil(keys / tile.rows), k, v);
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
    uniforms: { ...values, vectors: keyRow.vectors, valueVectors: valueRow.vectors, scale, valuesAt: batch * keys * heads * dim },
    grid: [values.workgroups],
  });
}
