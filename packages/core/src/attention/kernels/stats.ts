import type { Device } from '../../device/device.js';
import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { range } from '../../kernel/modules.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';
import { log2e } from './common.js';

type StatsSpec = { valueDim: number; dOut: boolean; dLse: boolean; width: 1 | 4 };

/** Elements that the rows of contiguous tensors are loaded by. */
function rowWidth(dim: number, tensors: readonly (Tensor | undefined)[]): 1 | 4 {
  return dim % 4 === 0 && tensors.every((t) => !t || t.offset % 4 === 0) ? 4 : 1;
}

// What the backward needs of each query row: logsumexp in base 2, and delta = sum_d out dOut - dLse.
// tile    eight lanes a row, 32 rows a workgroup
// bytes   reads out and dOut once, writes 8 a row
// limits  a row that sees nothing gets the logsumexp 1e30, so that exp2(score - it) is 0 wherever it is recomputed
// source  Dao et al. 2022 (FlashAttention), appendix B.2; dLse enters because d lse / d score = P
const stats = defineKernel({
  name: 'attention-stats',
  bindings: {
    out: read<StatsSpec>('float', { width: (s) => s.width }),
    lse: read<StatsSpec>('f32', { raw: 'u32' }),
    dOut: read<StatsSpec>('float', { width: (s) => s.width, when: (s) => s.dOut }),
    dLse: read<StatsSpec>('f32', { when: (s) => s.dLse }),
    stats: write<StatsSpec>('f32', { raw: 'vec2f' }),
  },
  uniforms: { rows: 'u32' },
  wgsl: ({ valueDim, dOut, dLse, width }: StatsSpec) => {
    const items = valueDim / width;
    const pair = `load_out(row * ${items}u + d)`;
    const other = `load_dOut(row * ${items}u + d)`;
    return `
    var<workgroup> partial: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let row = workgroupIndex(group, groups) * 32u + lane / 8u;
      let part = lane % 8u;
      var sum = 0.0;
      ${dOut ? `if (row < uniforms.rows) { for (var d = part; d < ${items}u; d += 8u) { sum += ${width === 4 ? `dot(${pair}, ${other})` : `${pair} * ${other}`}; } }` : ''}
      partial[lane] = sum;
      for (var half = 4u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (part < half) { partial[lane] += partial[lane + half]; }
      }
      if (part > 0u || row >= uniforms.rows) { return; }
      let bits = lse[base_lse() + row];
      let delta = partial[lane]${dLse ? ' - load_dLse(row)' : ''};
      let dead = bits == 0xff800000u;
      stats[base_stats() + row] = select(vec2f(bitcast<f32>(bits) * ${log2e}, delta), vec2f(1e30, 0.0), dead);
    }`;
  },
});

/** `stats` f32 [rows, 2] from contiguous tensors; absent cotangents count as zero. */
export function runStats(
  device: Device,
  tensors: { out: Tensor; lse: Tensor; dOut: Tensor | undefined; dLse: Tensor | undefined; stats: Tensor },
): void {
  const { out, lse, dOut, dLse } = tensors;
  const valueDim = out.dim(-1);
  stats.run(device, {
    spec: { valueDim, dOut: dOut !== undefined, dLse: dLse !== undefined, width: rowWidth(valueDim, [out, dOut]) },
    tensors,
    uniforms: { rows: lse.size },
    grid: [Math.ceil(lse.size / 32)],
  });
}

type UnitSpec = { last: boolean; width: 1 | 4; values: 1 | 4 };

