import type { Capabilities } from '../../device/capabilities.js';
import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { fragmentGrid, fragmentLanes, Fragments } from '../../kernel/fragments.js';
import { range, unroll } from '../../kernel/modules.js';
import { endsWithin, loader, type Side, storedRows } from './matrix-loads.js';
import { fragmentOutColumns, type Load } from './plan.js';
import { firstHalvesText, isShifted, shiftedText } from './shifted-loads.js';
import { epilogueText, loopBound, matmulUniforms, type OutSpec, placeText, type ProductCall, tileText } from './text.js';

// out = activation(a b + bias) + addTo on fragments: operands f16 (f32 ones are rounded on the way in), sums f32.
// tile    rows x columns x depth; each `groups` subgroups share a part of it and take k in turns, summed on the way out; operand tiles
//         keep their stored layout in an array of vec4u, written by 16-byte stores, rows padded by one against bank conflicts;
//         `ahead` tiles along k wait in registers; on the way out 16 rows x 32 or 64 columns a subgroup pass through the array as f32
// bytes   reads (M K N / columns + K N M / rows), writes M N; workgroup memory up to 24 KiB (`fragmentBytes`), so that two
//         workgroups share a multiprocessor
// limits  any M, N, K, strides, offsets; f32 operands beyond +-65504 are clamped
// source  register blocking as in CUTLASS; docs/benchmarks/tuning.md has what each step gave
export interface MatrixSpec extends OutSpec {
  rows: number;
  columns: number;
  subgroupRows: number;
  subgroupColumns: number;
  depth: number;
  groups: number;
  ahead: number;
  /** K ends within a tile. */
  tails: boolean;
  transposeA: boolean;
  transposeB: boolean;
  loadA: Load;
  loadB: Load;
}

