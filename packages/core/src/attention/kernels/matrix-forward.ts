// Attention forward on fragments: f16 operands, f32 sums and statistics, lazy rescaling.
// tile    16 query rows a subgroup, `columns` keys a step; scores go through workgroup memory, since fragments have no elements
// bytes   q and out once; k and v once a query tile that sees them
// limits  head dimensions up to 128 (padded to 16 in workgroup memory); f32 inputs are rounded to f16 on the way in
// source  Dao 2023 (FlashAttention-2), algorithm 1; the output is rescaled only when a row's maximum grew by more than 2^8
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { ln2, log2e, logitText, scoreFunctions, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { tilePosition } from './forward.js';
import { keyLoop } from './loops.js';
import {
  eightLoader,
  halvesFunction,
  laneColumn,
  lanePlace,
  type MatrixSpec,
  OutputBands,
  overRow,
  padded,
  rowBinding,
  rowPad,
  scorePad,
  scoreProduct,
  stagedStride,
  stageRows,
} from './matrix-tile.js';

export type MatrixForwardSpec = MatrixSpec & {
  /** The scale is positive and nothing is added to scores: it is folded into the exponent. */
  fold: boolean;
  vectorOut: boolean;
};

const kernel = defineKernel({
  name: 'attention-forward',
  tier: 'matrix',
  forms: ['baseline', 'subgroups', 'matrix'],
  bindings: {
    q: read<MatrixForwardSpec>('float', rowBinding()),
    k: read<MatrixForwardSpec>('float', rowBinding()),
    v: read<MatrixForwardSpec>('float', rowBinding()),
    arena: read<MatrixForwardSpec>('any', { raw: 'u32', when: (s) => s.arena }),
    extras: read<MatrixForwardSpec>('any', { raw: 'u32', when: (s) => s.extras }),
    out: write<MatrixForwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
    lse: write<MatrixForwardSpec>('f32', { raw: 'u32' }),
  },
  uniforms: {
    ...scoreUniforms,
    tiles: 'u32',
    /** What a hidden score is written as, so that times scale2 it is NEG. */
    hidden: 'f32',
  },
  wgsl: matrixForwardText,
});

export function runMatrixForward(
  device: Device,
  spec: MatrixForwardSpec,
  tensors: { q: Tensor; k: Tensor; v: Tensor; arena: Operand | undefined; extras: Tensor | undefined; out: Tensor; lse: Tensor },
  uniforms: UniformsOf<ScoreUniforms> & { tiles: number; hidden: number },
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms, grid });
}

/** Bytes of workgroup memory of a tile; under emulation the queries have a region of their own. */
export function matrixForwardBytes(
  tile: { subgroups: number; columns: number },
  dims: { headDim: number; valueDim: number },
  hardware: boolean,
): number {
  const rows = tile.subgroups * 16;
  const { columns } = tile;
  const keyRows = hardware ? Math.max(columns, rows) : columns + rows;
  const staged = keyRows * stagedStride(dims.headDim) + columns * stagedStride(dims.valueDim);
  return 2 * staged + 4 * rows * (columns + scorePad) + 2 * rows * (columns + rowPad) + 4 * rows + 16 + (hardware ? 0 : 4 * 2 * rows);
}