// A power of two that score gradients are counted in, and its inverse, behind the row statistics: no |dS| reaches 2^15 of it, so that
// f16 holds all of them, and small ones keep their digits. |dS| = P |dP - delta| is at most the largest |dP| and the largest |delta|
// together, and |dP| at most valueDim times the largest |dOut| times the largest |v|.
// tile    256 lanes a workgroup, which writes the largest values that it met; a second dispatch of one workgroup ends it
// bytes   reads dOut and v once, 8 a row
const unit = defineKernel({
  name: 'attention-unit',
  bindings: {
    dOut: read<UnitSpec>('float', { width: (s) => s.width }),
    v: read<UnitSpec>('float', { width: (s) => s.values }),
    delta: read<UnitSpec>('f32', { raw: (s) => (s.last ? 'f32' : 'vec2f') }),
    out: write<UnitSpec>('f32', { raw: (s) => (s.last ? 'vec2f' : 'f32') }),
  },
  uniforms: { items: 'u32', valueItems: 'u32', rows: 'u32', valueDim: 'f32' },
  wgsl: ({ last, width, values }: UnitSpec) => {
    const largest = (part: string, items: string, value: string, n: 1 | 4): string => `{
      var top = ${n === 4 ? 'vec4f()' : '0.0'};
      for (var i = group.x * 256u + lane; i < uniforms.${items}; i += groups.x * 256u) { top = max(top, abs(${value})); }
      largest.${part} = ${n === 4 ? 'max(max(top.x, top.y), max(top.z, top.w))' : 'top'}; }`;
    return `
    var<workgroup> partial: array<vec4f, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      var largest = vec4f();
      ${largest('x', 'items', 'load_dOut(i)', width)}
      ${largest('y', 'valueItems', 'load_v(i)', values)}
      ${largest('z', last ? 'items' : 'rows', `delta[base_delta() + i]${last ? '' : '.y'}`, 1)}
      partial[lane] = largest;
      for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) { partial[lane] = max(partial[lane], partial[lane + half]); }
      }
      if (lane == 0u) {
        let top = min(partial[0], vec4f(1e15));
        ${
          last
            ? `let exponent = ceil(log2(clamp(top.x * top.y * uniforms.valueDim + top.z, 1e-30, 1e30))) - 15.0;
        out[base_out() + uniforms.rows] = vec2f(exp2(exponent), exp2(-exponent));`
            : range(3)
                .map((i) => `out[base_out() + ${i}u * groups.x + group.x] = top[${i}];`)
                .join(' ')
        }
      }
    }`;
  },
});

/** Writes the unit behind the statistics of `rows` rows; dOut and v are contiguous. */
export function runUnit(device: Device, dOut: Tensor, v: Tensor, stats: Tensor, rows: number): void {
  const valueDim = dOut.dim(-1);
  const [width, values] = [rowWidth(valueDim, [dOut]), rowWidth(valueDim, [v])];
  const [items, valueItems] = [dOut.size / width, v.size / values];
  const workgroups = Math.max(1, Math.min(1024, Math.ceil(Math.max(items, valueItems) / 1024)));
  const tops = empty(device, [3, workgroups], 'f32');
  const part = (row: number): Tensor => tops.view({ shape: [workgroups], strides: [1], offset: row * workgroups });
  unit.run(device, {
    spec: { last: false, width, values },
    tensors: { dOut, v, delta: stats, out: tops },
    uniforms: { items, valueItems, rows, valueDim },
    grid: [workgroups],
  });
  unit.run(device, {
    spec: { last: true, width: 1, values: 1 },
    tensors: { dOut: part(0), v: part(1), delta: part(2), out: stats },
    uniforms: { items: workgroups, valueItems: workgroups, rows, valueDim },
    grid: [1],
  });
}

// Gradient of the learned sink logits: dSink_h = - sum over rows of exp(sink_h - lse) delta.
// tile    one head a workgroup, 256 lanes over its rows, tree sum in a fixed order
// bytes   reads 8 a row
// limits  rows with a sink always have a finite logsumexp
const sinkGradient = defineKernel({
  name: 'attention-sink-gradient',
  bindings: { stats: read('f32', { raw: 'vec2f' }), sinks: read('float'), dSinks: write('float') },
  uniforms: { rows: 'u32', heads: 'u32' },
  wgsl: () => `
    var<workgroup> partial: array<f32, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let head = group.x;
      let sink = load_sinks(head) * ${log2e};
      var sum = 0.0;
      for (var row = lane; row < uniforms.rows; row += 256u) {
        let stat = stats[base_stats() + row * uniforms.heads + head];
        sum -= exp2(sink - stat.x) * stat.y;
      }
      partial[lane] = sum;
      for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) { partial[lane] += partial[lane + half]; }
      }
      if (lane == 0u) { store_dSinks(head, partial[0]); }
    }`,
});

