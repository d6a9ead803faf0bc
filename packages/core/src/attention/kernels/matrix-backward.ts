// Both backward sweeps on fragments: f16 operands, f32 sums and statistics.
// - queries own the rows: P and dS against the keys that they see, dq = scale dS K
// - keys own the rows: P^T and dS^T against the queries that see them, dv = P^T dOut, dk = scale dS^T q, row sums give dBias
// tile    16 x blocks rows a subgroup, `columns` rows of the other side a step; scores go through workgroup memory twice a step
// bytes   the owned rows once, the streamed rows once a tile that they meet
// limits  head dimensions up to 128; no score function (those run in f32). Before dS and P^T are rounded to f16, dS is
//         divided by a power of two that it cannot reach 2^15 of (stats.ts) and P multiplied by 2^14: loss scales neither overflow
//         nor vanish, and weights down to 2^-28 keep all digits
// source  Dao 2023 (FlashAttention-2), algorithm 2
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel, type Kernel, type KernelContext } from '../../kernel/define.js';
import { Fragments } from '../../kernel/fragments.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import {
  type BackwardTensors,
  backwardUniforms,
  type BackwardUniforms,
  keySweepUniforms,
  type KeySweepUniforms,
  statFunction,
} from './backward-bindings.js';
import { log2e, scoreFunctions } from './common.js';
import { keyPosition } from './dkv.js';
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
import { hideKeys, hideQueries, keyBits, ownedFragments, seenByQueries, seesKeys, steps, testsEveryTile } from './matrix-steps.js';
import { keyWalk, queryWalk } from './matrix-walks.js';

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
  order: orderBinding<MatrixBackwardSpec>(),
  grads: write<MatrixBackwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
};

/** The raw score of a pair that is not seen; query tiles a head, where queries own the rows. */
const uniforms = { ...backwardUniforms, hidden: 'f32', tiles: 'u32', ...keySweepUniforms } as const;

/** The sweep of keys computes P, and what follows from it, times 2^weightBits. */
const weightBits = 14;
const weightShare = (2 ** -weightBits).toString();

type BackwardKernel = Kernel<MatrixBackwardSpec, typeof shared, typeof uniforms>;

function define(name: string, owner: 'queries' | 'keys'): BackwardKernel {
  const wgsl = (spec: MatrixBackwardSpec, context: KernelContext): string => backwardText(spec, context, owner);
  return defineKernel({ name, tier: 'matrix', forms: ['baseline', 'matrix'], bindings: shared, uniforms, wgsl });
}

const kernels = { queries: /* @__PURE__ */ define('attention-dq', 'queries'), keys: /* @__PURE__ */ define('attention-dkv', 'keys') };

/**
 * Records a sweep: heads (KV heads), by tiles and parts, by batch.
 * @param owner whose rows the workgroups own: queries give dq, keys give dk, dv and dBias in one buffer
 */
export function runMatrixBackward(
  device: Device,
  owner: 'queries' | 'keys',
  spec: MatrixBackwardSpec,
  tensors: BackwardTensors & { order: Operand | undefined; grads: Tensor },
  values: BackwardUniforms & KeySweepUniforms & { hidden: number; tiles: number },
  grid: readonly [number, number, number],
): void {
  kernels[owner].run(device, { spec, tensors, uniforms: values, grid });
}

/** Bytes of workgroup memory of a tile; under emulation the owned rows have regions of their own. */
export function matrixBackwardBytes(
  tile: { subgroups: number; blocks: number; columns: number; chunk: number; barriers: boolean },
  dims: { headDim: number; valueDim: number },
  hardware: boolean,
): number {
  const { columns } = tile;
  const both = (rows: number): number => regionBytes('rows', rows, padded(dims.headDim)) + regionBytes('rows', rows, padded(dims.valueDim));
  const emulated = hardware ? 0 : both(tile.subgroups * 16 * tile.blocks) + 4 * 32 * tile.subgroups;
  return both(columns) + scratchBytes(tile) + 8 * columns + emulated;
}

