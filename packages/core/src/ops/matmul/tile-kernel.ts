import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { range, unroll } from '../../kernel/modules.js';
import { tileDepth } from './plan.js';
import { epilogueText, loopBound, matmulUniforms, type OutSpec, placeText, type ProductCall, tileText } from './text.js';

// out = activation(a b + bias) + addTo in f32, tiles in workgroup memory, sums in named registers.
// tile    rows x columns x 16, one lane laneRows x laneColumns of it; the next tile is prefetched into registers
// bytes   reads (M K N / columns + K N M / rows), writes M N elements; workgroup memory 64 x (rows + columns), 24 KiB at most
// limits  any M, N, K, strides and offsets (loads of four where aligned); matrices x tiles x splits < 2^32
// source  the usual register blocking; tiles lie row by row of k, k-contiguous operands are transposed on the way, swizzled
export interface TileSpec extends OutSpec {
  rows: number;
  columns: number;
  laneRows: number;
  laneColumns: number;
  transposeA: boolean;
  transposeB: boolean;
  vecA: boolean;
  vecB: boolean;
}

const kernel = defineKernel({
  name: 'matmul-tile',
  bindings: {
    a: read<TileSpec>('float', { width: (spec) => (spec.vecA ? 4 : 1) }),
    b: read<TileSpec>('float', { width: (spec) => (spec.vecB ? 4 : 1) }),
    out: write<TileSpec>('float', { width: (spec) => spec.outWidth }),
    bias: read<TileSpec>('float', { when: (spec) => spec.bias }),
    addTo: read<TileSpec>('float', { width: (spec) => spec.outWidth, when: (spec) => spec.addTo }),
  },
  uniforms: matmulUniforms,
  wgsl: tileKernelText,
});

/** Records the tile kernel. */
export function runTile(device: Device, spec: TileSpec, call: ProductCall): void {
  kernel.run(device, { spec, ...call });
}

interface Side {
  name: 'a' | 'b';
  /** Rows of a or columns of b in the tile; `lane` of them go to one lane. */
  free: number;
  lane: number;
  /** Stored with k contiguous. */
  alongDepth: boolean;
  vec: boolean;
  /** Number of lanes along this side, and this lane's index among them. */
  across: number;
  index: string;
}

function tileKernelText(spec: TileSpec, { capabilities }: KernelContext): string {
  const lanesDown = spec.rows / spec.laneRows;
  const lanesAcross = spec.columns / spec.laneColumns;
  const lanes = lanesDown * lanesAcross;
  const a: Side = {
    name: 'a',
    free: spec.rows,
    lane: spec.laneRows,
    alongDepth: !spec.transposeA,
    vec: spec.vecA,
    across: lanesDown,
    index: 'down',
  };
  const b: Side = {
    name: 'b',
    free: spec.columns,
    lane: spec.laneColumns,
    alongDepth: spec.transposeB,
    vec: spec.vecB,
    across: lanesAcross,
    index: 'across',
  };
  const loadA = loader(a, lanes, 'tile.row', 'uniforms.M', 'uniforms.rowA', 'place.a');
  const loadB = loader(b, lanes, 'tile.column', 'uniforms.N', 'uniforms.rowB', 'place.b');
  const rowQuads = spec.laneRows / 4;
  const columnQuads = spec.laneColumns / 4;
  const sum = (quad: number, j: number, h: number): string => `c${quad}_${j}_${h}`;
  const sums = range(rowQuads).flatMap((g) => range(4).flatMap((j) => range(columnQuads).map((h) => ({ g, j, h, name: sum(g, j, h) }))));
  const products = (q: string, i: number): string => `{
          ${unroll(rowQuads, (g) => `let a_${g} = ${readTile(a, g, q, i)};`, ' ')}
          ${unroll(columnQuads, (h) => `let b_${h} = ${readTile(b, h, q, i)};`, ' ')}
          ${sums.map(({ g, j, h, name }) => `${name} = fma(vec4f(a_${g}[${j}]), b_${h}, ${name});`).join('\n')}
        }`;
  const quads = tileDepth / 4;
  // wide subgroups are GPUs, which gain by constant offsets; software drivers take seconds over them
  const eachDepth =
    capabilities.subgroupMinSize >= 16
      ? unroll(tileDepth, (k) => products(`${k >> 2}u`, k & 3))
      : `for (var q = 0u; q < ${loopBound(quads, capabilities)}; q++) { ${unroll(4, (i) => products('q', i))} }`;
  return `
    ${placeText(spec.partial)}
    ${tileText(spec.rows, spec.columns)}
    ${epilogueText(spec)}
    var<workgroup> tileA: array<vec4f, ${(spec.rows * tileDepth) / 4}>;
    var<workgroup> tileB: array<vec4f, ${(spec.columns * tileDepth) / 4}>;
    @compute @workgroup_size(${lanes})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.total) { return; }
      let tile = tileOf(index);
      let place = placeOf(tile.rest);
      let down = lane / ${lanesAcross}u;
      let across = lane % ${lanesAcross}u;
      ${sums.map(({ name }) => `var ${name} = vec4f();`).join('\n')}
      ${loadA.places}
      ${loadB.places}
      var kt = place.kBegin;
      if (kt < place.kEnd) { ${loadA.fetch} ${loadB.fetch} }
      while (kt < place.kEnd) {
        ${loadA.stage}
        ${loadB.stage}
        workgroupBarrier();
        kt += ${tileDepth}u;
        if (kt < place.kEnd) { ${loadA.fetch} ${loadB.fetch} }
        ${eachDepth}
        workgroupBarrier();
      }
      ${sums
        .map(({ g, j, h, name }) => {
          const row = `tile.row + (${g * lanesDown}u + down) * 4u + ${j}u`;
          const column = `tile.column + (${h * lanesAcross}u + across) * 4u`;
          return `if (${row} < uniforms.M) { finishFour(place.out + (${row}) * uniforms.rowOut + ${column}, ${column}, ${name}); }`;
        })
        .join('\n')}
    }`;
}

