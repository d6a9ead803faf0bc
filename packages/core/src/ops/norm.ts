import { apply } from '../autodiff/tape.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { laneArguments, laneBuiltins, lanesWgsl, sumPairState } from '../kernel/wgsl/lanes.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { axisOf, expectFloat, expectShape } from './check.js';
import { holdItems, itemSum, itemType, overItems, rowGrid, type RowSpec, rowSpec } from './row-kernels.js';

interface NormSpec extends RowSpec {
  /** Subtract the mean (LayerNorm). */
  centre: boolean;
  weight: boolean;
  bias: boolean;
}

// Rows divided by their root mean square, or by their standard deviation after the mean is taken off; then weight and bias.
// tile    256 / lanes rows a workgroup, held in registers where a lane has up to 8 items, else read again for the second pass
// bytes   reads n (2 n where rows are longer), writes n elements and 8 a row
// limits  n >= 1; statistics are f32
// source  Zhang, Sennrich 2019, eq. 4; Ba, Kiros, Hinton 2016, eq. 4
const normRows = defineKernel({
  name: 'norm-rows',
  bindings: {
    x: read<NormSpec>('float', { width: (s) => s.width }),
    weight: read<NormSpec>('float', { width: (s) => s.width, when: (s) => s.weight }),
    bias: read<NormSpec>('float', { width: (s) => s.width, when: (s) => s.bias }),
    out: write<NormSpec>('float', { width: (s) => s.width }),
    statistics: write('f32'),
  },
  uniforms: { rows: 'u32', n: 'u32', epsilon: 'f32', inverse: 'f32' },
  tier: ({ form }: NormSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const { width, lanes, invocations, form, centre, weight, bias } = spec;
    const loads = [{ name: 'x', load: (at: string) => `load_x(start + ${at})`, past: 'first' }];
    return `
    ${lanesWgsl(sumPairState, form, lanes, invocations)}
    @compute @workgroup_size(${invocations})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(form)}) {
      let l = lane % ${lanes}u;
      let row = workgroupIndex(group, groups) * ${invocations / lanes}u + lane / ${lanes}u;
      let start = min(row, uniforms.rows - 1u) * uniforms.n;
      // sums about the first element of the row: a large common offset does not cancel digits
      ${centre ? `let first = load_x(start)${width === 4 ? '.x' : ''};` : 'const first = 0.0;'}
      var sum = ${itemType(width)}(0.0);
      var squares = ${itemType(width)}(0.0);
      ${holdItems(spec, loads)}
      ${overItems(spec, loads, (value) => `let apart = ${value('x')} - first; sum += apart; squares += apart * apart;`)}
      let all = reduceLanes(State(${itemSum(width, 'sum')}, ${itemSum(width, 'squares')}), lane${laneArguments(form)});
      let offset = all.a * uniforms.inverse;
      ${centre ? 'let mean = first + offset; let variance = max(0.0, all.b * uniforms.inverse - offset * offset);' : 'const mean = 0.0; let variance = all.b * uniforms.inverse;'}
      let scale = inverseSqrt(variance + uniforms.epsilon);
      if (row >= uniforms.rows) { return; }
      if (l == 0u) { store_statistics(2u * row, mean); store_statistics(2u * row + 1u, scale); }
      ${overItems(
        spec,
        loads,
        (value, at) =>
          `store_out(start + ${at}, (${value('x')} - mean) * scale${weight ? ` * load_weight(${at})` : ''}${bias ? ` + load_bias(${at})` : ''});`,
      )}
    }`;
  },
});

