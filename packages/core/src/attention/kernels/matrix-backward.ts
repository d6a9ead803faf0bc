// Both backward sweeps on fragments: f16 operands, f32 sums and statistics.
// - queries own the rows: P and dS against the keys that they see, dq = scale dS K
// - keys own the rows: P^T and dS^T against the queries that see them, dv = P^T dOut, dk = scale dS^T q, row sums give dBias
// tile    16 rows a subgroup, `columns` rows of the other side a step; scores go through workgroup memory twice a step
// bytes   the owned rows once, the streamed rows once a tile that they meet
// limits  head dimensions up to 128; no score function (those run on register tiles); dS is divided by a power of two near the
//         largest |dOut| before it is rounded to f16, so that loss scales neither overflow nor vanish
// source  Dao 2023 (FlashAttention-2), algorithm 2
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel, type KernelContext } from '../../kernel/define.js';
import { Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { log2e, scoreFunctions, scoreUniforms } from './common.js';
import { keyPosition } from './dkv.js';
import { type BackwardTensors, type BackwardUniforms, statFunction } from './dq.js';
import { tilePosition } from './forward.js';
import { keyLoop, queryLoop } from './loops.js';
import {
  eightLoader,
  halvesFunction,
  laneColumn,
  lanePlace,
  type MatrixSpec,
  OutputBands,
  overRow,
  rowBinding,
  rowPad,
  scorePad,
  scoreProduct,
  stagedStride,
  stageRows,
} from './matrix-tile.js';

export type MatrixBackwardSpec = MatrixSpec & {
  /** The scale is positive and no bias is added: it is folded into the exponent. */
  fold: boolean;
  vectorOut: boolean;
  /** For the sweep of keys. */
  split: boolean;
  biasGradient: boolean;
};

const shared = {
  q: read<MatrixBackwardSpec>('float', rowBinding()),
  k: read<MatrixBackwardSpec>('float', rowBinding()),
  v: read<MatrixBackwardSpec>('float', rowBinding()),
  dOut: read<MatrixBackwardSpec>('float', rowBinding()),
  stats: read<MatrixBackwardSpec>('f32', { raw: 'vec2f' }),
  arena: read<MatrixBackwardSpec>('any', { raw: 'u32', when: (s) => s.arena }),
  extras: read<MatrixBackwardSpec>('any', { raw: 'u32', when: (s) => s.extras }),
  grads: write<MatrixBackwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
};

const uniforms = {
  ...scoreUniforms,
  dOutBatch: 'u32',
  dOutRow: 'u32',
  dOutHead: 'u32',
  hidden: 'f32',
  /** Query tiles a head (queries own the rows). */
  tiles: 'u32',
  /** Parts of the query tiles; first elements of dv and dBias, and elements of a part (keys own the rows). */
  splits: 'u32',
  dvAt: 'u32',
  dBiasAt: 'u32',
  partSize: 'u32',
  /** First key tile of the dispatch, and keys a batch entry in the buffer. */
  firstTile: 'u32',
  storedKeys: 'u32',
} as const;

type BackwardKernel = Kernel<MatrixBackwardSpec, typeof shared, typeof uniforms>;

function define(name: string, owner: 'queries' | 'keys'): BackwardKernel {
  const wgsl = (spec: MatrixBackwardSpec, context: KernelContext): string => backwardText(spec, context, owner);
  return defineKernel({ name, tier: 'matrix', forms: ['baseline', 'matrix'], bindings: shared, uniforms, wgsl });
}

const kernels = { queries: /* @__PURE__ */ define('attention-dq', 'queries'), keys: /* @__PURE__ */ define('attention-dkv', 'keys') };

/** @param owner whose rows the workgroups own: queries give dq, keys give dk, dv and dBias in one buffer */
export function runMatrixBackward(
  device: Device,
  owner: 'queries' | 'keys',
  spec: MatrixBackwardSpec,
  tensors: BackwardTensors & { grads: Tensor },
  values: BackwardUniforms & {
    hidden: number;
    tiles: number;
    splits: number;
    dvAt: number;
    dBiasAt: number;
    partSize: number;
    firstTile: number;
    storedKeys: number;
  },
  grid: readonly [number, number, number],
): void {
  kernels[owner].run(device, { spec, tensors, uniforms: values, grid });
}

/** Bytes of workgroup memory of a tile. */
export function matrixBackwardBytes(
  tile: { subgroups: number; columns: number },
  dims: { headDim: number; valueDim: number },
  hardware: boolean,
): number {
  const rows = tile.subgroups * 16;
  const { columns } = tile;
  const staged = (rows + columns) * (stagedStride(dims.headDim) + stagedStride(dims.valueDim));
  return 2 * staged + 4 * rows * (columns + scorePad) + 2 * rows * (columns + rowPad) + 8 * columns + (hardware ? 0 : 8 * rows);
}

function backwardText(spec: MatrixBackwardSpec, { capabilities }: KernelContext, owner: 'queries' | 'keys'): string {
  const { headDim, valueDim, columns, rows } = spec;
  const f = new Fragments(capabilities, { N: spec.fragmentColumns === 16 ? 16 : 8 });
  const byKeys = owner === 'keys';
  const half = range(columns / 2);
  const scoreSide = new OutputBands(f, spec, byKeys ? 'dk' : 'dq', headDim);
  const valueSide = new OutputBands(f, spec, 'dv', valueDim);
  const query = byKeys ? 'rowStart + kv' : 'rowAt';
  const key = byKeys ? 'keyAt' : 'keyStart + kv';
  const place = `i32(${query}) + queryOffset`;
  const stat = (j: number): string => (byKeys ? `columnStats[${laneColumn(spec, j)}]` : 'stat');
  const bias = spec.keyBias ? ` + keyBiasOf(b, h, ${key}) * ${log2e}` : '';
  const first = byKeys
    ? { binding: 'q', start: 'rowStart', end: 'rowEnd', base: 'qBase' }
    : { binding: 'k', start: 'keyStart', end: 'keyStop', base: 'kBase' };
  const second = byKeys ? { binding: 'dOut', base: 'dOutBase' } : { binding: 'v', base: 'vBase' };
  const streamed = { rows: columns, first: first.start, end: first.end };
  const body = `
    ${stageRows(spec, { ...streamed, array: 'streamedScore', binding: first.binding, dim: headDim, base: first.base })}
    ${stageRows(spec, { ...streamed, array: 'streamedValue', binding: second.binding, dim: valueDim, base: second.base })}
    ${byKeys ? `if (lane < ${columns}u) { columnStats[lane] = statOf((b * uniforms.queries + rowStart + lane) * uniforms.heads + h, rowStart + lane < rowEnd); }` : ''}
    workgroupBarrier();
    ${scoreProduct(f, spec, { left: 'ownedScore', right: 'streamedScore', dim: headDim })}
    workgroupBarrier();
    ${spec.fold ? '' : overRow(spec, `scores[scoreRow + kv] = scores[scoreRow + kv] * uniforms.scale2${bias};`)}
    if (masked) { ${overRow(spec, `if (!seen(b, h, ${place}, ${key}, keyStop)) { scores[scoreRow + kv] = uniforms.hidden; }`)} }
    ${half
      .map((j) => {
        const x = `scores[scoreRow + ${laneColumn(spec, j)}]${spec.fold ? ' * uniforms.scale2' : ''}`;
        const alive = byKeys ? `${stat(j)}.x < 1e29` : 'alive';
        return `let w${j} = select(0.0, exp2(${x} - ${stat(j)}.x), ${alive});${byKeys ? ` weights[weightRow + ${laneColumn(spec, j)}] = f16(w${j});` : ''}`;
      })
      .join('\n')}
    workgroupBarrier();
    ${byKeys ? valueSide.accumulate('streamedValue') : ''}
    ${scoreProduct(f, spec, { left: 'ownedValue', right: 'streamedValue', dim: valueDim })}
    workgroupBarrier();
    ${half
      .map((j) => {
        const g = `w${j} * (scores[scoreRow + ${laneColumn(spec, j)}] - ${stat(j)}.y)`;
        return `{ let g = ${g};${byKeys && spec.biasGradient ? ' dBias += g;' : ''} weights[weightRow + ${laneColumn(spec, j)}] = f16(clamp(g * unit.y, -65504.0, 65504.0)); }`;
      })
      .join('\n')}
    workgroupBarrier();
    ${scoreSide.accumulate('streamedScore')}
    workgroupBarrier();`;
  const main = byKeys ? mainOfKeys(spec, f, scoreSide, valueSide, body) : mainOfQueries(spec, scoreSide, body);
  return `
    var<workgroup> ownedScore: array<f16, ${rows * stagedStride(headDim)}>;
    var<workgroup> ownedValue: array<f16, ${rows * stagedStride(valueDim)}>;
    var<workgroup> streamedScore: array<f16, ${columns * stagedStride(headDim)}>;
    var<workgroup> streamedValue: array<f16, ${columns * stagedStride(valueDim)}>;
    var<workgroup> scores: array<f32, ${rows * (columns + scorePad)}>;
    var<workgroup> weights: array<f16, ${rows * (columns + rowPad)}>;
    ${byKeys ? `var<workgroup> columnStats: array<vec2f, ${columns}>;` : ''}
    ${halvesFunction}
    ${eightLoader('q', headDim, spec.load)}
    ${eightLoader('k', headDim, spec.load)}
    ${eightLoader('v', valueDim, spec.load)}
    ${eightLoader('dOut', valueDim, spec.load)}
    ${scoreFunctions(spec)}
    ${statFunction}
    // a power of two near the largest |dOut|, and its inverse, behind the statistics of all rows
    fn unitOf(batches: u32) -> vec2f { return stats[base_stats() + batches * uniforms.queries * uniforms.heads]; }
    ${f.entry(spec.subgroups, main)}`;
}

function mainOfQueries(spec: MatrixBackwardSpec, dq: OutputBands, body: string): string {
  const { headDim, valueDim, rows, columns } = spec;
  const owned = { rows, first: 'rowStart', end: 'rowEnd' };
  return `
    ${tilePosition(spec)}
    let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
    ${lanePlace(spec)}
    let rowAt = rowStart + subgroupRow + row;
    let stat = statOf((b * uniforms.queries + rowAt) * uniforms.heads + h, rowAt < rowEnd);
    let alive = stat.x < 1e29;
    let unit = unitOf(groups.z);
    ${stageRows(spec, { ...owned, array: 'ownedScore', binding: 'q', dim: headDim, base: 'qBase' })}
    ${stageRows(spec, { ...owned, array: 'ownedValue', binding: 'dOut', dim: valueDim, base: 'dOutBase' })}
    ${dq.declare()}
    ${keyLoop(spec, columns, body)}
    ${dq.store('grads', spec.vectorOut, {
      valid: 'rowStart + n < rowEnd',
      at: `((b * uniforms.queries + rowStart + n) * uniforms.heads + h) * ${headDim}u`,
      factor: 'unit.x * uniforms.scale',
    })}`;
}

function mainOfKeys(spec: MatrixBackwardSpec, f: Fragments, dk: OutputBands, dv: OutputBands, body: string): string {
  const { headDim, valueDim, rows, columns, biasGradient } = spec;
  const owned = { rows, first: 'keyStart', end: 'keyStop' };
  const part = spec.split ? 'split * uniforms.partSize + ' : '';
  const at = (dim: number): string => `((b * uniforms.storedKeys + keyStart + n) * uniforms.kvHeads + kvHead) * ${dim}u`;
  const valid = 'keyStart + n < keyLimit';
  return `
    ${keyPosition(spec)}
    ${lanePlace(spec)}
    let keyAt = keyStart + subgroupRow + row;
    let unit = unitOf(groups.z);
    ${stageRows(spec, { ...owned, array: 'ownedScore', binding: 'k', dim: headDim, base: 'kBase' })}
    ${stageRows(spec, { ...owned, array: 'ownedValue', binding: 'v', dim: valueDim, base: 'vBase' })}
    ${dk.declare()}
    ${dv.declare()}
    for (var member = 0u; member < uniforms.group; member++) {
      let h = kvHead * uniforms.group + member;
      let qBase = b * uniforms.qBatch + h * uniforms.qHead;
      let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
      ${biasGradient ? 'var dBias = 0.0;' : ''}
      ${queryLoop(spec, columns, rows, body, spec.split)}
      ${
        biasGradient
          ? `${f.exchange('dBiasThere', 'dBias', 16)}
      if (part == 0u && keyAt < keyLimit) { store_grads(${part}uniforms.dBiasAt + (b * uniforms.heads + h) * uniforms.storedKeys + keyAt, dBias + dBiasThere); }`
          : ''
      }
    }
    ${dk.store('grads', spec.vectorOut, { valid, at: `${part}${at(headDim)}`, factor: 'unit.x * uniforms.scale' })}
    ${dv.store('grads', spec.vectorOut, { valid, at: `${part}uniforms.dvAt + ${at(valueDim)}`, factor: '1.0' })}`;
}