/** @param tensors stats [batch x queries, heads, 2], sinks and dSinks [heads] */
export function runSinkGradient(device: Device, tensors: { stats: Tensor; sinks: Tensor; dSinks: Tensor }, rows: number): void {
  const heads = tensors.sinks.size;
  sinkGradient.run(device, { spec: {}, tensors, uniforms: { rows, heads }, grid: [heads] });
}

// Sums slices: out[b, h, i] = sum over parts, and over the batch entries and heads that share an output row.
// tile    one output element a lane, 256 lanes; the order of the sum is fixed
// bytes   reads every partial once, writes every output once
const sumParts = defineKernel({
  name: 'attention-sum-parts',
  bindings: { parts: read('f32'), out: write('float') },
  uniforms: {
    size: 'u32',
    /** Elements of one part, and parts. */
    stride: 'u32',
    parts: 'u32',
    /** Elements a row; rows summed into one and their distance; rows apart of outputs within a batch entry, and of batch entries. */
    columns: 'u32',
    heads: 'u32',
    headRows: 'u32',
    batches: 'u32',
    batchRows: 'u32',
    outHeads: 'u32',
  },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let column = i % uniforms.columns;
      let row = i / uniforms.columns;
      let first = row / uniforms.outHeads * uniforms.batchRows + row % uniforms.outHeads * uniforms.headRows;
      var sum = 0.0;
      for (var part = 0u; part < uniforms.parts; part++) {
        for (var b = 0u; b < uniforms.batches; b++) {
          for (var h = 0u; h < uniforms.heads; h++) {
            sum += load_parts(part * uniforms.stride + (first + b * uniforms.batchRows + h) * uniforms.columns + column);
          }
        }
      }
      store_out(i, sum);
    }`,
});

/** out = sum of `count` parts that lie `stride` elements apart. */
export function runSumParts(device: Device, parts: Tensor, out: Tensor, count: number, stride: number): void {
  const { size } = out;
  const uniforms = { size, stride, parts: count, columns: Math.max(1, size), heads: 1, headRows: 0, batches: 1, batchRows: 0, outHeads: 1 };
  sumParts.run(device, { spec: {}, tensors: { parts, out }, uniforms, grid: [Math.ceil(size / 256)] });
}

/** Sums f32 [parts, batch, heads, columns] to [outBatch, outHeads, columns], where an output row gathers neighbouring heads. */
export function runSumRows(
  device: Device,
  parts: Tensor,
  out: Tensor,
  shape: { parts: number; stride: number; batch: number; heads: number; columns: number; outBatch: number; outHeads: number },
): void {
  const { batch, heads, columns, outBatch, outHeads } = shape;
  const uniforms = {
    size: out.size,
    stride: shape.stride,
    parts: shape.parts,
    columns,
    heads: heads / outHeads,
    headRows: heads / outHeads,
    batches: batch / outBatch,
    batchRows: heads,
    outHeads,
  };
  sumParts.run(device, { spec: {}, tensors: { parts, out }, uniforms, grid: [Math.ceil(out.size / 256)] });
}

// Sums parts into rows of a larger array: out[to + row x toRow + i] = sum over parts of parts[part x stride + from + row x width + i].
// tile    one element a lane, 256 lanes
// bytes   reads every partial once, writes every element once
const placeParts = defineKernel({
  name: 'attention-place-parts',
  bindings: { parts: read('f32'), out: write('f32') },
  uniforms: { size: 'u32', parts: 'u32', stride: 'u32', width: 'u32', firstIn: 'u32', firstOut: 'u32', toRow: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      var sum = 0.0;
      for (var part = 0u; part < uniforms.parts; part++) { sum += load_parts(part * uniforms.stride + uniforms.firstIn + i); }
      store_out(uniforms.firstOut + i / uniforms.width * uniforms.toRow + i % uniforms.width, sum);
    }`,
});

/** Sums `rows` rows of `width` elements, `toRow` apart in the f32 array `out`. */
export function runPlaceParts(
  device: Device,
  parts: Tensor,
  out: Tensor,
  shape: { parts: number; stride: number; rows: number; width: number; from: number; to: number; toRow: number },
): void {
  const { rows, width, from, to, ...rest } = shape;
  const size = rows * width;
  const uniforms = { size, ...rest, width, firstIn: from, firstOut: to };
  placeParts.run(device, { spec: {}, tensors: { parts, out }, uniforms, grid: [Math.ceil(size / 256)] });
}