const byEight = (load: Load): boolean => load === 'half8' || load === 'half8Shifted';
const width = (load: Load): number => (byEight(load) ? 1 : 4);
const raw = (load: Load): string | undefined => (byEight(load) ? 'vec4u' : undefined);

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
  const parts = (spec.rows / spec.subgroupRows) * across;
  const subgroups = parts * spec.groups;
  const lanes = subgroups * fragmentLanes;
  const a = sideOf(spec, 'a', 0);
  const b = sideOf(spec, 'b', storedRows(a) * a.stride);
  const ahead = isShifted(spec.loadA) || isShifted(spec.loadB) ? 1 : spec.ahead;
  const loadA = loader(a, lanes, ahead);
  const loadB = loader(b, lanes, ahead);
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
  const steps = spec.depth / fragments.K / spec.groups;
  const kOf = (step: string): string => `(${step} * ${spec.groups}u${spec.groups > 1 ? ' + groupOfSubgroup' : ''}) * ${fragments.K}u`;
  const eachStep = fragments.hardware
    ? unroll(steps, (step) => multiply(kOf(`${step}u`)))
    : `for (var step = 0u; step < ${loopBound(steps, capabilities)}; step++) ${multiply(kOf('step'))}`;
  // whole tiles along k, which all but the last one are, are fetched without a look at the end of k
  const fetch = (set: number, k: string): string => `
      if (${k}${spec.tails ? ` + ${spec.depth}u <=` : ' <'} place.kEnd) { ${loadA.fetch(set, k, false)} ${loadB.fetch(set, k, false)} }
      ${spec.tails ? `else if (${k} < place.kEnd) { ${loadA.fetch(set, k, true)} ${loadB.fetch(set, k, true)} }` : ''}
      ${loadA.step} ${loadB.step}`;
  const body = `
    let index = workgroupIndex(group, groups);
    if (index >= uniforms.total) { return; }
    let tileAt = tileOf(index);
    let place = placeOf(tileAt.rest);
    let groupOfSubgroup = subgroup / ${parts}u;
    let rowOfSubgroup = subgroup % ${parts}u / ${across}u * ${spec.subgroupRows}u;
    let columnOfSubgroup = subgroup % ${across}u * ${spec.subgroupColumns}u;
    ${sums.map(({ name }) => fragments.zero(name)).join('\n')}
    ${loadA.places}
    ${loadB.places}
    ${unroll(ahead, (set) => fetch(set, `place.kBegin + ${set * spec.depth}u`))}
    for (var kt = place.kBegin; kt < place.kEnd; kt += ${ahead * spec.depth}u) {
      ${unroll(
        ahead,
        (set) => `
      ${set > 0 ? `if (kt + ${set * spec.depth}u >= place.kEnd) { break; }` : ''}
      ${loadA.stage(set)}
      ${loadB.stage(set)}
      workgroupBarrier();
      ${fetch(set, `kt + ${(set + ahead) * spec.depth}u`)}
      ${eachStep}
      workgroupBarrier();`,
      )}
    }
    ${wayOut(spec, fragments, capabilities)}`;
  return `
    ${placeText(spec.partial)}
    ${tileText(spec.rows, spec.columns)}
    ${epilogueText(spec)}
    ${shiftedText([spec.loadA, spec.loadB])} ${spec.tails && (endsWithin(a) || endsWithin(b)) ? firstHalvesText : ''}
    fn halves(x: vec4f) -> vec2u { return bitcast<vec2u>(vec4<f16>(clamp(x, vec4f(-65504.0), vec4f(65504.0)))); }
    var<workgroup> tile: array<vec4u, ${Math.max(b.at + storedRows(b) * b.stride, subgroups * fragments.M * (fragmentOutColumns(spec) / 4 + 2))}>;
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
    stride: (alongDepth ? spec.depth : free) / 8 + 1,
    at,
  };
}

/**
 * Bands of 16 rows x 32 or 64 columns a subgroup go through workgroup memory, so that stores are whole rows of any dtype; the lanes of
 * subgroups that share a part of the tile sum it and store rows of it each.
 */
function wayOut(spec: MatrixSpec, fragments: Fragments, capabilities: Capabilities): string {
  const outColumns = fragmentOutColumns(spec);
  const stride = outColumns / 4 + 2;
  const band = outColumns / fragments.N;
  const quads = outColumns / 4;
  const parts = (spec.rows / spec.subgroupRows) * (spec.columns / spec.subgroupColumns);
  const rounds = (fragments.M * quads) / fragmentLanes / spec.groups;
  const region = (subgroup: string): string => `(${subgroup}) * ${fragments.M * stride}u`;
  const sum = range(spec.groups)
    .map((group) => `bitcast<vec4f>(tile[${region(`subgroup % ${parts}u + ${group * parts}u`)} + r * ${stride}u + c])`)
    .join(' + ');
  return unroll(spec.subgroupRows / fragments.M, (i) =>
    unroll(spec.subgroupColumns / outColumns, (part) => {
      const stores = range(band).map((j) =>
        fragments.store(`c${i}_${part * band + j}`, 'tile', `${region('subgroup')} + ${(j * fragments.N) / 4}u`, `${stride}u`),
      );
      return `
        ${i + part > 0 ? 'workgroupBarrier();' : ''}
        ${stores.join('\n')}
        workgroupBarrier();
        for (var turn = 0u; turn < ${loopBound(rounds, capabilities)}; turn++) {
          let r = ((turn * ${spec.groups}u + groupOfSubgroup) * ${fragmentLanes}u + subgroupLane) / ${quads}u;
          let c = subgroupLane % ${quads}u;
          let row = tileAt.row + rowOfSubgroup + ${i * fragments.M}u + r;
          let column = tileAt.column + columnOfSubgroup + ${part * outColumns}u + c * 4u;
          if (row < uniforms.M) {
            finishFour(place.out + row * uniforms.rowOut + column, column, ${sum});
          }
        }`;
    }),
  );
}
