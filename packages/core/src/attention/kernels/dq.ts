// Gradient of the queries: recomputes P from the logsumexp, dS = P (dO V^T - delta), dq = scale dS K.
// tile    rows x columns scores a workgroup and step; three products a step, dq in named registers
// bytes   q and dOut once, k twice and v once a query tile that sees them
// limits  as the forward kernel; exactly 8 storage bindings with lists and small arrays
// source  Dao 2023 (FlashAttention-2), algorithm 2, the loop over keys; deterministic, nothing is summed across workgroups
import type { Device } from '../../device/device.js';
import { write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { backwardFunctions, backwardReads, type BackwardTensors, backwardUniforms, type BackwardUniforms } from './backward-bindings.js';
import { logitText, type PairPlace, type ScoreSpec, slopeText } from './common.js';
import { tilePosition } from './forward.js';
import { keyLoop } from './loops.js';
import { eachPair, type PairNames } from './pairs.js';
import { type TileSpec, TileText } from './tile.js';

export type BackwardSpec = ScoreSpec &
  TileSpec & {
    shuffles: boolean;
    /** Output rows are whole vec4. */
    vectorOut: boolean;
  };

const kernel = defineKernel({
  name: 'attention-dq',
  bindings: {
    ...backwardReads<BackwardSpec>(),
    dq: write<BackwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
  },
  uniforms: { ...backwardUniforms, tiles: 'u32' },
  wgsl: dqText,
  forms: ['baseline', 'matrix'],
});

export function runDqKernel(
  device: Device,
  spec: BackwardSpec,
  tensors: BackwardTensors & { dq: Tensor },
  uniforms: BackwardUniforms & { tiles: number },
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms, grid });
}

function dqText(spec: BackwardSpec): string {
  const { headDim, valueDim } = spec;
  const t = new TileText(spec, { contract: Math.max(headDim, valueDim), accumulate: headDim }, spec.opaque);
  const rows = t.rowNumbers();
  const tile = `
    ${scoreGradients(spec, t)}
    ${t.storeWeights('s')}
    ${t.accumulate('dq', headDim, (n, item) => `items_k(kBase, keyStart + ${n}, keyStop, ${item})`)}`;
  return `
    ${t.variables()}
    ${backwardFunctions(spec, spec.width)}
    @compute @workgroup_size(${t.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${tilePosition(spec)}
      let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
      ${t.lanePosition()}
      ${rows
        .map(
          (i) => `
      let rowAt${i} = rowStart + ${t.row(i)};
      let at${i} = (b * uniforms.queries + rowAt${i}) * uniforms.heads + h;
      let place${i} = i32(rowAt${i}) + queryOffset;
      let stat${i} = statOf(at${i}, rowAt${i} < rowEnd);`,
        )
        .join('\n')}
      let alive = ${rows.map((i) => `select(0u, ${t.bitsOfRow(i)}, stat${i}.x < 1e29)`).join(' | ')};
      ${t.declareOutput('dq', headDim)}
      ${keyLoop(spec, spec.columns, tile)}
      ${t.eachOutput(headDim, (i, j, item) => `if (rowAt${i} < rowEnd) { ${t.storeItem('dq', spec.vectorOut, `at${i} * ${headDim}u`, headDim, item, `dq${i}_${j} * uniforms.scale`)} }`)}
    }`;
}

/**
 * For a tile of queries (rows) and keys (columns): `s<i>_<c>` becomes dS, the gradient of the scaled raw score. Reads `stat<i>`
 * (logsumexp in base 2 and delta), `place<i>`, and `alive`, the bits of rows that see something.
 * @param each text for each pair once the gradient of its final score `g` is known
 */
export function scoreGradients(spec: ScoreSpec & TileSpec, t: TileText, each?: (names: PairNames, place: PairPlace) => string): string {
  const { headDim, valueDim } = spec;
  const pair = (n: PairNames): string => {
    const s = n.own('s');
    const place = { b: 'b', h: 'h', q: n.row('place'), kv: `(keyStart + ${n.columnInTile})` };
    const slope = slopeText(spec, s, place);
    return `
      let w = select(0.0, exp2(${logitText(spec, s, place, n.column('bias'))} - ${n.row('stat')}.x), ${n.hasBit('visible')});
      let g = w * (${n.own('p')} - ${n.row('stat')}.y);
      ${each?.(n, place) ?? ''}
      ${s} = g${slope ? ` * ${slope}` : ''};`;
  };
  const use = { own: ['s', 'p'], row: ['place', 'stat'], column: spec.keyBias ? ['bias'] : [] };
  return `
    ${t.contract(
      's',
      headDim,
      (n, item) => `items_q(qBase, rowStart + ${n}, rowEnd, ${item})`,
      (n, item) => `items_k(kBase, keyStart + ${n}, keyStop, ${item})`,
    )}
    ${t.contract(
      'p',
      valueDim,
      (n, item) => `items_dOut(dOutBase, rowStart + ${n}, rowEnd, ${item})`,
      (n, item) => `items_v(vBase, keyStart + ${n}, keyStop, ${item})`,
    )}
    ${spec.keyBias ? t.columnValues('bias', 'f32', (column) => `keyBiasOf(b, h, keyStart + ${column})`) : ''}
    var visible = alive;
    if (masked) {
      ${t.pairBits('bits', (row, column) => `seen(b, h, i32(rowStart + ${row}) + queryOffset, keyStart + ${column}, keyStop)`)}
      visible &= bits;
    }
    ${eachPair(t, t.opaque && (spec.score !== '' || each !== undefined), use, pair)}`;
}
