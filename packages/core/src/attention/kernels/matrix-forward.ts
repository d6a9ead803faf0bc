// Attention forward on fragments: f16 operands, f32 sums and statistics, lazy rescaling.
// tile    16 x blocks query rows a subgroup, `columns` keys a step, `chunk` of them at a time; scores and weights pass through
//         workgroup memory, since fragments have no elements. The next tile is loaded into registers while this one is computed
// bytes   q and out once; k and v once a query tile that sees them (twice k where values are cut into parts); 4 a row where a
//         table says where rows lie
// limits  head dimensions up to 256 (padded to 16 in workgroup memory); f32 inputs are rounded to f16 on the way in. A weight of 0
//         does not hide a NaN in v: a row that comes before a NaN of its own key tile is NaN too, as in other flash kernels
// source  Dao 2023 (FlashAttention-2), algorithm 1; the output is rescaled only when a row's maximum grew by more than 2^8
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { ln2, log2e, logitText, scoreFunctions, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { tilePosition } from './forward.js';
import {
  eightLoader,
  halvesFunction,
  lanePlace,
  type MatrixSpec,
  orderBinding,
  padded,
  Region,
  regionBytes,
  rowBinding,
  rowPlace,
  Staging,
} from './matrix-memory.js';
import { ownedRow, Scratch, scratchBytes } from './matrix-scratch.js';
import { hideKeys, keyBits, ownedFragments, seesKeys, steps, testsEveryTile } from './matrix-steps.js';
import { keyWalk } from './matrix-walks.js';

export type MatrixForwardSpec = MatrixSpec & {
  /** The scale is positive and nothing is added to scores: it is folded into the exponent. */
  fold: boolean;
  vectorOut: boolean;
  /** Columns of v that a workgroup takes; `parts` workgroups share a query tile. */
  valueColumns: number;
  parts: number;
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
    order: orderBinding<MatrixForwardSpec>(),
    out: write<MatrixForwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
    lse: write<MatrixForwardSpec>('f32', { raw: 'u32' }),
  },
  uniforms: {
    ...scoreUniforms,
    tiles: 'u32',
    splits: 'u32',
    /** What a hidden score is written as, so that times scale2 it is NEG. */
    hidden: 'f32',
  },
  wgsl: matrixForwardText,
});

/** Records the kernel: heads, by `tiles` query tiles a head, by batch. */
export function runMatrixForward(
  device: Device,
  spec: MatrixForwardSpec,
  tensors: {
    q: Tensor;
    k: Tensor;
    v: Tensor;
    arena: Operand | undefined;
    extras: Tensor | undefined;
    order: Operand | undefined;
    out: Tensor;
    lse: Tensor;
  },
  uniforms: UniformsOf<ScoreUniforms> & { tiles: number; hidden: number },
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms: { ...uniforms, splits: spec.parts }, grid });
}

/** Bytes of workgroup memory of a tile; under emulation the queries have a region of their own. */
export function matrixForwardBytes(
  tile: { subgroups: number; blocks: number; columns: number; chunk: number; barriers: boolean },
  dims: { headDim: number; valueColumns: number },
  hardware: boolean,
): number {
  const { columns } = tile;
  const rows = tile.subgroups * 16 * tile.blocks;
  const staged = regionBytes('rows', columns, padded(dims.headDim)) + regionBytes('rows', columns, padded(dims.valueColumns));
  const emulated = hardware ? 0 : regionBytes('rows', rows, padded(dims.headDim)) + 4 * 32 * tile.subgroups;
  return staged + scratchBytes(tile) + (tile.barriers ? 16 : 0) + emulated;
}