/**
 * Loads of one operand tile by all lanes, four elements along the contiguous axis at a time. Beyond the matrix, rows and
 * columns repeat the last one (never stored); beyond k there are zeros, as what lies there may be anything. Vector loads are
 * fetched a tile ahead; single ones (unaligned operands) go straight to workgroup memory, which keeps their text short.
 */
function loader(
  side: Side,
  lanes: number,
  first: string,
  extent: string,
  row: string,
  base: string,
): { places: string; fetch: string; stage: string } {
  const { name, free, alongDepth, vec } = side;
  const chunks = range((free * tileDepth) / 4 / lanes);
  const quads = free / 4;
  const tile = `tile${name.toUpperCase()}`;
  const places = chunks.map((r) => {
    const chunk = `let ${name}Chunk${r} = lane + ${r * lanes}u;`;
    if (alongDepth) {
      return `${chunk}
        let ${name}Free${r} = ${name}Chunk${r} / ${tileDepth / 4}u;
        let ${name}Depth${r} = ${name}Chunk${r} % ${tileDepth / 4}u;
        let ${name}At${r} = ${base} + min(${first} + ${name}Free${r}, ${extent} - 1u) * ${row};
        let ${name}To${r} = ${name}Depth${r} * ${4 * quads}u + ((${name}Free${r} / 4u) ^ (${name}Depth${r} * 2u));`;
    }
    return `${chunk}
      let ${name}Depth${r} = ${name}Chunk${r} / ${quads}u;
      let ${name}Free${r} = ${first} + ${name}Chunk${r} % ${quads}u * 4u;
      let ${name}To${r} = ${name}Chunk${r};`;
  });
  const values = chunks.map((r) => {
    if (alongDepth) {
      const k = `kt + ${name}Depth${r} * 4u`;
      if (vec) return `select(vec4f(), load_${name}((${name}At${r} + min(${k}, uniforms.K - 4u)) / 4u), ${k} < place.kEnd)`;
      return `vec4f(${range(4)
        .map((j) => `select(0.0, load_${name}(${name}At${r} + min(${k} + ${j}u, uniforms.K - 1u)), ${k} + ${j}u < place.kEnd)`)
        .join(', ')})`;
    }
    const k = `kt + ${name}Depth${r}`;
    const at = `${base} + min(${k}, uniforms.K - 1u) * ${row}`;
    if (vec) return `select(vec4f(), load_${name}((${at} + min(${name}Free${r}, ${extent} - 4u)) / 4u), ${k} < place.kEnd)`;
    return `select(vec4f(), vec4f(${range(4)
      .map((j) => `load_${name}(${at} + min(${name}Free${r} + ${j}u, ${extent} - 1u))`)
      .join(', ')}), ${k} < place.kEnd)`;
  });
  // four neighbours along k go to four rows, so that both layouts are read alike
  const store = (r: number, value: string): string =>
    alongDepth
      ? `{ let along = ${value}; ${unroll(4, (j) => `${tile}[${name}To${r} + ${j * quads}u][${name}Free${r} % 4u] = along[${j}];`, ' ')} }`
      : `${tile}[${name}To${r}] = ${value};`;
  if (!vec) return { places: places.join('\n'), fetch: '', stage: chunks.map((r) => store(r, values[r] as string)).join('\n') };
  return {
    places: `${places.join('\n')}\n${unroll(chunks.length, (r) => `var ${name}${r} = vec4f();`)}`,
    fetch: unroll(chunks.length, (r) => `${name}${r} = ${values[r]};`),
    stage: chunks.map((r) => store(r, `${name}${r}`)).join('\n'),
  };
}

/** Four rows or columns, quad `quad` of this lane's, at k 4 q + i; swizzled where they were stored along k. */
function readTile(side: Side, quad: number, q: string, i: number): string {
  const own = `${quad * side.across}u + ${side.index}`;
  return `tile${side.name.toUpperCase()}[(${q} * 4u + ${i}u) * ${side.free / 4}u + ${side.alongDepth ? `((${own}) ^ (${q} * 2u))` : own}]`;
}
