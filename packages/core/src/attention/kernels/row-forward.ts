// Attention forward for f32 rows: queries and outputs stay in registers, several lanes share a row and pass sums and weights by
// shuffles (row-lanes.ts); keys and values are read from workgroup memory at one address a group of lanes.
// tile    rowsALane x lanes / share queries, `columns` keys a step, `together` of them at a time
// bytes   q and out once; k and v once a query tile that sees them
// limits  subgroups of share x spread lanes or more; a masked weight is forced to 0
// source  Dao 2023 (FlashAttention-2), algorithm 1; the output is rescaled only when a row's maximum grew by more than 2^8
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import type { Tensor } from '../../tensor/tensor.js';
import { ln2, log2e, logitText, scoreFunctions, type ScoreSpec, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { tilePosition } from './forward.js';
import { bound } from './matrix-memory.js';
import { steps, testsEveryTile } from './matrix-steps.js';
import { keyWalk } from './matrix-walks.js';
import { ownedRows, RowText, type RowTile } from './row-lanes.js';
import { rowLoader } from './tile.js';

export type RowForwardSpec = ScoreSpec & RowTile & { vectorOut: boolean };

const width = (spec: RowForwardSpec): number => (spec.vector ? 4 : 1);

const kernel = defineKernel({
  name: 'attention-forward',
  tier: 'subgroups',
  forms: ['baseline', 'subgroups', 'matrix'],
  bindings: {
    q: read<RowForwardSpec>('float', { width }),
    k: read<RowForwardSpec>('float', { width }),
    v: read<RowForwardSpec>('float', { width }),
    arena: read<RowForwardSpec>('any', { raw: 'u32', when: (s) => s.arena }),
    extras: read<RowForwardSpec>('any', { raw: 'u32', when: (s) => s.extras }),
    out: write<RowForwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
    lse: write<RowForwardSpec>('f32', { raw: 'u32' }),
  },
  uniforms: { ...scoreUniforms, tiles: 'u32' },
  wgsl: text,
});

/** Records the kernel: heads, by `tiles` query tiles a head, by batch. */
export function runRowForward(
  device: Device,
  spec: RowForwardSpec,
  tensors: { q: Tensor; k: Tensor; v: Tensor; arena: Operand | undefined; extras: Tensor | undefined; out: Tensor; lse: Tensor },
  uniforms: UniformsOf<ScoreUniforms> & { tiles: number },
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms, grid });
}

