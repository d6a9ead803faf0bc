// Attention forward for f32 rows: queries stay in workgroup memory, weights stay in registers and pass between lanes by shuffles.
// tile    rowsALane x lanes / 8 queries, 8 x keysALane keys a step; eight lanes a row; scores and outputs in named registers
// bytes   q and out once; k and v once a query tile that sees them, staged through one region in turn and loaded
//         ahead into registers
// limits  head dimensions up to 128; subgroups of 8 lanes or more; a masked weight is forced to 0
// source  Dao 2023 (FlashAttention-2), algorithm 1
import type { Device } from '../../device/device.js';
import { type Operand, read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { range } from '../../kernel/modules.js';
import type { Tensor } from '../../tensor/tensor.js';
import { ln2, log2e, logitText, scoreFunctions, type ScoreSpec, scoreUniforms, type ScoreUniforms, type UniformsOf } from './common.js';
import { tilePosition } from './forward.js';
import { bound } from './matrix-memory.js';
import { keyWalk } from './matrix-walks.js';
import { rowLoader } from './tile.js';

/** Lanes that share a row. */
const rowLanes = 8;

export type ShuffleTile = {
  lanes: number;
  rowsALane: number;
  keysALane: number;
};

export type ShuffleForwardSpec = ScoreSpec & ShuffleTile & { rows: number; columns: number; vectorOut: boolean };

const width = (spec: ShuffleForwardSpec): number => (spec.vector ? 4 : 1);

const kernel = defineKernel({
  name: 'attention-forward',
  tier: 'subgroups',
  forms: ['baseline', 'subgroups', 'matrix'],
  bindings: {
    q: read<ShuffleForwardSpec>('float', { width }),
    k: read<ShuffleForwardSpec>('float', { width }),
    v: read<ShuffleForwardSpec>('float', { width }),
    arena: read<ShuffleForwardSpec>('any', { raw: 'u32', when: (s) => s.arena }),
    extras: read<ShuffleForwardSpec>('any', { raw: 'u32', when: (s) => s.extras }),
    out: write<ShuffleForwardSpec>('float', { width: (s) => (s.vectorOut ? 4 : 1) }),
    lse: write<ShuffleForwardSpec>('f32', { raw: 'u32' }),
  },
  uniforms: { ...scoreUniforms, tiles: 'u32' },
  wgsl: text,
});

/** Records the kernel: heads, by `tiles` query tiles a head, by batch. */
export function runShuffleForward(
  device: Device,
  spec: ShuffleForwardSpec,
  tensors: { q: Tensor; k: Tensor; v: Tensor; arena: Operand | undefined; extras: Tensor | undefined; out: Tensor; lse: Tensor },
  uniforms: UniformsOf<ScoreUniforms> & { tiles: number },
  grid: readonly [number, number, number],
): void {
  kernel.run(device, { spec, tensors, uniforms, grid });
}

/** Rows and keys of a tile. */
export function shuffleSizes({ lanes, rowsALane, keysALane }: ShuffleTile): { rows: number; columns: number } {
  return { rows: (lanes / rowLanes) * rowsALane, columns: rowLanes * keysALane };
}

/** Bytes of workgroup memory of a tile. */
export function shuffleBytes(tile: ShuffleTile, dims: { headDim: number; valueDim: number }): number {
  const { rows, columns } = shuffleSizes(tile);
  return 16 * (rows * stride(dims.headDim) + streamedItems(columns, dims));
}

/** Vectors of a row of queries or keys; an odd number, so that rows begin in different banks. */
function stride(dim: number): number {
  return Math.ceil(dim / 4) | 1;
}

/** Vectors of the region of keys and values, with room for the lanes behind the last value. */
function streamedItems(columns: number, { headDim, valueDim }: { headDim: number; valueDim: number }): number {
  return Math.max(columns * stride(headDim), columns * stride(valueDim) + rowLanes);
}

function text(spec: ShuffleForwardSpec): string {
  const { headDim, valueDim, lanes, rowsALane, keysALane, rows, columns } = spec;
  const lanesY = lanes / rowLanes;
  const own = range(rowsALane);
  const keys = range(keysALane);
  const items = Math.ceil(headDim / 4);
  const valueItems = Math.ceil(valueDim / 4);
  const outs = range(Math.ceil(valueItems / rowLanes));
  // rows of a tile: through registers `<name>Next<i>`, so that the loads run ahead of the barrier
  const parts = (name: string, count: number, perRow: number, text: (register: string, row: string, item: string) => string): string =>
    range(Math.ceil((count * perRow) / lanes))
      .map((i) => {
        const at = `(lane + ${i * lanes}u)`;
        const one = text(`${name}Next${i}`, `${at} / ${perRow}u`, `${at} % ${perRow}u`);
        const left = count * perRow - i * lanes;
        return left < lanes ? `if (lane < ${left}u) { ${one} }` : one;
      })
      .join('\n');
  const declare = (name: string, perRow: number): string =>
    range(Math.ceil((columns * perRow) / lanes))
      .map((i) => `var ${name}Next${i} = vec4f();`)
      .join(' ');
  const fetch = (name: string, perRow: number, from: string, end: string): string =>
    parts(name, columns, perRow, (register, row, item) => `${register} = items_${name}(${name}Base, ${from} + ${row}, ${end}, ${item});`);
  const put = (name: string, perRow: number, dim: number): string =>
    parts(name, columns, perRow, (register, row, item) => `streamed[${row} * ${stride(dim)}u + ${item}] = ${register};`);
  const score = (r: number, c: number): string => `s${r}_${c}`;
  const product = `
    ${own.map((r) => keys.map((c) => `var ${score(r, c)} = 0.0;`).join(' ')).join('\n')}
    for (var item = 0u; item < ${bound(spec, items)}; item++) {
      ${own.map((r) => `let a${r} = queries[(ty + ${r * lanesY}u) * ${stride(headDim)}u + item];`).join(' ')}
      ${keys
        .map(
          (c) =>
            `{ let b = streamed[(tx + ${c * rowLanes}u) * ${stride(headDim)}u + item]; ${['x', 'y', 'z', 'w'].map((e) => own.map((r) => `${score(r, c)} = fma(a${r}.${e}, b.${e}, ${score(r, c)});`).join(' ')).join(' ')} }`,
        )
        .join('\n')}
    }`;
  const logits = keys
    .map((c) => {
      const kv = `keyStart + tx + ${c * rowLanes}u`;
      const bias = spec.keyBias ? `let bias = keyBiasOf(b, h, ${kv});` : '';
      return `{ ${bias} ${own.map((r) => `${score(r, c)} = ${logitText(spec, score(r, c), { b: 'b', h: 'h', q: `place${r}`, kv: `(${kv})` }, 'bias')};`).join('\n')} }`;
    })
    .join('\n');
  const hide = `
    var visible = 0u;
    for (var pair = 0u; pair < ${bound(spec, rowsALane * keysALane)}; pair++) {
      let place = i32(rowStart + ty + pair / ${keysALane}u * ${lanesY}u) + queryOffset;
      if (seen(b, h, place, keyStart + tx + pair % ${keysALane}u * ${rowLanes}u, keyStop)) { visible |= 1u << pair; }
    }
    ${own.map((r) => keys.map((c) => `${score(r, c)} = select(NEG, ${score(r, c)}, (visible & ${2 ** (r * keysALane + c)}u) != 0u);`).join(' ')).join('\n')}`;
  const overRow = (name: string, operation: (a: string, b: string) => string): string =>
    [1, 2, 4].map((mask) => `${name} = ${operation(name, `subgroupShuffleXor(${name}, ${mask}u)`)};`).join(' ');
  const weigh = (masked: boolean) => (r: number) =>
    `{
    var top = ${keys.map((c) => score(r, c)).reduce((a, b) => `max(${a}, ${b})`)};
    ${overRow('top', (a, b) => `max(${a}, ${b})`)}
    let next = max(m${r}, top);
    let shrink = exp2(m${r} - next);
    m${r} = next;
    ${keys
      .map((c) => {
        const w = `exp2(${score(r, c)} - next)`;
        return `${score(r, c)} = ${masked ? `select(0.0, ${w}, ${score(r, c)} > 0.5 * NEG)` : w};`;
      })
      .join(' ')}
    l${r} = l${r} * shrink + ${keys.map((c) => score(r, c)).join(' + ')};
    ${outs.map((j) => `o${r}_${j} *= shrink;`).join(' ')} }`;
  const accumulate = `
    for (var x = 0u; x < ${bound(spec, rowLanes)}; x++) {
      ${keys
        .map(
          (
            c,
          ) => `{ ${outs.map((j) => `let v${j} = streamed[(x + ${c * rowLanes}u) * ${stride(valueDim)}u + tx + ${j * rowLanes}u];`).join(' ')}
        ${own.map((r) => `{ let w = subgroupShuffle(${score(r, c)}, firstLane + x); ${outs.map((j) => `o${r}_${j} = fma(vec4f(w), v${j}, o${r}_${j});`).join(' ')} }`).join('\n')} }`,
        )
        .join('\n')}
    }`;
  const body = (masked: boolean): string => `
    ${masked ? hide : ''}
    ${own.map(weigh(masked)).join('\n')}`;
  const walk = keyWalk(spec, columns);
  const start = (r: number): string => `
    let rowAt${r} = rowStart + ty + ${r * lanesY}u;
    let place${r} = i32(rowAt${r}) + queryOffset;
    ${
      spec.sinks
        ? `var m${r} = bitcast<f32>(extras[base_extras() + uniforms.sinksAt + h]) * ${log2e}; var l${r} = select(0.0, 1.0, tx == 0u);`
        : `var m${r} = NEG; var l${r} = 0.0;`
    }
    ${outs.map((j) => `var o${r}_${j} = vec4f();`).join(' ')}`;
  const store = (r: number, j: number): string => {
    const item = `(tx + ${j * rowLanes}u)`;
    if (spec.vectorOut) return `if (${item} < ${valueItems}u) { store_out(at * ${valueItems}u + ${item}, o${r}_${j} * share); }`;
    return range(4)
      .map(
        (e) =>
          `if (${item} * 4u + ${e}u < ${valueDim}u) { store_out(at * ${valueDim}u + ${item} * 4u + ${e}u, o${r}_${j}[${e}] * share); }`,
      )
      .join(' ');
  };
  const finish = (r: number): string => `{
    ${overRow(`l${r}`, (a, b) => `${a} + ${b}`)}
    let alive = m${r} > 0.5 * NEG;
    let whole = max(l${r}, 1e-37);
    let share = select(0.0, 1.0 / whole, alive);
    let at = (b * uniforms.queries + rowAt${r}) * uniforms.heads + h;
    if (rowAt${r} < rowEnd) {
      ${outs.map((j) => store(r, j)).join('\n')}
      if (tx == 0u) { lse[base_lse() + at] = select(0xff800000u, bitcast<u32>((m${r} + log2(whole)) * ${ln2}), alive); }
    } }`;
  const queryRows = parts(
    'q',
    rows,
    items,
    (_, row, item) => `queries[${row} * ${stride(headDim)}u + ${item}] = items_q(qBase, rowStart + ${row}, rowEnd, ${item});`,
  );
  return `
    var<workgroup> queries: array<vec4f, ${rows * stride(headDim)}>;
    var<workgroup> streamed: array<vec4f, ${streamedItems(columns, spec)}>;
    ${rowLoader('q', headDim, 4, spec.vector)}
    ${rowLoader('k', headDim, 4, spec.vector)}
    ${rowLoader('v', valueDim, 4, spec.vector)}
    ${scoreFunctions(spec)}
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32,
      @builtin(subgroup_invocation_id) subgroupLane: u32) {
      ${tilePosition(spec, { tile: 'group.y', head: 'group.x' })}
      let tx = lane % ${rowLanes}u;
      let ty = lane / ${rowLanes}u;
      let firstLane = subgroupLane - subgroupLane % ${rowLanes}u;
      ${own.map(start).join('\n')}
      ${queryRows}
      ${declare('k', items)}
      ${declare('v', valueItems)}
      ${walk.declare}
      ${walk.advance}
      ${fetch('k', items, 'nextStart', 'nextStop')}
      while (found) {
        let keyStart = nextStart;
        let keyStop = nextStop;
        let masked = nextMasked;
        let partialTile = nextBits;
        workgroupBarrier();
        ${put('k', items, headDim)}
        ${fetch('v', valueItems, 'keyStart', 'keyStop')}
        workgroupBarrier();
        ${product}
        ${logits}
        if (masked) { ${body(true)} } else { ${body(false)} }
        workgroupBarrier();
        ${put('v', valueItems, valueDim)}
        ${walk.advance}
        ${fetch('k', items, 'nextStart', 'nextStop')}
        workgroupBarrier();
        ${accumulate}
      }
      ${own.map(finish).join('\n')}
    }`;
}
