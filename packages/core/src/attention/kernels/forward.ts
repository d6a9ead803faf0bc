// Attention forward with online softmax, f32 products from f32 or f16 rows.
// tile    rows x columns scores a workgroup and step (plan.ts); output accumulators and scores in named registers
// bytes   q and out once; k and v once a query tile that sees them, staged through workgroup memory
// limits  head dimensions up to 256; at most 8 storage bindings; no inf or NaN is formed: a masked weight is forced to 0
// source  Dao 2023 (FlashAttention-2), algorithm 1; Dong et al. 2024 (FlexAttention) for the order of score, mask, softmax
import type { Tier } from '../../device/capabilities.js';
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { ln2, log2e, logitText, scoreFunctions, type ScoreSpec, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import type { Tensor } from '../../tensor/tensor.js';
import { keyLoop } from './loops.js';
import { eachPair, type PairNames } from './pairs.js';
import { rowLoader, type TileSpec, TileText } from './tile.js';

export type ForwardSpec = ScoreSpec &
  TileSpec & {
    /** Rows of a row's lanes lie in one subgroup: reductions by shuffles. */
    shuffles: boolean;
    /** Each workgroup takes a part of the key tiles and writes a partial result. */
    split: boolean;
    /** Output rows are whole vec4. */
    vectorOut: boolean;
  };

const width = (spec: ForwardSpec): number => (spec.vector ? 4 : 1);

const bindings = {
  q: read<ForwardSpec>('float', { width }),
  k: read<ForwardSpec>('float', { width }),
  v: read<ForwardSpec>('float', { width }),
  arena: read<ForwardSpec>('any', { raw: 'u32', when: (s) => s.arena }),
  extras: read<ForwardSpec>('any', { raw: 'u32', when: (s) => s.extras }),
  out: write<ForwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
  lse: write<ForwardSpec>('f32', { raw: 'u32' }),
};

const uniforms = {
  ...scoreUniforms,
  /** Query tiles a head. */
  tiles: 'u32',
  splits: 'u32',
  /** Rows of all partial results of one split. */
  outRows: 'u32',
} as const;

const tier = (spec: ForwardSpec): Tier => (spec.shuffles ? 'subgroups' : 'baseline');

const forward = defineKernel({
  name: 'attention-forward',
  bindings,
  uniforms,
  wgsl: forwardText,
  forms: ['baseline', 'subgroups', 'matrix'],
  tier,
});

// The same for few queries and many keys: query heads of a KV head share its tile, and each workgroup takes a part of the keys.
// tile    rows (query, head of the group) x columns scores a workgroup and step
// bytes   q once a split, k and v once; writes a partial result and its logsumexp a split
// limits  as above; bandwidth decides, so there is no form on fragments
const decode = defineKernel({ name: 'attention-decode', bindings, uniforms, wgsl: forwardText, forms: ['baseline', 'subgroups'], tier });

/** Records the forward kernel: `tiles` query tiles a head, times `splits`, by heads (KV heads where rows are packed), by batch. */
export function runForwardKernel(
  device: Device,
  spec: ForwardSpec,
  tensors: { q: Tensor; k: Tensor; v: Tensor; arena: Operand | undefined; extras: Tensor | undefined; out: Tensor; lse: Tensor },
  uniforms: UniformsOf<ScoreUniforms> & { tiles: number; splits: number; outRows: number },
  grid: readonly [number, number, number],
): void {
  (spec.packed > 0 ? decode : forward).run(device, { spec, tensors, uniforms, grid });
}

function forwardText(spec: ForwardSpec): string {
  const { headDim, valueDim, packed } = spec;
  const t = new TileText(spec, { contract: headDim, accumulate: valueDim }, spec.opaque);
  const rows = t.rowNumbers();
  const columns = t.columnNumbers();
  const pair = (n: PairNames): string => {
    const s = n.own('s');
    const place = { b: 'b', h: packed ? n.row('head') : 'h', q: n.row('place'), kv: `(keyStart + ${n.columnInTile})` };
    return `${s} = ${logitText(spec, s, place, packed ? `keyBiasOf(b, ${place.h}, ${place.kv})` : n.column('bias'))};`;
  };
  const use = { own: ['s'], row: packed ? ['place', 'head'] : ['place'], column: spec.keyBias && !packed ? ['bias'] : [] };
  const tile = `
    ${t.contract(
      's',
      headDim,
      (n, item) => `items_q(qBase, rowStart + ${n}, rowEnd, ${item})`,
      (n, item) => `items_k(kBase, keyStart + ${n}, keyStop, ${item})`,
    )}
    ${spec.keyBias && !packed ? t.columnValues('bias', 'f32', (column) => `keyBiasOf(b, h, keyStart + ${column})`) : ''}
    ${eachPair(t, t.opaque && spec.score !== '', use, pair)}
    if (masked) {
      ${t.pairBits('visible', (row, column) =>
        packed
          ? `seen(b, h + (rowStart + ${row}) % ${packed}u, i32((rowStart + ${row}) / ${packed}u) + queryOffset, keyStart + ${column}, keyStop)`
          : `seen(b, h, i32(rowStart + ${row}) + queryOffset, keyStart + ${column}, keyStop)`,
      )}
      ${rows.map((i) => columns.map((c) => `s${i}_${c} = select(NEG, s${i}_${c}, ${t.hasBit('visible', i, c)});`).join('\n')).join('\n')}
    }
    ${rows.map((i) => `var top${i} = ${columns.reduce((text, c) => (text === '' ? `s${i}_${c}` : `max(${text}, s${i}_${c})`), '')};`).join('\n')}
    ${t.reduceRows('top', 'max', spec.shuffles)}
    ${rows
      .map(
        (i) => `
      let next${i} = max(m${i}, top${i});
      let shrink${i} = exp2(m${i} - next${i});
      m${i} = next${i};
      ${columns.map((c) => `s${i}_${c} = select(0.0, exp2(s${i}_${c} - next${i}), s${i}_${c} > 0.5 * NEG);`).join('\n')}
      l${i} = l${i} * shrink${i} + ${columns.map((c) => `s${i}_${c}`).join(' + ')};`,
      )
      .join('\n')}
    ${t.eachOutput(valueDim, (i, j) => `o${i}_${j} *= shrink${i};`)}
    ${t.storeWeights('s')}
    ${t.accumulate('o', valueDim, (n, item) => `items_v(vBase, keyStart + ${n}, keyStop, ${item})`)}`;
  const store = (i: number, j: number, item: string): string =>
    `if (rowAt${i} < rowEnd) { ${t.storeItem('out', spec.vectorOut, `at${i} * ${valueDim}u`, valueDim, item, `o${i}_${j} * share${i}`)} }`;
  return `
    ${t.variables()}
    ${rowLoader('q', headDim, spec.width, spec.vector, packed ? `row / ${packed}u * uniforms.qRow + row % ${packed}u * uniforms.qHead` : undefined)}
    ${rowLoader('k', headDim, spec.width, spec.vector)}
    ${rowLoader('v', valueDim, spec.width, spec.vector)}
    ${scoreFunctions(spec)}
    @compute @workgroup_size(${t.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${tilePosition(spec)}
      ${t.lanePosition()}
      ${rows
        .map(
          (i) => `
        let rowAt${i} = rowStart + ${t.row(i)};
        ${packed ? `let head${i} = h + rowAt${i} % ${packed}u; let token${i} = rowAt${i} / ${packed}u;` : `let token${i} = rowAt${i};`}
        let place${i} = i32(token${i}) + queryOffset;
        let at${i} = (b * uniforms.queries + token${i}) * uniforms.heads + ${packed ? `head${i}` : 'h'}${spec.split ? ' + split * uniforms.outRows' : ''};
        ${
          spec.sinks
            ? `let counted${i} = ${spec.split ? 'split == 0u' : 'true'};
        var m${i} = select(NEG, bitcast<f32>(extras[base_extras() + uniforms.sinksAt + min(${packed ? `head${i}` : 'h'}, uniforms.heads - 1u)]) * ${log2e}, counted${i});
        var l${i} = select(0.0, 1.0, tx == 0u && counted${i});`
            : `var m${i} = NEG; var l${i} = 0.0;`
        }`,
        )
        .join('\n')}
      ${t.declareOutput('o', valueDim)}
      ${keyLoop(spec, spec.columns, tile, spec.split)}
      ${t.reduceRows('l', '+', spec.shuffles)}
      ${rows.map((i) => `let alive${i} = m${i} > 0.5 * NEG; let share${i} = select(0.0, 1.0 / max(l${i}, 1e-37), alive${i});`).join('\n')}
      ${t.eachOutput(valueDim, store)}
      if (tx == 0u) {
        ${rows.map((i) => `if (rowAt${i} < rowEnd) { lse[base_lse() + at${i}] = select(0xff800000u, bitcast<u32>((m${i} + log2(max(l${i}, 1e-37))) * ${ln2}), alive${i}); }`).join('\n')}
      }
    }`;
}

/**
 * Where a workgroup of a query-tile kernel works: `b`, `h` (first query head), `split`, `rowStart`, `rowEnd`, `qBase`, `kBase`,
 * `vBase`, `keyEnd`, `queryOffset`, `qFirst`, `qLast`, `queryBlock`, `listHead`. Later tiles come first: they are the long ones
 * where the mask is causal.
 * @param axes components of the workgroup's number that count query tiles and heads
 */
export function tilePosition(
  spec: ScoreSpec & { rows: number; split?: boolean },
  axes: { tile: string; head: string } = { tile: 'group.x', head: 'group.y' },
): string {
  const { packed, rows } = spec;
  const selection = spec.list === 'ids' || spec.list === 'bits';
  const scale = packed ? ` * ${packed}u` : '';
  return `
    ${spec.split ? `let tileNumber = uniforms.tiles - 1u - ${axes.tile} / uniforms.splits; let split = ${axes.tile} % uniforms.splits;` : `let tileNumber = uniforms.tiles - 1u - ${axes.tile};`}
    ${packed ? `let kvHead = ${axes.head}; let h = kvHead * ${packed}u;` : `let h = ${axes.head}; let kvHead = h / uniforms.group;`}
    let b = group.z;
    let listHead = h;
    ${
      selection
        ? `let tilesABlockRow = (uniforms.blockQueries${scale} + ${rows - 1}u) / ${rows}u;
    let queryBlock = tileNumber / tilesABlockRow;
    let rowStart = queryBlock * uniforms.blockQueries${scale} + tileNumber % tilesABlockRow * ${rows}u;
    let rowEnd = min(uniforms.queries, (queryBlock + 1u) * uniforms.blockQueries)${scale};
    if (rowStart >= rowEnd) { return; }`
        : `let rowStart = tileNumber * ${rows}u;
    let rowEnd = uniforms.queries${scale};`
    }
    let qBase = b * uniforms.qBatch + h * uniforms.qHead;
    let kBase = b * uniforms.kBatch + kvHead * uniforms.kHead;
    let vBase = b * uniforms.vBatch + kvHead * uniforms.vHead;
    let keyEnd = keyEndOf(b);
    let queryOffset = queryOffsetOf(b);
    let qFirst = i32(rowStart${packed ? ` / ${packed}u` : ''}) + queryOffset;
    let qLast = i32((min(rowStart + ${rows}u, rowEnd) - 1u)${packed ? ` / ${packed}u` : ''}) + queryOffset;`;
}
