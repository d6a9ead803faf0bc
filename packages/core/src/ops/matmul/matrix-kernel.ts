import type { Capabilities } from '../../device/capabilities.js';
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { fragmentGrid, fragmentLanes, Fragments } from '../../kernel/fragments.js';
import { range, unroll } from '../../kernel/modules.js';
import { fragmentDepth, fragmentOutColumns, type Load } from './plan.js';
import { epilogueText, loopBound, matmulUniforms, type OutSpec, placeText, type ProductCall, tileText } from './text.js';

// out = activation(a b + bias) + addTo on fragments: operands f16 (f32 ones are rounded on the way in), sums f32.
// tile    rows x columns x 32, four subgroups; operand tiles keep their stored layout, rows padded by 8 against bank
//         conflicts; the next tile is fetched into registers before the barrier; the way out is 16 x 32 f32 a subgroup
// bytes   reads (M K N / columns + K N M / rows), writes M N; workgroup memory up to 29.7 KiB (`fragmentBytes`)
// limits  any M, N, K, strides, offsets; f32 operands beyond +-65504 are clamped
// source  gpu/prototypes matmul: 181 TFLOP/s at 4096^3 with shipped toggles on one H100
export interface MatrixSpec extends OutSpec {
  rows: number;
  columns: number;
  subgroupRows: number;
  subgroupColumns: number;
  transposeA: boolean;
  transposeB: boolean;
  loadA: Load;
  loadB: Load;
}

const pad = 8;
const width = (load: Load): number => (load === 'vec4' ? 4 : 1);
const raw = (load: Load): string | undefined => (load === 'half8' ? 'vec4u' : undefined);

const kernel = defineKernel({
  name: 'matmul-matrix',
  tier: 'matrix',
  bindings: {
    a: read<MatrixSpec>('float', { width: (spec) => width(spec.loadA), raw: (spec) => raw(spec.loadA) }),
    b: read<MatrixSpec>('float', { width: (spec) => width(spec.loadB), raw: (spec) => raw(spec.loadB) }),
    out: write<MatrixSpec>('float', { width: (spec) => spec.outWidth }),
    bias: read<MatrixSpec>('float', { when: (spec) => spec.bias }),
    addTo: read<MatrixSpec>('float', { width: (spec) => spec.outWidth, when: (spec) => spec.addTo }),
  },
  uniforms: matmulUniforms,
  wgsl: matrixKernelText,
});

/** Records the matrix kernel. */
export function runMatrix(device: Device, spec: MatrixSpec, call: ProductCall): void {
  kernel.run(device, { spec, ...call });
}

interface Side {
  name: 'a' | 'b';
  free: number;
  alongDepth: boolean;
  load: Load;
  first: string;
  extent: string;
  /** Halves between stored rows of the tile. */
  stride: number;
}

