// Gradients of keys and values (and of the key bias): a workgroup owns keys and walks the query tiles that see them, for each
// query head of the group. dv = P^T dOut, dk = scale dS^T q, dBias = column sums of dS.
// tile    rows (keys) x columns (queries) a workgroup and step; four products a step, dk and dv in named registers
// bytes   k and v once; q twice and dOut twice a key tile that sees them
// limits  as the forward kernel; exactly 8 storage bindings: dk, dv and dBias lie in one buffer
// source  Dao 2023 (FlashAttention-2), algorithm 2, the loop over queries; long rows of queries are cut into parts that are
//         summed in a fixed order, so gradients are deterministic
import type { Device } from '../../device/device.js';
import { write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import {
  backwardFunctions,
  backwardReads,
  type BackwardTensors,
  backwardUniforms,
  type BackwardUniforms,
  keySweepUniforms,
  type KeySweepUniforms,
} from './backward-bindings.js';
import { logitText, type ScoreSpec, slopeText } from './common.js';
import type { BackwardSpec } from './dq.js';
import { queryLoop } from './loops.js';
import { eachPair, type PairNames } from './pairs.js';
import { TileText } from './tile.js';

export type DkvSpec = BackwardSpec & {
  /** Each workgroup takes a part of the query tiles. */
  split: boolean;
  /** Column sums of dS are wanted. */
  biasGradient: boolean;
};

const kernel = defineKernel({
  name: 'attention-dkv',
  bindings: {
    ...backwardReads<DkvSpec>(),
    grads: write<DkvSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
  },
  uniforms: { ...backwardUniforms, ...keySweepUniforms },
  wgsl: dkvText,
  forms: ['baseline', 'matrix'],
});

export function runDkvKernel(
  device: Device,
  spec: DkvSpec,
  tensors: BackwardTensors & { grads: Tensor },
  uniforms: BackwardUniforms & KeySweepUniforms,
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms, grid });
}

function dkvText(spec: DkvSpec): string {
  const { headDim, valueDim, biasGradient } = spec;
  const widest = Math.max(headDim, valueDim);
  const t = new TileText(spec, { contract: widest, accumulate: widest }, spec.opaque);
  const rows = t.rowNumbers();
  const pair = (n: PairNames): string => {
    const s = n.own('s');
    const place = { b: 'b', h: 'h', q: n.column('place'), kv: n.row('keyAt') };
    const slope = slopeText(spec, s, place);
    return `
      let w = select(0.0, exp2(${logitText(spec, s, place, n.row('bias'))} - ${n.column('stat')}.x), ${n.hasBit('visible')});
      let g = w * (${n.own('p')} - ${n.column('stat')}.y);
      ${biasGradient ? `${n.row('dBias')} += g;` : ''}
      ${s} = g${slope ? ` * ${slope}` : ''};
      ${n.own('p')} = w;`;
  };
  const use = {
    own: ['s', 'p'],
    row: spec.keyBias ? ['keyAt', 'bias'] : ['keyAt'],
    column: ['place', 'stat'],
    sums: biasGradient ? ['dBias'] : [],
  };
  const tile = `
    ${t.contract(
      's',
      headDim,
      (n, item) => `items_k(kBase, keyStart + ${n}, keyStop, ${item})`,
      (n, item) => `items_q(qBase, rowStart + ${n}, rowEnd, ${item})`,
    )}
    ${t.contract(
      'p',
      valueDim,
      (n, item) => `items_v(vBase, keyStart + ${n}, keyStop, ${item})`,
      (n, item) => `items_dOut(dOutBase, rowStart + ${n}, rowEnd, ${item})`,
    )}
    ${queryColumns(spec, t)}
    ${eachPair(t, t.opaque && spec.score !== '', use, pair)}
    ${t.storeWeights('p')}
    ${t.accumulate('dv', valueDim, (n, item) => `items_dOut(dOutBase, rowStart + ${n}, rowEnd, ${item})`)}
    workgroupBarrier();
    ${t.storeWeights('s')}
    ${t.accumulate('dk', headDim, (n, item) => `items_q(qBase, rowStart + ${n}, rowEnd, ${item})`)}`;
  const part = spec.split ? 'split * uniforms.partSize + ' : '';
  const head = (h: string, i: number, heads: string): string => `((b * uniforms.storedKeys + keyAt${i}) * ${heads} + ${h})`;
  return `
    ${t.variables()}
    ${backwardFunctions(spec, spec.width)}
    @compute @workgroup_size(${t.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${keyPosition(spec)}
      ${t.lanePosition()}
      ${rows.map((i) => `let keyAt${i} = keyStart + ${t.row(i)};`).join(' ')}
      ${t.declareOutput('dk', headDim)}
      ${t.declareOutput('dv', valueDim)}
      for (var member = 0u; member < uniforms.group; member++) {
        let h = kvHead * uniforms.group + member;
        let qBase = b * uniforms.qBatch + h * uniforms.qHead;
        let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
        ${biasGradient ? rows.map((i) => `var dBias${i} = 0.0;`).join(' ') : ''}
        ${queryLoop(spec, spec.columns, spec.rows, tile, spec.split)}
        ${
          biasGradient
            ? `${t.reduceRows('dBias', '+', spec.shuffles)}
        if (tx == 0u) { ${rows.map((i) => `if (keyAt${i} < keyLimit) { store_grads(${part}uniforms.dBiasAt + (b * uniforms.heads + h) * uniforms.storedKeys + keyAt${i}, dBias${i}); }`).join(' ')} }`
            : ''
        }
      }
      ${t.eachOutput(headDim, (i, j, item) => `if (keyAt${i} < keyLimit) { ${t.storeItem('grads', spec.vectorOut, `${part}${head('kvHead', i, 'uniforms.kvHeads')} * ${headDim}u`, headDim, item, `dk${i}_${j} * uniforms.scale`)} }`)}
      ${t.eachOutput(valueDim, (i, j, item) => `if (keyAt${i} < keyLimit) { ${t.storeItem('grads', spec.vectorOut, `${part}uniforms.dvAt + ${head('kvHead', i, 'uniforms.kvHeads')} * ${valueDim}u`, valueDim, item, `dv${i}_${j}`)} }`)}
    }`;
}