function matrixForwardText(spec: MatrixForwardSpec, { capabilities }: KernelContext): string {
  const { headDim, columns, subgroups, rows, parts, valueColumns, barriers } = spec;
  const f = new Fragments(capabilities, { N: spec.fragmentColumns === 16 ? 16 : 8 });
  const t = new Scratch(f, spec);
  const { blocks, units } = t;
  const keys = new Region(f, 'stagedKeys', 'rows', columns, padded(headDim));
  const values = new Region(f, 'stagedValues', 'rows', columns, valueColumns);
  const queries = f.hardware ? undefined : new Region(f, 'stagedQueries', 'rows', rows, padded(headDim));
  const firstChunk = parts > 1 ? { firstChunk: 'firstChunk' } : {};
  const keyTile = new Staging(f, keys, spec, { binding: 'k', base: 'kBase', dim: headDim, rows: columns });
  const valueTile = new Staging(f, values, spec, { binding: 'v', base: 'vBase', dim: valueColumns, rows: columns, ...firstChunk });
  const logit = (e: number, m: number): string =>
    logitText(
      spec,
      `four[${e}]`,
      { b: 'b', h: 'h', q: `place${m}`, kv: `(chunkStart + column + ${e}u)` },
      `keyBiasOf(b, h, chunkStart + column + ${e}u)`,
    );
  const logits = range(4).map((e) => (m: number) => `four[${e}] = ${logit(e, m)};`);
  const transform = (m: number): string => (spec.fold ? '' : t.overScores(m, logits.map((text) => text(m)).join(' ')));
  const top = (m: number): string => {
    const widest = units.map((u) => `x${m}_${u}`).reduce((a, b) => `max(${a}, ${b})`);
    return `let widest${m} = ${widest};
      let top${m} = max(max(widest${m}.x, widest${m}.y), max(widest${m}.z, widest${m}.w))${spec.fold ? ' * uniforms.scale2' : ''};`;
  };
  const grow = (m: number): string => `
    ${f.exchange(`there${m}`, `top${m}`, 1)}
    let whole${m} = max(top${m}, there${m});
    let next${m} = select(highest${m}, whole${m}, whole${m} > highest${m} + 8.0);
    let shrink${m} = exp2(highest${m} - next${m});
    highest${m} = next${m};
    sum${m} *= shrink${m};`;
  const grew = blocks.map((m) => `top${m} > highest${m} + 8.0`).join(' || ');
  const rescale = `${blocks.map(grow).join('\n')} ${t.scaleRows('o', valueColumns, (m) => `shrink${m}`)}`;
  const weigh = (m: number): string => `
    let reference${m} = select(highest${m}, 0.0, highest${m} < 0.5 * NEG);
    var added${m} = vec4f();
    ${units
      .map((u) => {
        const exponent = spec.fold ? `fma(x${m}_${u}, vec4f(uniforms.scale2), vec4f(-reference${m}))` : `x${m}_${u} - reference${m}`;
        return `{ let w = exp2(${exponent}); added${m} += w; ${t.weight(m, u, 'w')} }`;
      })
      .join('\n')}
    sum${m} += added${m}.x + added${m}.y + added${m}.z + added${m}.w;`;
  const compute = (first: number, masked: boolean): string => `{
    let chunkStart = keyStart + ${first}u;
    ${blocks.map((m) => units.map((u) => `var x${m}_${u}: vec4f;`).join(' ')).join(' ')}
    ${t.product(
      queries ?? 'query',
      keys,
      headDim,
      first,
      t.perBlock(
        (m) => t.storeScores(m),
        (m) => `${transform(m)} ${units.map((u) => `x${m}_${u} = ${t.score(m, u)};`).join(' ')}`,
      ),
    )}
    ${masked ? `if (masked) { ${blocks.map((m) => hideKeys(spec, t, m, first)).join('\n')} }` : ''}
    ${blocks.map(top).join('\n')}
    ${
      barriers
        ? `if (${grew}) { grown.x = 1u; }
    let mustRescale = workgroupUniformLoad(&grown).x;
    if (mustRescale != 0u) { if (lane == 0u) { grown = vec4u(); } ${rescale} }`
        : `if (subgroupAny(${grew})) { ${rescale} }`
    }
    ${t.perBlock(weigh, (m) => t.loadWeights(m))}
    ${t.accumulate('o', values, valueColumns, first)} }`;
  const chunks = range(columns / spec.chunk).map((c) => c * spec.chunk);
  const rowsOf = blocks.map((m) => `let rowAt${m} = rowStart + ${ownedRow(spec, m)} + row; let place${m} = i32(rowAt${m}) + queryOffset;`);
  const start = spec.sinks
    ? (m: number) =>
        `var highest${m} = bitcast<f32>(extras[base_extras() + uniforms.sinksAt + h]) * ${log2e}; var sum${m} = select(0.0, 1.0, pair == 0u);`
    : (m: number) => `var highest${m} = NEG; var sum${m} = 0.0;`;
  const finish = (m: number): string => `
    ${f.exchange(`sumThere${m}`, `sum${m}`, 1)}
    let whole${m} = max(sum${m} + sumThere${m}, 1e-37);
    let alive${m} = highest${m} > 0.5 * NEG;
    if (pair == 0u && rowAt${m} < rowEnd${parts > 1 ? ' && split == 0u' : ''}) {
      lse[base_lse() + (b * uniforms.queries + ${rowPlace(spec, `rowAt${m}`)}) * uniforms.heads + h] =
        select(0xff800000u, bitcast<u32>((highest${m} + log2(whole${m})) * ${ln2}), alive${m});
    }`;
  const bits = keyBits(spec, t);
  const main = `
    ${tilePosition({ ...spec, split: parts > 1 }, { tile: 'group.y', head: 'group.x' })}
    ${parts > 1 ? `let firstValue = split * ${valueColumns}u; let firstChunk = firstValue / 8u;` : ''}
    ${lanePlace}
    ${rowsOf.join('\n')}
    ${ownedFragments(f, spec, { first: 'rowStart', end: 'rowEnd' }, [{ name: 'query', through: keys, own: queries, binding: 'q', base: 'qBase', dim: headDim }])}
    ${t.declareOutput('o', valueColumns)}
    ${blocks.map(start).join('\n')}
    ${barriers ? 'if (lane == 0u) { grown = vec4u(); }' : ''}
    ${steps(keyWalk(spec, columns), [keyTile, valueTile], {
      start: 'keyStart',
      stop: 'keyStop',
      one: !f.hardware || testsEveryTile(spec),
      sees: barriers ? undefined : bits ? `${seesKeys(spec)} && ${bits.any}` : seesKeys(spec),
      ...(bits && { extras: [bits.extra] }),
      compute: (masked) => chunks.map((first) => compute(first, masked)).join('\n'),
    })}
    ${blocks.map(finish).join('\n')}
    ${barriers ? 'workgroupBarrier();' : ''}
    ${t.storeOutput('o', valueColumns, {
      binding: 'out',
      vector: spec.vectorOut,
      at: (m) =>
        `((b * uniforms.queries + ${rowPlace(spec, `rowAt${m}`)}) * uniforms.heads + h) * ${spec.valueDim}u${parts > 1 ? ' + firstValue' : ''}`,
      limit: parts > 1 ? `(${spec.valueDim}u - firstValue)` : `${spec.valueDim}u`,
      valid: (m) => `rowAt${m} < rowEnd`,
      factor: (m) => `select(0.0, 1.0 / whole${m}, alive${m})`,
    })}`;
  return `
    ${queries?.declare() ?? ''}
    ${keys.declare()}
    ${values.declare()}
    ${t.declare()}
    ${barriers ? 'var<workgroup> grown: vec4u;' : ''}
    ${halvesFunction}
    ${eightLoader('q', headDim, spec)}
    ${eightLoader('k', headDim, spec)}
    ${eightLoader('v', spec.valueDim, spec)}
    ${scoreFunctions(spec)}
    ${f.entry(subgroups, main, { lanesInOrder: true })}`;
}