function matrixForwardText(spec: MatrixForwardSpec, { capabilities }: KernelContext): string {
  const { headDim, valueDim, columns, subgroups, rows } = spec;
  const f = new Fragments(capabilities, { N: spec.fragmentColumns === 16 ? 16 : 8 });
  const keyStride = stagedStride(headDim);
  const half = range(columns / 2);
  const out = new OutputBands(f, spec, 'o', valueDim);
  // fragments of the queries stay in registers; the emulation reads them where they lie
  const queries = f.hardware ? 'stagedKeys' : 'stagedQueries';
  const held = f.hardware ? 'query' : undefined;
  const logit = logitText(spec, 'score', { b: 'b', h: 'h', q: 'place', kv: '(keyStart + kv)' }, 'keyBiasOf(b, h, keyStart + kv)');
  const staged = { rows: columns, first: 'keyStart', end: 'keyStop' };
  const body = `
    if (lane == 0u) { grown = vec4u(); }
    ${stageRows(spec, { ...staged, array: 'stagedKeys', binding: 'k', dim: headDim, base: 'kBase' })}
    ${stageRows(spec, { ...staged, array: 'stagedValues', binding: 'v', dim: valueDim, base: 'vBase' })}
    workgroupBarrier();
    ${scoreProduct(f, spec, { left: queries, right: 'stagedKeys', dim: headDim, ...(held !== undefined && { held }) })}
    workgroupBarrier();
    ${spec.fold ? '' : overRow(spec, `let score = scores[scoreRow + kv]; scores[scoreRow + kv] = ${logit};`)}
    if (masked) { ${overRow(spec, 'if (!seen(b, h, place, keyStart + kv, keyStop)) { scores[scoreRow + kv] = uniforms.hidden; }')} }
    ${half.map((j) => `let x${j} = scores[scoreRow + ${laneColumn(spec, j)}];`).join(' ')}
    let topHere = ${half.reduce((text, j) => (text === '' ? `x${j}` : `max(${text}, x${j})`), '')};
    ${f.exchange('topThere', 'topHere', 16)}
    let top = max(topHere, topThere)${spec.fold ? ' * uniforms.scale2' : ''};
    let next = select(highest, top, top > highest + 8.0);
    let shrink = exp2(highest - next);
    // every lane that writes the flag writes the same value
    if (next != highest && highest > 0.5 * NEG) { grown.x = 1u; }
    highest = next;
    let reference = select(next, 0.0, next < 0.5 * NEG);
    var added = 0.0;
    ${half
      .map(
        (j) =>
          `{ let w = exp2(${spec.fold ? `x${j} * uniforms.scale2` : `x${j}`} - reference); added += w; weights[weightRow + ${laneColumn(spec, j)}] = f16(w); }`,
      )
      .join('\n')}
    sum = sum * shrink + added;
    let mustRescale = workgroupUniformLoad(&grown).x;
    if (mustRescale != 0u) { ${out.scaleRows((text) => overRow(spec, text), 'shrink')} }
    ${out.accumulate('stagedValues')}
    workgroupBarrier();`;
  const main = `
    ${tilePosition(spec)}
    ${lanePlace(spec)}
    let rowAt = rowStart + subgroupRow + row;
    let place = i32(rowAt) + queryOffset;
    ${stageRows(spec, { array: queries, binding: 'q', dim: headDim, rows, base: 'qBase', first: 'rowStart', end: 'rowEnd' })}
    workgroupBarrier();
    ${
      held
        ? range(padded(headDim) / f.K)
            .map((k) => f.loadLeft(`${held}${k}`, queries, `subgroupRow * ${keyStride}u + ${k * f.K}u`, `${keyStride}u`))
            .join('\n')
        : ''
    }
    workgroupBarrier();
    ${out.declare()}
    ${
      spec.sinks
        ? `var highest = bitcast<f32>(extras[base_extras() + uniforms.sinksAt + h]) * ${log2e}; var sum = select(0.0, 1.0, part == 0u);`
        : 'var highest = NEG; var sum = 0.0;'
    }
    ${keyLoop(spec, columns, body)}
    ${f.exchange('sumThere', 'sum', 16)}
    let whole = sum + sumThere;
    let alive = highest > 0.5 * NEG;
    if (part == 0u) {
      shares[subgroupRow + row] = select(0.0, 1.0 / max(whole, 1e-37), alive);
      if (rowAt < rowEnd) {
        lse[base_lse() + (b * uniforms.queries + rowAt) * uniforms.heads + h] =
          select(0xff800000u, bitcast<u32>((highest + log2(max(whole, 1e-37))) * ${ln2}), alive);
      }
    }
    ${out.store('out', spec.vectorOut, {
      valid: 'rowStart + n < rowEnd',
      at: `((b * uniforms.queries + rowStart + n) * uniforms.heads + h) * ${valueDim}u`,
      factor: 'shares[n]',
    })}`;
  return `
    ${f.hardware ? '' : `var<workgroup> stagedQueries: array<f16, ${rows * keyStride}>;`}
    var<workgroup> stagedKeys: array<f16, ${(f.hardware ? Math.max(columns, rows) : columns) * keyStride}>;
    var<workgroup> stagedValues: array<f16, ${columns * stagedStride(valueDim)}>;
    var<workgroup> scores: array<f32, ${rows * (columns + scorePad)}>;
    var<workgroup> weights: array<f16, ${rows * (columns + rowPad)}>;
    var<workgroup> shares: array<f32, ${rows}>;
    var<workgroup> grown: vec4u;
    ${halvesFunction}
    ${eightLoader('q', headDim, spec.load)}
    ${eightLoader('k', headDim, spec.load)}
    ${eightLoader('v', valueDim, spec.load)}
    ${scoreFunctions(spec)}
    ${f.entry(subgroups, main)}`;
}