/** For a tile of keys (rows) and queries (columns): `place<c>` and `stat<c>` of queries, `bias<i>` of keys, and the bits of `visible` pairs. */
export function queryColumns(spec: ScoreSpec, t: TileText): string {
  const columns = t.columnNumbers();
  return `
    ${columns.map((c) => `let place${c} = i32(rowStart + ${t.column(c)}) + queryOffset;`).join(' ')}
    ${t.columnValues('stat', 'vec2f', (column) => `statOf((b * uniforms.queries + rowStart + ${column}) * uniforms.heads + h, rowStart + ${column} < rowEnd)`)}
    ${
      spec.keyBias
        ? t
            .rowNumbers()
            .map((i) => `let bias${i} = keyBiasOf(b, h, keyAt${i});`)
            .join(' ')
        : ''
    }
    var visible = ${columns.map((c) => `select(0u, ${t.bitsOfColumn(c)}, stat${c}.x < 1e29)`).join(' | ')};
    if (masked) {
      ${t.pairBits('bits', (row, column) => `seen(b, h, i32(rowStart + ${column}) + queryOffset, keyStart + ${row}, keyStop)`)}
      visible &= bits;
    }`;
}

/** Where a workgroup of a key-tile kernel works: `b`, `kvHead`, `split`, `keyTile`, `keyStart`, `keyStop`, `keyLimit` (rows of the tile), `kBase`, `vBase`, `keyEnd`, `queryOffset`. */
export function keyPosition(
  spec: ScoreSpec & { rows: number; split: boolean },
  axes: { tile: string; head: string } = { tile: 'group.x', head: 'group.y' },
): string {
  return `
    ${spec.split ? `let keyTile = uniforms.firstTile + ${axes.tile} / uniforms.splits; let split = ${axes.tile} % uniforms.splits;` : `let keyTile = uniforms.firstTile + ${axes.tile};`}
    let kvHead = ${axes.head};
    let b = group.z;
    let keyEnd = keyEndOf(b);
    let queryOffset = queryOffsetOf(b);
    ${
      spec.list === 'bits'
        ? `let tilesABlockRow = (uniforms.blockKeys + ${spec.rows - 1}u) / ${spec.rows}u;
    let keyBlock = keyTile / tilesABlockRow;
    let keyStart = keyBlock * uniforms.blockKeys + keyTile % tilesABlockRow * ${spec.rows}u;
    let keyLimit = min(uniforms.keys, (keyBlock + 1u) * uniforms.blockKeys);`
        : `let keyStart = keyTile * ${spec.rows}u;
    let keyLimit = uniforms.keys;`
    }
    let keyStop = min(keyEnd, keyLimit);
    let kBase = b * uniforms.kBatch + kvHead * uniforms.kHead;
    let vBase = b * uniforms.vBatch + kvHead * uniforms.vHead;`;
}