function matrixKernelText(spec: MatrixSpec, { capabilities }: KernelContext): string {
  const fragments = new Fragments(capabilities);
  const across = spec.columns / spec.subgroupColumns;
  const subgroups = (spec.rows / spec.subgroupRows) * across;
  const lanes = subgroups * fragmentLanes;
  const side = (name: 'a' | 'b'): Side => {
    const [free, alongDepth] = name === 'a' ? [spec.rows, !spec.transposeA] : [spec.columns, spec.transposeB];
    return {
      name,
      free,
      alongDepth,
      load: name === 'a' ? spec.loadA : spec.loadB,
      first: name === 'a' ? 'tile.row' : 'tile.column',
      extent: name === 'a' ? 'uniforms.M' : 'uniforms.N',
      stride: (alongDepth ? fragmentDepth : free) + pad,
    };
  };
  const a = side('a');
  const b = side('b');
  const loadA = loader(a, lanes, capabilities);
  const loadB = loader(b, lanes, capabilities);
  const down = spec.subgroupRows / fragments.M;
  const wide = spec.subgroupColumns / fragments.N;
  const sums = fragmentGrid('c', down, wide);
  const multiply = (k: string): string => {
    const left = (i: number): string => {
      const row = `(rowOfSubgroup + ${i * fragments.M}u)`;
      const at = a.alongDepth ? `${row} * ${a.stride}u + ${k}` : `${k} * ${a.stride}u + ${row}`;
      return fragments.loadLeft(`left${i}`, 'tileA', at, `${a.stride}u`, a.alongDepth ? 'row' : 'column');
    };
    const right = (j: number): string => {
      const column = `(columnOfSubgroup + ${j * fragments.N}u)`;
      const at = b.alongDepth ? `${column} * ${b.stride}u + ${k}` : `${k} * ${b.stride}u + ${column}`;
      return fragments.loadRight('right', 'tileB', at, `${b.stride}u`, b.alongDepth ? 'column' : 'row');
    };
    return `{ ${unroll(down, left)} ${unroll(wide, (j) => `{ ${right(j)} ${unroll(down, (i) => fragments.multiplyAdd(`c${i}_${j}`, `left${i}`, 'right'))} }`)} }`;
  };
  const steps = fragmentDepth / fragments.K;
  const eachStep = fragments.hardware
    ? unroll(steps, (step) => multiply(`${step * fragments.K}u`))
    : `for (var step = 0u; step < ${loopBound(steps, capabilities)}; step++) ${multiply(`step * ${fragments.K}u`)}`;
  const body = `
    let index = workgroupIndex(group, groups);
    if (index >= uniforms.total) { return; }
    let tile = tileOf(index);
    let place = placeOf(tile.rest);
    let rowOfSubgroup = subgroup / ${across}u * ${spec.subgroupRows}u;
    let columnOfSubgroup = subgroup % ${across}u * ${spec.subgroupColumns}u;
    ${sums.map(({ name }) => fragments.zero(name)).join('\n')}
    ${loadA.places}
    ${loadB.places}
    var kt = place.kBegin;
    if (kt < place.kEnd) { ${loadA.fetch} ${loadB.fetch} }
    while (kt < place.kEnd) {
      ${loadA.stage}
      ${loadB.stage}
      workgroupBarrier();
      kt += ${fragmentDepth}u;
      if (kt < place.kEnd) { ${loadA.fetch} ${loadB.fetch} }
      ${eachStep}
      workgroupBarrier();
    }
    ${wayOut(spec, fragments, capabilities)}`;
  const halves = (s: Side): number => (s.alongDepth ? s.free : fragmentDepth) * s.stride;
  return `
    ${placeText(spec.partial)}
    ${tileText(spec.rows, spec.columns)}
    ${epilogueText(spec)}
    fn halves(x: vec4f) -> vec4<f16> { return vec4<f16>(clamp(x, vec4f(-65504.0), vec4f(65504.0))); }
    fn eight(low: vec4f, high: vec4f) -> vec4u { return vec4u(bitcast<vec2u>(halves(low)), bitcast<vec2u>(halves(high))); }
    var<workgroup> tileA: array<f16, ${halves(a)}>;
    var<workgroup> tileB: array<f16, ${halves(b)}>;
    var<workgroup> wayOut: array<f32, ${subgroups * fragments.M * (fragmentOutColumns + 4)}>;
    ${fragments.entry(subgroups, body)}`;
}

/** Bands of 16 rows x 32 columns a subgroup go through workgroup memory, so that stores are whole rows of any dtype. */
function wayOut(spec: MatrixSpec, fragments: Fragments, capabilities: Capabilities): string {
  const stride = fragmentOutColumns + 4;
  const band = fragmentOutColumns / fragments.N;
  const quads = fragmentOutColumns / 4;
  const rounds = (fragments.M * quads) / fragmentLanes;
  const ownRegion = `subgroup * ${fragments.M * stride}u`;
  return unroll(spec.subgroupRows / fragments.M, (i) =>
    unroll(spec.subgroupColumns / fragmentOutColumns, (part) => {
      const stores = range(band).map((j) =>
        fragments.store(`c${i}_${part * band + j}`, 'wayOut', `${ownRegion} + ${j * fragments.N}u`, `${stride}u`),
      );
      return `
        ${stores.join('\n')}
        workgroupBarrier();
        for (var turn = 0u; turn < ${loopBound(rounds, capabilities)}; turn++) {
          let r = (turn * ${fragmentLanes}u + subgroupLane) / ${quads}u;
          let c = subgroupLane % ${quads}u * 4u;
          let row = tile.row + rowOfSubgroup + ${i * fragments.M}u + r;
          let column = tile.column + columnOfSubgroup + ${part * fragmentOutColumns}u + c;
          if (row < uniforms.M) {
            let start = ${ownRegion} + r * ${stride}u + c;
            finishFour(place.out + row * uniforms.rowOut + column, column, vec4f(wayOut[start], wayOut[start + 1u], wayOut[start + 2u], wayOut[start + 3u]));
          }
        }
        workgroupBarrier();`;
    }),
  );
}