// dx = scale (dy - xhat mean(dy xhat) [- mean(dy)]) with dy = g weight, xhat = (x - mean) scale.
// tile    256 / lanes rows a workgroup
// bytes   reads 2 n (4 n where rows are longer than lanes hold) and 8, writes n elements a row
// limits  as the way there, whose spec it shares
// source  derivative of the same equations, with the statistics of the way there
const normBackwardRows = defineKernel({
  name: 'norm-backward-rows',
  bindings: {
    x: read<NormSpec>('float', { width: (s) => s.width }),
    g: read<NormSpec>('float', { width: (s) => s.width }),
    weight: read<NormSpec>('float', { width: (s) => s.width, when: (s) => s.weight }),
    statistics: read('f32'),
    out: write<NormSpec>('float', { width: (s) => s.width }),
  },
  uniforms: { rows: 'u32', n: 'u32', inverse: 'f32' },
  tier: ({ form }: NormSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: (spec) => {
    const { width, lanes, invocations, form, centre, weight } = spec;
    const loads = [
      { name: 'dy', load: (at: string) => `load_g(start + ${at})${weight ? ` * load_weight(${at})` : ''}`, past: '0.0' },
      { name: 'unit', load: (at: string) => `(load_x(start + ${at}) - mean) * scale`, past: '0.0' },
    ];
    return `
    ${lanesWgsl(sumPairState, form, lanes, invocations)}
    @compute @workgroup_size(${invocations})
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(form)}) {
      let l = lane % ${lanes}u;
      let row = workgroupIndex(group, groups) * ${invocations / lanes}u + lane / ${lanes}u;
      let at = min(row, uniforms.rows - 1u);
      let start = at * uniforms.n;
      let mean = load_statistics(2u * at);
      let scale = load_statistics(2u * at + 1u);
      var sum = ${itemType(width)}(0.0);
      var aligned = ${itemType(width)}(0.0);
      ${holdItems(spec, loads)}
      ${overItems(spec, loads, (value) => `sum += ${value('dy')}; aligned += ${value('dy')} * ${value('unit')};`)}
      let all = reduceLanes(State(${itemSum(width, 'sum')}, ${itemSum(width, 'aligned')}), lane${laneArguments(form)});
      if (row >= uniforms.rows) { return; }
      ${overItems(
        spec,
        loads,
        (value, at) =>
          `store_out(start + ${at}, scale * (${value('dy')} - ${value('unit')} * (all.b * uniforms.inverse)${centre ? ' - all.a * uniforms.inverse' : ''}));`,
      )}
    }`;
  },
});

const rowsAPart = 128;

interface ColumnSpec {
  [name: string]: string | number | boolean;
  width: number;
}

// Gradients of weight and bias: sums down the columns, first over parts of 128 rows, then over the parts, in order.
// tile    64 columns (of 4 elements where rows allow) x 4 slices of 128 rows
// bytes   reads 2 n elements and 8 a row once, writes 8 n a part
// limits  rows up to 128 x 65,535
// source  dWeight = sum g xhat, dBias = sum g
const columnParts = defineKernel({
  name: 'norm-column-parts',
  bindings: {
    x: read<ColumnSpec>('float', { width: (s) => s.width }),
    g: read<ColumnSpec>('float', { width: (s) => s.width }),
    statistics: read('f32'),
    parts: write<ColumnSpec>('f32', { width: (s) => s.width }),
  },
  uniforms: { rows: 'u32', n: 'u32' },
  wgsl: ({ width }: ColumnSpec) => `
    var<workgroup> weights: array<${itemType(width)}, 256>;
    var<workgroup> biases: array<${itemType(width)}, 256>;
    @compute @workgroup_size(64, 4)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) lane: vec3u, @builtin(local_invocation_index) index: u32) {
      let column = group.x * 64u + lane.x;
      let part = group.y;
      var dWeight = ${itemType(width)}(0.0);
      var dBias = ${itemType(width)}(0.0);
      if (column < uniforms.n) {
        for (var row = part * ${rowsAPart}u + lane.y; row < min(uniforms.rows, (part + 1u) * ${rowsAPart}u); row += 4u) {
          let g = load_g(row * uniforms.n + column);
          dWeight += g * (load_x(row * uniforms.n + column) - load_statistics(2u * row)) * load_statistics(2u * row + 1u);
          dBias += g;
        }
      }
      weights[index] = dWeight;
      biases[index] = dBias;
      workgroupBarrier();
      if (lane.y > 0u || column >= uniforms.n) { return; }
      for (var slice = index + 64u; slice < 256u; slice += 64u) { dWeight += weights[slice]; dBias += biases[slice]; }
      store_parts((2u * part) * uniforms.n + column, dWeight);
      store_parts((2u * part + 1u) * uniforms.n + column, dBias);
    }`,
});

// The second half of those sums.
// tile    16 columns x 16 slices of the parts: few columns must not wait for one long row of loads
// bytes   reads 4 n a part, writes n elements
// limits  any number of columns: workgroups fold
const columnSums = defineKernel({
  name: 'norm-column-sums',
  bindings: { parts: read('f32'), out: write('float') },
  uniforms: { count: 'u32', n: 'u32', which: 'u32' },
  wgsl: () => `
    var<workgroup> slices: array<f32, 256>;
    @compute @workgroup_size(16, 16)
    fn main(
      @builtin(workgroup_id) group: vec3u,
      @builtin(num_workgroups) groups: vec3u,
      @builtin(local_invocation_id) lane: vec3u,
      @builtin(local_invocation_index) index: u32,
    ) {
      let column = workgroupIndex(group, groups) * 16u + lane.x;
      var sum = 0.0;
      if (column < uniforms.n) {
        for (var part = lane.y; part < uniforms.count; part += 16u) { sum += load_parts((2u * part + uniforms.which) * uniforms.n + column); }
      }
      slices[index] = sum;
      workgroupBarrier();
      if (lane.y > 0u || column >= uniforms.n) { return; }
      for (var slice = index + 16u; slice < 256u; slice += 16u) { sum += slices[slice]; }
      store_out(column, sum);
    }`,
});

function normalised(
  name: string,
  x: Tensor,
  weight: Tensor | undefined,
  bias: Tensor | undefined,
  centre: boolean,
  epsilon: number,
): Tensor {
  expectFloat(name, 'x', x);
  axisOf(name, x, -1);
  const n = x.dim(-1);
  if (weight) expectShape(name, 'weight', weight, [n], 'one factor an element of the last axis');
  if (bias) expectShape(name, 'bias', bias, [n], 'one an element of the last axis');
  const { device } = x;
  const inputs = [x, ...(weight ? [weight] : []), ...(bias ? [bias] : [])];
  const rows = n === 0 ? 0 : x.size / n;
  const spec: NormSpec = {
    centre,
    weight: weight !== undefined,
    bias: bias !== undefined,
    ...rowSpec(n, true, device.capabilities, { software: device.isSoftware }),
  };
  const outputs = apply<readonly Tensor[]>({
    name,
    inputs,
    forward: () => {
      const out = empty(device, x.shape, x.dtype);
      const statistics = empty(device, [rows, 2]);
      normRows.run(device, {
        spec,
        tensors: { x: asContiguous(x), weight: weight && asContiguous(weight), bias: bias && asContiguous(bias), out, statistics },
        uniforms: { rows, n: n / spec.width, epsilon, inverse: 1 / n },
        grid: rowGrid(rows, spec),
      });
      return [out, statistics];
    },
    saves: ([, statistics]) => [x, ...(statistics ? [statistics] : []), ...(weight ? [weight] : [])],
    backward: ([g], { saved: [source, statistics, factors], needs }) => {
      if (!g || !source || !statistics) return inputs.map(() => null);
      const [own, cotangent] = [asContiguous(source), asContiguous(g)];
      const dx = empty(device, source.shape, source.dtype);
      normBackwardRows.run(device, {
        spec,
        tensors: { x: own, g: cotangent, weight: factors && asContiguous(factors), statistics, out: dx },
        uniforms: { rows, n: n / spec.width, inverse: 1 / n },
        grid: rowGrid(rows, spec),
      });
      const gradients: (Tensor | null)[] = [dx];
      if (inputs.length > 1 && needs.slice(1).some(Boolean)) {
        const parts = Math.max(1, Math.ceil(rows / rowsAPart));
        const partial = empty(device, [parts, 2, n]);
        columnParts.run(device, {
          spec: { width: spec.width },
          tensors: { x: own, g: cotangent, statistics, parts: partial },
          uniforms: { rows, n: n / spec.width },
          grid: [Math.ceil(n / spec.width / 64), parts, 1],
        });
        const total = (which: number, like: Tensor): Tensor => {
          const out = empty(device, [n], like.dtype);
          columnSums.run(device, {
            spec: {},
            tensors: { parts: partial, out },
            uniforms: { count: parts, n, which },
            grid: [Math.ceil(n / 16)],
          });
          return out;
        };
        if (weight) gradients.push(total(0, weight));
        if (bias) gradients.push(total(1, bias));
      }
      return inputs.map((_, i) => gradients[i] ?? null);
    },
  });
  const [out, statistics] = outputs;
  statistics?.dispose();
  return out as Tensor;
}

/**
 * Root-mean-square norm over the last axis: x / sqrt(mean(x^2) + epsilon) * weight.
 * @param x [..., n], f32 or f16; statistics are f32
 * @param weight [n]; default ones
 * @param options.epsilon default 1e-6
 * @returns the shape and dtype of x; differentiable in x and weight
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function rmsNorm(x: Tensor, weight?: Tensor, options: { epsilon?: number } = {}): Tensor {
  return normalised('rmsNorm', x, weight, undefined, false, options.epsilon ?? 1e-6);
}

/**
 * Layer norm over the last axis: (x - mean) / sqrt(variance + epsilon) * weight + bias.
 * @param x [..., n], f32 or f16; statistics are f32
 * @param weight [n]; default ones
 * @param bias [n]; default zeros
 * @param options.epsilon default 1e-5
 * @returns the shape and dtype of x; differentiable in x, weight and bias
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH
 */
export function layerNorm(x: Tensor, weight?: Tensor, bias?: Tensor, options: { epsilon?: number } = {}): Tensor {
  return normalised('layerNorm', x, weight, bias, true, options.epsilon ?? 1e-5);
}