function backwardText(spec: MatrixBackwardSpec, { capabilities }: KernelContext, owner: 'queries' | 'keys'): string {
  const { headDim, valueDim, columns, rows, biasGradient } = spec;
  const f = new Fragments(capabilities, { N: spec.fragmentColumns === 16 ? 16 : 8 });
  const t = new Scratch(f, spec);
  const { blocks, units } = t;
  const byKeys = owner === 'keys';
  const region = (name: string, dim: number, n: number): Region => new Region(f, name, 'rows', n, padded(dim));
  const streamedScore = region('streamedScore', headDim, columns);
  const streamedValue = region('streamedValue', valueDim, columns);
  const own = f.hardware ? undefined : { score: region('ownedScores', headDim, rows), value: region('ownedValues', valueDim, rows) };
  const first = byKeys ? { binding: 'q', base: 'qBase' } : { binding: 'k', base: 'kBase' };
  const second = byKeys ? { binding: 'dOut', base: 'dOutBase' } : { binding: 'v', base: 'vBase' };
  const tiles = [
    new Staging(f, streamedScore, spec, { ...first, dim: headDim, rows: columns }),
    new Staging(f, streamedValue, spec, { ...second, dim: valueDim, rows: columns }),
  ];
  const dS = byKeys ? 'dk' : 'dq';
  const declare = (name: string): string => blocks.map((m) => units.map((u) => `var ${name}${m}_${u}: vec4f;`).join(' ')).join(' ');
  const read = (name: string, m: number): string => units.map((u) => `${name}${m}_${u} = ${t.score(m, u)};`).join(' ');
  const fours = (text: (e: number) => string): string => `vec4f(${range(4).map(text).join(', ')})`;
  const compute = (chunk: number, masked: boolean): string => {
    const column = (u: number, e: number): string => `${chunk + 8 * u + e}u + 4u * pair`;
    const stat = (m: number, u: number, part: 'x' | 'y'): string =>
      byKeys ? fours((e) => `columnStats[${column(u, e)}].${part}`) : `vec4f(stat${m}.${part})`;
    const bias = (m: number, u: number): string =>
      !spec.keyBias
        ? ''
        : byKeys
          ? ` + vec4f(keyBiasOf(b, h, keyAt${m}) * ${log2e})`
          : ` + ${fours((e) => `keyBiasOf(b, h, keyStart + ${column(u, e)})`)} * ${log2e}`;
    const each =
      (text: (m: number, u: number) => string) =>
      (m: number): string =>
        units.map((u) => text(m, u)).join('\n');
    const logit = each((m, u) => (spec.fold ? '' : `x${m}_${u} = x${m}_${u} * uniforms.scale2${bias(m, u)};`));
    const weigh = each((m, u) => {
      const exponent = spec.fold ? `fma(x${m}_${u}, vec4f(uniforms.scale2), -${stat(m, u, 'x')})` : `x${m}_${u} - ${stat(m, u, 'x')}`;
      return `x${m}_${u} = exp2(${exponent}); ${byKeys ? t.weight(m, u, `x${m}_${u}`) : ''}`;
    });
    const gradient = each(
      (m, u) => `{ let g = x${m}_${u} * (y${m}_${u} - ${stat(m, u, 'y')});
      ${biasGradient ? `dBias${m} += dot(g, vec4f(1.0));` : ''}
      ${t.weight(m, u, 'clamp(g * unit.y, vec4f(-65504.0), vec4f(65504.0))')} }`,
    );
    const hide = (m: number): string => (byKeys ? hideQueries(spec, t, m, chunk) : hideKeys(spec, t, m, chunk));
    const store = (m: number): string => t.storeScores(m);
    const values = `${t.perBlock(weigh, (m) => t.loadWeights(m))} ${t.accumulate('dv', streamedValue, valueDim, chunk)}`;
    return `{
    ${declare('x')}
    ${t.product(
      own?.score ?? 'ownedScore',
      streamedScore,
      headDim,
      chunk,
      t.perBlock(store, (m) => read('x', m)),
    )}
    ${blocks.map(logit).join('\n')}
    ${masked ? `if (masked) { ${blocks.map(hide).join('\n')} }` : ''}
    ${byKeys ? `{ ${values} }` : blocks.map(weigh).join('\n')}
    ${declare('y')}
    ${spec.barriers ? 'workgroupBarrier();' : ''}
    ${t.product(
      own?.value ?? 'ownedValue',
      streamedValue,
      valueDim,
      chunk,
      t.perBlock(store, (m) => read('y', m)),
    )}
    { ${t.perBlock(gradient, (m) => t.loadWeights(m))} ${t.accumulate(dS, streamedScore, headDim, chunk)} } }`;
  };
  const chunks = range(columns / spec.chunk).map((c) => c * spec.chunk);
  const body = (masked: boolean): string => chunks.map((chunk) => compute(chunk, masked)).join('\n');
  const place = byKeys ? { first: 'keyStart', end: 'keyStop' } : { first: 'rowStart', end: 'rowEnd' };
  const [scoreRows, valueRows] = byKeys
    ? [
        { binding: 'k', base: 'kBase', dim: headDim },
        { binding: 'v', base: 'vBase', dim: valueDim },
      ]
    : [
        { binding: 'q', base: 'qBase', dim: headDim },
        { binding: 'dOut', base: 'dOutBase', dim: valueDim },
      ];
  const owned = ownedFragments(f, spec, place, [
    { name: 'ownedScore', through: streamedScore, own: own?.score, ...scoreRows },
    { name: 'ownedValue', through: streamedValue, own: own?.value, ...valueRows },
  ]);
  const main = byKeys ? mainOfKeys(spec, t, f, tiles, owned, body) : mainOfQueries(spec, t, f, tiles, owned, body);
  return `
    ${own ? `${own.score.declare()} ${own.value.declare()}` : ''}
    ${streamedScore.declare()}
    ${streamedValue.declare()}
    ${t.declare()}
    ${byKeys ? `var<workgroup> columnStats: array<vec2f, ${columns}>;` : ''}
    ${halvesFunction}
    ${eightLoader('q', headDim, spec)}
    ${eightLoader('k', headDim, spec)}
    ${eightLoader('v', valueDim, spec)}
    ${eightLoader('dOut', valueDim, spec)}
    ${scoreFunctions(spec)}
    ${statFunction}
    // what dS is counted in, and its inverse, behind the statistics of all rows
    fn unitOf(batches: u32) -> vec2f { return stats[base_stats() + batches * uniforms.queries * uniforms.heads]; }
    ${f.entry(spec.subgroups, main, { lanesInOrder: true })}`;
}

