import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../../kernel/define.js';
import { range, unroll } from '../../kernel/modules.js';
import { vectorForms } from './plan.js';
import { epilogueText, loopBound, matmulUniforms, type OutSpec, placeText, type ProductCall } from './text.js';

// A product with at most 8 rows (or columns: operands swapped) as one pass over the large operand; f32 sums.
// tile    `few` rows x 64 columns, 16 lanes along k (`columns`: the large operand is contiguous along its columns), or
//         `few` rows x 16 columns, 64 lanes along k (`rows`: it is contiguous along k); 4 columns and 4 k a lane and step
// bytes   reads the large operand once, the few rows from the cache; workgroup memory 4 KiB a row, at most 16
// limits  few <= 8; any strides and lengths; splits along k are summed by the second kernel
export interface VectorSpec extends OutSpec {
  form: 'columns' | 'rows';
  /** The few rows are the columns of b, and out is written transposed. */
  swap: boolean;
  few: 1 | 2 | 4 | 8;
  /** The few rows, and the large operand, are read by four. */
  few4: boolean;
  many4: boolean;
  /** The few rows are contiguous along k. */
  fewAlongDepth: boolean;
}

const kernel = defineKernel({
  name: 'matmul-vector',
  bindings: {
    a: read<VectorSpec>('float', { width: (spec) => ((spec.swap ? spec.many4 : spec.few4) ? 4 : 1) }),
    b: read<VectorSpec>('float', { width: (spec) => ((spec.swap ? spec.few4 : spec.many4) ? 4 : 1) }),
    out: write<VectorSpec>('float', { width: (spec) => spec.outWidth }),
    bias: read<VectorSpec>('float', { when: (spec) => spec.bias }),
    addTo: read<VectorSpec>('float', { width: (spec) => spec.outWidth, when: (spec) => spec.addTo }),
  },
  uniforms: matmulUniforms,
  wgsl: vectorKernelText,
});

/** Records the vector kernel. */
export function runVector(device: Device, spec: VectorSpec, call: ProductCall): void {
  kernel.run(device, { spec, ...call });
}

function vectorKernelText(spec: VectorSpec, { capabilities }: KernelContext): string {
  const { form, swap, few } = spec;
  const { depthLanes, columns } = vectorForms[form];
  const quads = columns / 4;
  // rows that are summed over the lanes at a time: few barriers, and at most 16 KiB
  const round = Math.min(few, 4);
  const [fewName, manyName, fewRows, manyColumns] = swap ? ['b', 'a', 'N', 'M'] : ['a', 'b', 'M', 'N'];
  const fewRow = `uniforms.row${fewName.toUpperCase()}`;
  const manyRow = `uniforms.row${manyName.toUpperCase()}`;
  // element (r, k) of the few rows
  const fewAt = (r: number, k: string): string => (spec.fewAlongDepth ? `few${r} * ${fewRow} + ${k}` : `few${r} + (${k}) * ${fewRow}`);
  const loadFew = (r: number): string =>
    spec.few4
      ? `let x${r} = select(vec4f(), load_${fewName}((place.${fewName} + ${fewAt(r, 'min(k, uniforms.K - 4u)')}) / 4u), k < place.kEnd);`
      : `let x${r} = vec4f(${range(4)
          .map(
            (i) =>
              `select(0.0, load_${fewName}(place.${fewName} + ${fewAt(r, `min(k + ${i}u, uniforms.K - 1u)`)}), k + ${i}u < place.kEnd)`,
          )
          .join(', ')});`;
  const last = (element: string): string => `min(${element}, uniforms.${manyColumns} - 1u)`;
  const loadMany = (i: number): string => {
    if (form === 'columns') {
      const at = `place.${manyName} + min(k + ${i}u, uniforms.K - 1u) * ${manyRow}`;
      const value = spec.many4
        ? `load_${manyName}((${at} + min(column, uniforms.${manyColumns} - 4u)) / 4u)`
        : `vec4f(${range(4)
            .map((j) => `load_${manyName}(${at} + ${last(`column + ${j}u`)})`)
            .join(', ')})`;
      return `let w${i} = select(vec4f(), ${value}, k + ${i}u < place.kEnd);`;
    }
    const at = `place.${manyName} + ${last(`column + ${i}u`)} * ${manyRow}`;
    return spec.many4
      ? `let w${i} = select(vec4f(), load_${manyName}((${at} + min(k, uniforms.K - 4u)) / 4u), k < place.kEnd);`
      : `let w${i} = vec4f(${range(4)
          .map((j) => `select(0.0, load_${manyName}(${at} + min(k + ${j}u, uniforms.K - 1u)), k + ${j}u < place.kEnd)`)
          .join(', ')});`;
  };
  const step = (r: number): string =>
    form === 'columns'
      ? unroll(4, (i) => `sum${r} = fma(vec4f(x${r}[${i}]), w${i}, sum${r});`)
      : `sum${r} += vec4f(dot(x${r}, w0), dot(x${r}, w1), dot(x${r}, w2), dot(x${r}, w3));`;
  const finish = swap
    ? `for (var j = 0u; j < 4u; j++) {
         if (column + j < uniforms.M) { finishOne(place.out + (column + j) * uniforms.rowOut + depthLane, depthLane, total[j]); }
       }`
    : 'finishFour(place.out + depthLane * uniforms.rowOut + column, column, total);';
  return `
    ${placeText(spec.partial)}
    ${epilogueText(spec)}
    var<workgroup> sums: array<vec4f, ${256 * round}>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups);
      if (index >= uniforms.total) { return; }
      let blocks = (uniforms.${manyColumns} + ${columns - 1}u) / ${columns}u;
      let place = placeOf(index / blocks);
      let depthLane = ${form === 'columns' ? `lane / ${quads}u` : `lane % ${depthLanes}u`};
      let quad = ${form === 'columns' ? `lane % ${quads}u` : `lane / ${depthLanes}u`};
      let column = (index % blocks) * ${columns}u + quad * 4u;
      ${unroll(few, (r) => `let few${r} = min(${r}u, uniforms.${fewRows} - 1u); var sum${r} = vec4f();`)}
      for (var k = place.kBegin + depthLane * 4u; k < place.kEnd; k += ${depthLanes * 4}u) {
        ${unroll(4, loadMany)}
        ${unroll(few, (r) => `{ ${loadFew(r)} ${step(r)} }`)}
      }
      var total = vec4f();
      ${unroll(
        few / round,
        (turn) => `
        ${turn > 0 ? 'workgroupBarrier();' : ''}
        ${unroll(round, (r) => `sums[${r * 256}u + depthLane * ${quads}u + quad] = sum${turn * round + r};`)}
        workgroupBarrier();
        if (depthLane / ${round}u == ${turn}u) {
          for (var d = 0u; d < ${loopBound(depthLanes, capabilities)}; d++) { total += sums[depthLane % ${round}u * 256u + d * ${quads}u + quad]; }
        }`,
      )}
      if (depthLane < min(${few}u, uniforms.${fewRows})) { ${finish} }
    }`;
}