/**
 * Loads of one operand tile by all lanes: chunks of eight halves along the contiguous axis, as one vec4u each, fetched a tile
 * ahead; single elements (unaligned operands) go straight to workgroup memory.
 */
function loader(side: Side, lanes: number, capabilities: Capabilities): { places: string; fetch: string; stage: string } {
  const { name, free, alongDepth } = side;
  const row = `uniforms.row${name.toUpperCase()}`;
  const chunks = range((free * fragmentDepth) / 8 / lanes);
  const perRow = (alongDepth ? fragmentDepth : free) / 8;
  const prefetch = side.load !== 'scalar';
  const tile = `tile${name.toUpperCase()}`;
  const places = chunks.map((r) => {
    const own = `
      let ${name}Outer${r} = (lane + ${r * lanes}u) / ${perRow}u;
      let ${name}Inner${r} = (lane + ${r * lanes}u) % ${perRow}u * 8u;
      ${prefetch ? `var ${name}${r} = vec4u();` : ''}`;
    return alongDepth
      ? `${own} let ${name}At${r} = place.${name} + min(${side.first} + ${name}Outer${r}, ${side.extent} - 1u) * ${row};`
      : own;
  });
  const fetch = chunks.map((r) => {
    const k = `(kt + ${alongDepth ? `${name}Inner${r}` : `${name}Outer${r}`})`;
    const inner = alongDepth ? k : `(${side.first} + ${name}Inner${r})`;
    const end = alongDepth ? 'uniforms.K' : side.extent;
    const start = alongDepth ? `${name}At${r}` : `place.${name} + min(${k}, uniforms.K - 1u) * ${row}`;
    // beyond the matrix the last row or column repeats and is never stored; beyond k there must be zeros
    const valid = (element: string): string => `${k}${alongDepth ? ` + ${element}` : ''} < place.kEnd`;
    const to = `${name}Outer${r} * ${side.stride}u + ${name}Inner${r}`;
    if (prefetch) return `{ let start = ${start}; ${name}${r} = ${chunkText(side, inner, end, valid)}; }`;
    return `{
      let start = ${start};
      let to = ${to};
      for (var j = 0u; j < ${loopBound(8, capabilities)}; j++) {
        let value = select(0.0, load_${name}(start + min(${inner} + j, ${end} - 1u)), ${valid('j')});
        ${tile}[to + j] = f16(clamp(value, -65504.0, 65504.0));
      }
    }`;
  });
  const stage = chunks.map((r) => {
    const to = `${name}Outer${r} * ${side.stride}u + ${name}Inner${r}`;
    const pairs = range(4).map(
      (p) => `let p${p} = bitcast<vec2<f16>>(${name}${r}[${p}]); ${tile}[to + ${2 * p}u] = p${p}.x; ${tile}[to + ${2 * p + 1}u] = p${p}.y;`,
    );
    return `{ let to = ${to}; ${pairs.join(' ')} }`;
  });
  if (!prefetch) return { places: places.join('\n'), fetch: '', stage: fetch.join('\n') };
  return { places: places.join('\n'), fetch: fetch.join('\n'), stage: stage.join('\n') };
}

/** Eight halves from element `start + inner` on, clamped to `end`, zero where k is not valid. */
function chunkText(side: Side, inner: string, end: string, valid: (element: string) => string): string {
  const { name, load } = side;
  if (load === 'half8') return `select(vec4u(), ${name}[base_${name}() + (start + min(${inner}, ${end} - 8u)) / 8u], ${valid('0u')})`;
  const four = (i: number): string => `select(vec4f(), load_${name}((start + min(${inner} + ${i}u, ${end} - 4u)) / 4u), ${valid(`${i}u`)})`;
  return `eight(${four(0)}, ${four(4)})`;
}