type Body = (masked: boolean) => string;

function mainOfQueries(spec: MatrixBackwardSpec, t: Scratch, f: Fragments, tiles: readonly Staging[], owned: string, body: Body): string {
  const { headDim, columns } = spec;
  const row = (m: number): string => `
    let rowAt${m} = rowStart + ${ownedRow(spec, m)} + row;
    let place${m} = i32(rowAt${m}) + queryOffset;
    let stat${m} = statOf((b * uniforms.queries + ${rowPlace(spec, `rowAt${m}`)}) * uniforms.heads + h, rowAt${m} < rowEnd);`;
  const bits = keyBits(spec, t);
  return `
    ${tilePosition(spec, { tile: 'group.y', head: 'group.x' })}
    let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
    ${lanePlace}
    ${t.blocks.map(row).join('\n')}
    let unit = unitOf(groups.z);
    ${owned}
    ${t.declareOutput('dq', headDim)}
    ${steps(keyWalk(spec, columns), tiles, {
      start: 'keyStart',
      stop: 'keyStop',
      one: !f.hardware || testsEveryTile(spec),
      sees: spec.barriers ? undefined : bits ? `${seesKeys(spec)} && ${bits.any}` : seesKeys(spec),
      compute: body,
      ...(bits && { extras: [bits.extra] }),
    })}
    ${t.storeOutput('dq', headDim, {
      binding: 'grads',
      vector: spec.vectorOut,
      valid: (m) => `rowAt${m} < rowEnd`,
      at: (m) => `((b * uniforms.queries + ${rowPlace(spec, `rowAt${m}`)}) * uniforms.heads + h) * ${headDim}u`,
      limit: `${headDim}u`,
      factor: () => 'unit.x * uniforms.scale',
    })}`;
}