function text(spec: RowForwardSpec): string {
  const { headDim, valueDim, lanes, columns, together, rowsALane } = spec;
  const rows = ownedRows(spec);
  const t = new RowText(spec);
  const logit = (c: number): string => {
    const kv = `(keyStart + n + ${c}u)`;
    const place = { b: 'b', h: 'h', q: 'place', kv };
    const raw = rowLogit(spec, `s${c}`, place, `keyBiasOf(b, h, ${kv})`);
    return raw === `s${c}` ? '' : `s${c} = ${raw};`;
  };
  const compute = (masked: boolean): string => `
    ${masked ? pairBits(spec) : ''}
    for (var n = 0u; n < ${bound(spec, columns)}; n += ${together}u) {
      ${t.products('s', 'q', 'keys', headDim, 'n')}
      ${t.columns.map(logit).join(' ')}
      ${masked ? `if (masked) { ${t.columns.map((c) => `s${c} = select(NEG, s${c}, ${pairSeen(spec, c, `seen(b, h, place, keyStart + n + ${c}u, keyStop)`)});`).join(' ')} }` : ''}
      let top = ${t.columns.map((c) => `s${c}`).reduce((a, b) => `max(${a}, ${b})`)};
      if (subgroupAny(top > highest + 8.0)) {
        let next = max(highest, top);
        let shrink = exp2(highest - next);
        highest = next;
        sum *= shrink;
        ${t.slots.map((j) => `let shrink${j} = ${t.ofSlot('shrink', j)};`).join(' ')}
        ${t.each(valueDim, (j, i) => `o${j}_${i} *= shrink${j};`)}
      }
      let reference = select(highest, 0.0, highest < 0.5 * NEG);
      ${t.columns.map((c) => `s${c} = exp2(s${c} - reference); sum += s${c};`).join(' ')}
      ${t.accumulate('o', 's', 'values', valueDim, 'n')}
    }`;
  const store = (j: number, i: number): string =>
    storeRow('out', spec.vectorOut, valueDim, `at${j} * ${valueDim}u`, t.item(i), `o${j}_${i} * share${j}`);
  return `
    ${t.declare('keys', headDim)}
    ${t.declare('values', valueDim)}
    ${rowLoader('q', headDim, 4, spec.vector)}
    ${rowLoader('k', headDim, 4, spec.vector)}
    ${rowLoader('v', valueDim, 4, spec.vector)}
    ${scoreFunctions(spec)}
    @diagnostic(off, subgroup_uniformity)
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      ${tilePosition({ ...spec, rows }, { tile: 'group.y', head: 'group.x' })}
      ${t.place}
      let rowAt = rowStart + ownRow;
      let place = i32(rowAt) + queryOffset;
      ${t.each(headDim, (j, i) => `let q${j}_${i} = items_q(qBase, rowStart + ${t.row(j)}, rowEnd, ${t.item(i)})${rowFactor(spec)};`)}
      ${t.each(valueDim, (j, i) => `var o${j}_${i} = vec4f();`)}
      ${spec.sinks ? `var highest = bitcast<f32>(extras[base_extras() + uniforms.sinksAt + h]) * ${log2e}; var sum = 1.0;` : 'var highest = NEG; var sum = 0.0;'}
      ${steps(keyWalk(spec, columns), [t.stream(spec, 'keys', 'k', headDim), t.stream(spec, 'values', 'v', valueDim)], {
        start: 'keyStart',
        stop: 'keyStop',
        one: spec.opaque || testsEveryTile(spec),
        sees: `subgroupAny(${seesKeys(spec)})`,
        compute,
      })}
      let alive = highest > 0.5 * NEG;
      let whole = max(sum, 1e-37);
      let share = select(0.0, 1.0 / whole, alive);
      let at = (b * uniforms.queries + rowAt) * uniforms.heads + h;
      ${t.slots
        .map(
          (j) => `{ let share${j} = ${t.ofSlot('share', j)};
        let row${j} = rowStart + ${t.row(j)};
        let at${j} = (b * uniforms.queries + row${j}) * uniforms.heads + h;
        if (row${j} < rowEnd) { ${t
          .items(valueDim)
          .map((i) => store(j, i))
          .join('\n')} } }`,
        )
        .join('\n')}
      if (part < ${rowsALane}u && rowAt < rowEnd) {
        lse[base_lse() + at] = select(0xff800000u, bitcast<u32>((highest + log2(whole)) * ${ln2}), alive);
      }
    }`;
}

/** Where scores pass through no function, the factor of logits in base 2 goes to the rows of one side. */
export function rowFactor(spec: ScoreSpec): string {
  return spec.score === '' ? ' * uniforms.scale2' : '';
}

/** Logit in base 2 of a product with rows times `rowFactor`. */
export function rowLogit(spec: ScoreSpec, s: string, place: { b: string; h: string; q: string; kv: string }, bias: string): string {
  if (spec.score !== '') return logitText(spec, s, place, bias);
  return spec.keyBias ? `${s} + ${bias} * ${log2e}` : s;
}

/** Stores vector `item` of a row of `dim` elements whose first element is `first`. */
export function storeRow(binding: string, vector: boolean, dim: number, first: string, item: string, value: string): string {
  if (vector) return `if (${item} < ${dim / 4}u) { store_${binding}((${first}) / 4u + ${item}, ${value}); }`;
  return `{ let four = ${value}; for (var e = 0u; e < 4u * uniforms.one; e++) { if (${item} * 4u + e < ${dim}u) { store_${binding}(${first} + ${item} * 4u + e, four[e]); } } }`;
}

/** Whether the own row may see a key of the tile. */
export function seesKeys(spec: ScoreSpec & { columns: number }): string {
  if (spec.list === 'runs') return 'rowAt < rowEnd';
  return `rowAt < rowEnd && i32(keyStart) <= place + uniforms.right && (i32(keyStart) + ${spec.columns} > place - uniforms.left || keyStart < uniforms.prefix)`;
}

/** Bits of the own row of a partial tile: tiles have at most 32 columns, a word. */
export function pairBits(spec: ScoreSpec & RowTile): string {
  if (spec.bits === 0) return '';
  return `let pairs = arena[base_arena() + uniforms.bitsAt + partialTile * ${ownedRows(spec)}u + ownRow];`;
}

/** Whether the own row and streamed row `n + column` of a tile see one another: by its bits where there are any. */
export function pairSeen(spec: ScoreSpec, column: number, seen: string): string {
  return spec.bits > 0 ? `((pairs >> (n + ${column}u)) & 1u) != 0u` : seen;
}
