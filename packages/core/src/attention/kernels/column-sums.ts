// Column sums of the probabilities: what each key gets over all queries, without the queries x keys matrix.
// tile    rows (keys) x columns (queries) a workgroup and step; one product a step, recomputed from the logsumexp
// bytes   k once, q once a key tile that sees it, 4 written a key and head
// limits  as the dk/dv kernel; deterministic
// source  Wang et al. 2021 (SpAtten), cumulative importance; the second pass over a saved logsumexp is ours
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { logitText, scoreFunctions, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { statFunction } from './backward-bindings.js';
import { type DkvSpec, keyPosition, queryColumns } from './dkv.js';
import { queryLoop } from './loops.js';
import { eachPair, type PairNames } from './pairs.js';
import { rowLoader, TileText } from './tile.js';

const width = (spec: DkvSpec): number => (spec.vector ? 4 : 1);

const kernel = defineKernel({
  name: 'attention-column-sums',
  bindings: {
    q: read<DkvSpec>('float', { width }),
    k: read<DkvSpec>('float', { width }),
    stats: read<DkvSpec>('f32', { raw: 'vec2f' }),
    arena: read<DkvSpec>('any', { raw: 'u32', when: (s) => s.arena }),
    extras: read<DkvSpec>('any', { raw: 'u32', when: (s) => s.extras }),
    sums: write<DkvSpec>('f32'),
  },
  uniforms: { ...scoreUniforms, firstTile: 'u32' },
  wgsl: columnSumsText,
});

/** Writes f32 [batch, heads, keys]. */
export function runColumnSums(
  device: Device,
  spec: DkvSpec,
  tensors: { q: Tensor; k: Tensor; stats: Tensor; arena: Operand | undefined; extras: Tensor | undefined; sums: Tensor },
  uniforms: UniformsOf<ScoreUniforms>,
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms: { firstTile: 0, ...uniforms }, grid });
}

function columnSumsText(spec: DkvSpec): string {
  const { headDim } = spec;
  const t = new TileText(spec, { contract: headDim, accumulate: 1 }, spec.opaque);
  const rows = t.rowNumbers();
  const pair = (n: PairNames): string => {
    const place = { b: 'b', h: 'h', q: n.column('place'), kv: n.row('keyAt') };
    return `${n.row('sum')} += select(0.0, exp2(${logitText(spec, n.own('s'), place, n.row('bias'))} - ${n.column('stat')}.x), ${n.hasBit('visible')});`;
  };
  const use = { own: ['s'], row: spec.keyBias ? ['keyAt', 'bias'] : ['keyAt'], column: ['place', 'stat'], sums: ['sum'] };
  const tile = `
    ${t.contract(
      's',
      headDim,
      (n, item) => `items_k(kBase, keyStart + ${n}, keyStop, ${item})`,
      (n, item) => `items_q(qBase, rowStart + ${n}, rowEnd, ${item})`,
    )}
    ${queryColumns(spec, t)}
    ${eachPair(t, t.opaque && spec.score !== '', use, pair)}`;
  return `
    ${t.variables()}
    ${rowLoader('q', headDim, spec.width, spec.vector)}
    ${rowLoader('k', headDim, spec.width, spec.vector)}
    ${scoreFunctions(spec)}
    ${statFunction}
    @compute @workgroup_size(${t.lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${keyPosition(spec)}
      ${t.lanePosition()}
      ${rows.map((i) => `let keyAt${i} = keyStart + ${t.row(i)};`).join(' ')}
      for (var member = 0u; member < uniforms.group; member++) {
        let h = kvHead * uniforms.group + member;
        let qBase = b * uniforms.qBatch + h * uniforms.qHead;
        ${rows.map((i) => `var sum${i} = 0.0;`).join(' ')}
        ${queryLoop(spec, spec.columns, spec.rows, tile, false)}
        ${t.reduceRows('sum', '+', spec.shuffles)}
        if (tx == 0u) { ${rows.map((i) => `if (keyAt${i} < keyLimit) { store_sums((b * uniforms.heads + h) * uniforms.keys + keyAt${i}, sum${i}); }`).join(' ')} }
      }
    }`;
}
