import type { Capabilities } from '../../device/capabilities.js';
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { fragmentGrid, fragmentLanes, Fragments } from '../../kernel/fragments.js';
import { range, unroll } from '../../kernel/modules.js';
import { loader, type Side, storedRows } from './matrix-loads.js';
import { fragmentOutColumns, type Load } from './plan.js';
import { epilogueText, loopBound, matmulUniforms, type OutSpec, placeText, type ProductCall, tileText } from './text.js';

// out = activation(a b + bias) + addTo on fragments: operands f16 (f32 ones are rounded on the way in), sums f32.
// tile    rows x columns x depth, four subgroups; operand tiles keep their stored layout in an array of vec4u, written by 16-byte
//         stores, rows padded by one against bank conflicts; the next tile is fetched into registers before the barrier; on the way
//         out 16 rows x 32 columns a subgroup pass through the same array as f32
// bytes   reads (M K N / columns + K N M / rows), writes M N; workgroup memory up to 20 KiB (`fragmentBytes`), so that two
//         workgroups share a multiprocessor
// limits  any M, N, K, strides, offsets; f32 operands beyond +-65504 are clamped
// source  register blocking as in CUTLASS; docs/benchmarks/tuning.md has what each step gave
export interface MatrixSpec extends OutSpec {
  rows: number;
  columns: number;
  subgroupRows: number;
  subgroupColumns: number;
  depth: number;
  transposeA: boolean;
  transposeB: boolean;
  loadA: Load;
  loadB: Load;
}

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

function matrixKernelText(spec: MatrixSpec, { capabilities }: KernelContext): string {
  const fragments = new Fragments(capabilities, { N: 16, packed: ['tile'] });
  const across = spec.columns / spec.subgroupColumns;
  const subgroups = (spec.rows / spec.subgroupRows) * across;
  const lanes = subgroups * fragmentLanes;
  const a = sideOf(spec, 'a', 0);
  const b = sideOf(spec, 'b', storedRows(a) * a.stride);
  const loadA = loader(a, lanes, capabilities);
  const loadB = loader(b, lanes, capabilities);
  const down = spec.subgroupRows / fragments.M;
  const wide = spec.subgroupColumns / fragments.N;
  const sums = fragmentGrid('c', down, wide);
  const multiply = (k: string): string => {
    const left = (i: number): string => {
      const row = `rowOfSubgroup + ${i * fragments.M}u`;
      const at = a.alongDepth ? `(${row}) * ${a.stride}u + (${k}) / 8u` : `(${k}) * ${a.stride}u + (${row}) / 8u`;
      return fragments.loadLeft(`left${i}`, 'tile', at, `${a.stride}u`, a.alongDepth ? 'row' : 'column');
    };
    const right = (j: number): string => {
      const column = `columnOfSubgroup + ${j * fragments.N}u`;
      const at = b.alongDepth ? `(${column}) * ${b.stride}u + (${k}) / 8u` : `(${k}) * ${b.stride}u + (${column}) / 8u`;
      return fragments.loadRight('right', 'tile', `${b.at}u + ${at}`, `${b.stride}u`, b.alongDepth ? 'column' : 'row');
    };
    return `{ ${unroll(down, left)} ${unroll(wide, (j) => `{ ${right(j)} ${unroll(down, (i) => fragments.multiplyAdd(`c${i}_${j}`, `left${i}`, 'right'))} }`)} }`;
  };
  const steps = spec.depth / fragments.K;
  const eachStep = fragments.hardware
    ? unroll(steps, (step) => multiply(`${step * fragments.K}u`))
    : `for (var step = 0u; step < ${loopBound(steps, capabilities)}; step++) ${multiply(`step * ${fragments.K}u`)}`;
  // whole tiles along k, which all but the last one are, are fetched without a look at the end of k
  const fetch = `
      if (kt + ${spec.depth}u <= place.kEnd) { ${loadA.fetch(false)} ${loadB.fetch(false)} }
      else if (kt < place.kEnd) { ${loadA.fetch(true)} ${loadB.fetch(true)} }`;
  const body = `
    let index = workgroupIndex(group, groups);
    if (index >= uniforms.total) { return; }
    let tileAt = tileOf(index);
    let place = placeOf(tileAt.rest);
    let rowOfSubgroup = subgroup / ${across}u * ${spec.subgroupRows}u;
    let columnOfSubgroup = subgroup % ${across}u * ${spec.subgroupColumns}u;
    ${sums.map(({ name }) => fragments.zero(name)).join('\n')}
    var kt = place.kBegin;
    ${loadA.places}
    ${loadB.places}
    ${fetch}
    while (kt < place.kEnd) {
      ${loadA.stage}
      ${loadB.stage}
      workgroupBarrier();
      kt += ${spec.depth}u;
      ${loadA.step} ${loadB.step}
      ${fetch}
      ${eachStep}
      workgroupBarrier();
    }
    ${wayOut(spec, fragments, capabilities)}`;
  return `
    ${placeText(spec.partial)}
    ${tileText(spec.rows, spec.columns)}
    ${epilogueText(spec)}
    fn halves(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(clamp(x, vec4f(-65504.0), vec4f(65504.0)))); }
    var<workgroup> tile: array<vec4u, ${Math.max(b.at + storedRows(b) * b.stride, subgroups * fragments.M * (fragmentOutColumns / 4 + 1))}>;
    ${fragments.entry(subgroups, body, { lanesInOrder: true })}`;
}

function sideOf(spec: MatrixSpec, name: 'a' | 'b', at: number): Side {
  const [free, alongDepth] = name === 'a' ? [spec.rows, !spec.transposeA] : [spec.columns, spec.transposeB];
  return {
    name,
    free,
    depth: spec.depth,
    alongDepth,
    load: name === 'a' ? spec.loadA : spec.loadB,
    first: name === 'a' ? 'tileAt.row' : 'tileAt.column',
    extent: name === 'a' ? 'uniforms.M' : 'uniforms.N',
    stride: (alongDepth ? spec.depth : free) / 8 + 1,
    at,
  };
}

/** Bands of 16 rows x 32 columns a subgroup go through workgroup memory, so that stores are whole rows of any dtype. */
function wayOut(spec: MatrixSpec, fragments: Fragments, capabilities: Capabilities): string {
  const stride = fragmentOutColumns / 4 + 1;
  const band = fragmentOutColumns / fragments.N;
  const quads = fragmentOutColumns / 4;
  const rounds = (fragments.M * quads) / fragmentLanes;
  const ownRegion = `subgroup * ${fragments.M * stride}u`;
  return unroll(spec.subgroupRows / fragments.M, (i) =>
    unroll(spec.subgroupColumns / fragmentOutColumns, (part) => {
      const stores = range(band).map((j) =>
        fragments.store(`c${i}_${part * band + j}`, 'tile', `${ownRegion} + ${(j * fragments.N) / 4}u`, `${stride}u`),
      );
      return `
        ${stores.join('\n')}
        workgroupBarrier();
        for (var turn = 0u; turn < ${loopBound(rounds, capabilities)}; turn++) {
          let r = (turn * ${fragmentLanes}u + subgroupLane) / ${quads}u;
          let c = subgroupLane % ${quads}u;
          let row = tileAt.row + rowOfSubgroup + ${i * fragments.M}u + r;
          let column = tileAt.column + columnOfSubgroup + ${part * fragmentOutColumns}u + c * 4u;
          if (row < uniforms.M) {
            finishFour(place.out + row * uniforms.rowOut + column, column, bitcast<vec4f>(tile[${ownRegion} + r * ${stride}u + c]));
          }
        }
        workgroupBarrier();`;
    }),
  );
}