function mainOfKeys(spec: MatrixBackwardSpec, t: Scratch, f: Fragments, tiles: readonly Staging[], owned: string, body: Body): string {
  const { headDim, valueDim, columns, rows, biasGradient } = spec;
  const { blocks } = t;
  const part = spec.split ? 'split * uniforms.partSize + ' : '';
  const out = (name: string, dim: number, from: string, factor: string): string =>
    t.storeOutput(name, dim, {
      binding: 'grads',
      vector: spec.vectorOut,
      valid: (m) => `keyAt${m} < keyLimit`,
      at: (m) => `${part}${from}((b * uniforms.storedKeys + ${rowPlace(spec, `keyAt${m}`)}) * uniforms.kvHeads + kvHead) * ${dim}u`,
      limit: `${dim}u`,
      factor: () => factor,
    });
  const bias = (m: number): string => `
      ${f.exchange(`dBiasThere${m}`, `dBias${m}`, 1)}
      if (pair == 0u && keyAt${m} < keyLimit) {
        store_grads(${part}uniforms.dBiasAt + (b * uniforms.heads + h) * uniforms.storedKeys + keyAt${m}, (dBias${m} + dBiasThere${m}) * ${weightShare});
      }`;
  const columnStat = `statOf((b * uniforms.queries + ${rowPlace(spec, 'nextStart + lane')}) * uniforms.heads + h, nextStart + lane < nextStop) - vec2f(${weightBits}.0, 0.0)`;
  const stats = f.hardware
    ? {
        declare: 'var nextStat = vec2f();',
        fetch: `if (lane < ${columns}u) { nextStat = ${columnStat}; }`,
        put: `if (lane < ${columns}u) { columnStats[lane] = nextStat; }`,
      }
    : {
        declare: '',
        fetch: '',
        put: `if (lane < ${columns}u) { columnStats[lane] = ${columnStat}; }`,
      };
  const bits = keyBits(spec, t);
  return `
    ${keyPosition(spec, { tile: 'group.y', head: 'group.x' })}
    ${lanePlace}
    ${blocks.map((m) => `let keyAt${m} = keyStart + ${ownedRow(spec, m)} + row;`).join(' ')}
    let unit = unitOf(groups.z) * vec2f(1.0, ${weightShare});
    ${owned}
    ${t.declareOutput('dk', headDim)}
    ${t.declareOutput('dv', valueDim)}
    for (var member = 0u; member < uniforms.group; member++) {
      let h = kvHead * uniforms.group + member;
      let qBase = b * uniforms.qBatch + h * uniforms.qHead;
      let dOutBase = b * uniforms.dOutBatch + h * uniforms.dOutHead;
      ${biasGradient ? blocks.map((m) => `var dBias${m} = 0.0;`).join(' ') : ''}
      ${steps(queryWalk(spec, columns, rows, spec.split), tiles, {
        start: 'rowStart',
        stop: 'rowEnd',
        one: !f.hardware || testsEveryTile(spec),
        sees: spec.barriers ? undefined : bits ? `${seenByQueries(spec)} && ${bits.any}` : seenByQueries(spec),
        compute: body,
        extras: bits ? [stats, bits.extra] : [stats],
      })}
      ${biasGradient ? blocks.map(bias).join('\n') : ''}
    }
    ${out('dk', headDim, '', 'unit.x * uniforms.scale')}
    ${out('dv', valueDim, 'uniforms.dvAt + ', weightShare)}`;
}
