import { apply, withoutTape } from '../autodiff/tape.js';
import { type DType, isFloat } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { unroll } from '../kernel/modules.js';
import { laneBuiltins, type LaneForm, laneForm, lanesFor, type LaneScalar } from '../kernel/wgsl/lanes.js';
import { copyContiguous, mergeAxes, stridedOffset } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { axisOf, product } from './check.js';

export interface CumsumOptions {
  /** Sums from the end. Default false. */
  reverse?: boolean;
  /** Element i excludes its own value. Default false. */
  exclusive?: boolean;
}

type ScanSpec = {
  type: LaneScalar;
  /** Results, or only the total of each chunk. */
  writes: 'sums' | 'totals';
  /** Chunks start from given sums. */
  carry: boolean;
  width: number;
  lanes: number;
  form: LaneForm;
};

const zeroOf: Record<LaneScalar, string> = { f32: '0.0', i32: '0i', u32: '0u' };

const scanBindings = {
  x: read<ScanSpec>('any', { width: (s) => s.width }),
  starts: read<ScanSpec>('any', { when: (s) => s.carry }),
  out: write<ScanSpec>('any', { width: (s) => (s.writes === 'sums' ? s.width : 1) }),
};

// Running sums of rows: `lanes` lanes a row with 4 elements each, tile after tile; rows may be cut into chunks (one a lane group)
// that start from the sums of those before.
// tile    256 / lanes rows x 4 lanes elements, 2 KiB of workgroup memory
// bytes   reads and writes each element once; chunked rows are read twice
// limits  up to 8 row axes of any strides; vectors where rows start at multiples of 4 elements
// source  Merrill, Garland 2016, section 3 (reduce-then-scan)
const scanRows = defineKernel({
  name: 'cumsum-rows',
  bindings: scanBindings,
  uniforms: {
    shape: 'u32x8',
    strides: 'u32x8',
    rank: 'u32',
    rows: 'u32',
    n: 'u32',
    chunk: 'u32',
    chunks: 'u32',
    reverse: 'u32',
    exclusive: 'u32',
  },
  modules: [stridedOffset],
  tier: ({ form }: ScanSpec) => (form === 'memory' ? 'baseline' : 'subgroups'),
  forms: ['baseline', 'subgroups'],
  wgsl: (spec: ScanSpec) => {
    const { type, lanes, width } = spec;
    const zero = zeroOf[type];
    const load =
      width === 4
        ? 'if (live && at < end) { let w = load_x(start / 4u + item); v = select(w, w.wzyx, back); }'
        : unroll(4, (k) => `if (live && at + ${k}u < end) { v[${k}] = load_x(start + select(at + ${k}u, last - at - ${k}u, back)); }`);
    const store =
      width === 4
        ? 'if (live && at < end) { store_out(row * uniforms.n / 4u + item, select(y, y.wzyx, back)); }'
        : unroll(
            4,
            (k) => `if (live && at + ${k}u < end) { store_out(row * uniforms.n + select(at + ${k}u, last - at - ${k}u, back), y[${k}]); }`,
          );
    // lanes join in blocks (of 16, subgroups, or a row that lies inside one), then the blocks of a row
    const byMemory = spec.form === 'memory';
    const blocks: Record<LaneForm, string> = { memory: `${Math.min(16, lanes)}u`, shuffle: `${lanes}u`, subgroups: 'subgroupSize' };
    const block = blocks[spec.form];
    const inBlock = inBlockText(spec, block, zero);
    return `
    ${byMemory ? `var<workgroup> sums: array<${type}, 256>;` : ''}
    var<workgroup> blockSums: array<${type}, 256>;
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32${laneBuiltins(spec.form)}) {
      let l = lane % ${lanes}u;
      let index = workgroupIndex(group, groups) * ${256 / lanes}u + lane / ${lanes}u;
      let live = index < uniforms.rows * uniforms.chunks;
      let row = index / uniforms.chunks;
      let part = index % uniforms.chunks;
      let start = stridedOffset(row, uniforms.rank, uniforms.shape, uniforms.strides);
      let begin = part * uniforms.chunk;
      let end = min(begin + uniforms.chunk, uniforms.n);
      let back = uniforms.reverse == 1u;
      let last = uniforms.n - 1u;
      var carry = ${zero};
      ${spec.carry ? 'if (live) { carry = load_starts(index); }' : ''}
      let tiles = (uniforms.chunk + ${4 * lanes - 1}u) / ${4 * lanes}u;
      for (var t = 0u; t < tiles; t++) {
        let at = begin + (t * ${lanes}u + l) * 4u;
        ${width === 4 ? 'let item = select(at, last - 3u - at, back) / 4u;' : ''}
        var v = vec4<${type}>(${zero});
        ${load}
        let p = vec4(v.x, v.x + v.y, v.x + v.y + v.z, v.x + v.y + v.z + v.w);
        ${inBlock}
        if (l % ${block} == ${block} - 1u) { blockSums[lane / ${block}] = before + p.w; }
        workgroupBarrier();
        let first = (lane - l) / ${block};
        var total = ${zero};
        let blocks = min(first + ${lanes}u / ${block}, 256u);
        for (var i = first; i < blocks; i++) {
          if (i == lane / ${block}) { before += total; }
          total += blockSums[i];
        }
        let base = carry + before;
        ${spec.writes === 'sums' ? `let y = base + select(p, vec4(${zero}, p.xyz), uniforms.exclusive == 1u);\n        ${store}` : ''}
        carry += total;
        ${byMemory ? '' : 'workgroupBarrier();'}
      }
      ${spec.writes === 'totals' ? 'if (live && l == 0u) { store_out(index, carry); }' : ''}
    }`;
  },
});

/** `before`: the sum of the lanes of a block before this one. */
function inBlockText({ form, lanes }: ScanSpec, block: string, zero: string): string {
  if (form === 'subgroups') return 'var before = subgroupExclusiveAdd(p.w);';
  if (form === 'memory') {
    return `sums[lane] = p.w;
        workgroupBarrier();
        var before = ${zero};
        for (var i = lane - l % ${block}; i < lane; i++) { before += sums[i]; }`;
  }
  const steps: number[] = [];
  for (let step = 1; step < lanes; step *= 2) steps.push(step);
  const up = (x: string, step: number): string => `select(${zero}, subgroupShuffleUp(${x}, ${step}u), l >= ${step}u)`;
  return `var upTo = p.w;
        ${steps.map((step) => `upTo += ${up('upTo', step)};`).join('\n        ')}
        var before = ${lanes === 1 ? zero : up('upTo', 1)};`;
}

// Running sums along an axis that is not the last: a lane a column (or four), four rows in flight.
// tile    256 columns of `width` elements
// bytes   reads and writes each element once; chunked columns are read twice
// limits  up to 8 outer axes of any strides, columns contiguous
const scanColumns = defineKernel({
  name: 'cumsum-columns',
  bindings: {
    x: read<ScanSpec>('any', { width: (s) => s.width }),
    starts: read<ScanSpec>('any', { width: (s) => s.width, when: (s) => s.carry }),
    out: write<ScanSpec>('any', { width: (s) => s.width }),
  },
  uniforms: {
    shape: 'u32x8',
    strides: 'u32x8',
    rank: 'u32',
    columns: 'u32',
    inner: 'u32',
    stride: 'u32',
    n: 'u32',
    chunk: 'u32',
    chunks: 'u32',
    reverse: 'u32',
    exclusive: 'u32',
  },
  modules: [stridedOffset],
  wgsl: (spec: ScanSpec) => {
    const { type, width, lanes: flight } = spec;
    const item = width === 4 ? `vec4<${type}>` : type;
    const at = (j: string): string => `select(${j}, uniforms.n - 1u - (${j}), uniforms.reverse == 1u)`;
    const add = (j: string, v: string): string => `
        ${spec.writes === 'sums' ? `store_out((block * uniforms.n + ${at(j)}) * uniforms.inner + column, select(sum + ${v}, sum, uniforms.exclusive == 1u));` : ''}
        sum += ${v};`;
    const load = (j: string): string => `load_x(start + (${at(j)}) * uniforms.stride)`;
    return `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let index = workgroupIndex(group, groups) * 256u + lane;
      if (index >= uniforms.columns) { return; }
      // neighbouring lanes take neighbouring columns of one chunk
      let column = index % uniforms.inner;
      let part = (index / uniforms.inner) % uniforms.chunks;
      let block = index / uniforms.inner / uniforms.chunks;
      let start = stridedOffset(block, uniforms.rank, uniforms.shape, uniforms.strides)${width === 4 ? ' / 4u' : ''} + column;
      let end = min((part + 1u) * uniforms.chunk, uniforms.n);
      var sum = ${item}(${zeroOf[type]});
      ${spec.carry ? 'sum = load_starts(index);' : ''}
      var j = part * uniforms.chunk;
      ${
        flight > 1
          ? `for (; j + ${flight - 1}u < end; j += ${flight}u) {
        ${unroll(flight, (i) => `let v${i} = ${load(`j + ${i}u`)};`)}
        ${unroll(flight, (i) => add(`j + ${i}u`, `v${i}`))}
      }`
          : ''
      }
      for (; j < end; j++) { let v = ${load('j')}; ${add('j', 'v')} }
      ${spec.writes === 'totals' ? 'store_out(index, sum);' : ''}
    }`;
  },
});

/** How an axis is cut; pure, so that it is tested without a device. */
export interface ScanPlan {
  /** Elements a chunk; a multiple of 4 where there are several. */
  chunk: number;
  chunks: number;
}

/** @param units workgroups (rows) or lanes (columns) that run side by side without chunks; @param enough that fill a large GPU */
export function planScan(n: number, units: number, enough: number, smallest: number): ScanPlan {
  const wanted = Math.min(Math.floor(n / smallest), Math.floor(enough / Math.max(1, units)));
  if (wanted < 2) return { chunk: n, chunks: 1 };
  const chunk = Math.ceil(n / wanted / 4) * 4;
  return { chunk, chunks: Math.ceil(n / chunk) };
}

/**
 * Running sums along an axis.
 * @param x any dtype; f16 is summed in f32
 * @param axis default -1
 * @returns the shape and dtype of x (u8: u32); element i is the sum of elements up to i
 * @throws HeedError SHAPE_MISMATCH when x has no such axis
 */
export function cumsum(x: Tensor, axis = -1, options: CumsumOptions = {}): Tensor {
  const at = axisOf('cumsum', x, axis);
  const { reverse = false, exclusive = false } = options;
  const forward = (): Tensor => scanned(x, at, { reverse, exclusive });
  if (!isFloat(x.dtype)) return withoutTape(() => apply({ name: 'cumsum', inputs: [x], forward }));
  return apply({
    name: 'cumsum',
    inputs: [x],
    forward,
    backward: ([g]) => [g ? scanned(g, at, { reverse: !reverse, exclusive }) : null],
  });
}

/** Running sums without a gradient; intermediates go to the caller's scope. */
export function scanned(x: Tensor, axis: number, options: Required<CumsumOptions>): Tensor {
  const type: LaneScalar = isFloat(x.dtype) ? 'f32' : x.dtype === 'i32' ? 'i32' : 'u32';
  const dtype: DType = x.dtype === 'u8' ? 'u32' : x.dtype;
  const inner = mergeAxes(x.shape.slice(axis + 1), x.strides.slice(axis + 1));
  const plainInner = inner.shape.length === 1 && (inner.shape[0] === 1 || inner.strides[0] === 1);
  const source = plainInner ? x : copyContiguous(x);
  const out = empty(x.device, x.shape, dtype);
  if (out.size === 0) return out;
  const rows = product(x.shape, axis + 1) === 1 && source.strides[axis] === 1;
  (rows ? runRows : runColumns)(source, axis, out, type, options);
  return out;
}

const flags = ({ reverse, exclusive }: Required<CumsumOptions>): { reverse: number; exclusive: number } => ({
  reverse: Number(reverse),
  exclusive: Number(exclusive),
});

function runRows(x: Tensor, axis: number, out: Tensor, type: LaneScalar, options: Required<CumsumOptions>): void {
  const n = x.dim(axis);
  const outer = mergeAxes(x.shape.slice(0, axis), x.strides.slice(0, axis));
  const rows = product(x.shape, 0, axis);
  const aligned = n % 4 === 0 && x.offset % 4 === 0 && (rows === 1 || outer.strides.every((s) => s % 4 === 0));
  const lanes = lanesFor(Math.ceil(n / 4));
  const form = laneForm(lanes, x.device.capabilities);
  const plan = planScan(n, Math.ceil(rows / (256 / lanes)), 1024, 4096);
  const spec: ScanSpec = { type, writes: 'sums', carry: false, width: aligned ? 4 : 1, lanes, form };
  const uniforms = { shape: outer.shape, strides: outer.strides, rank: outer.shape.length, rows, n, ...plan, ...flags(options) };
  const grid = [Math.ceil((rows * plan.chunks) / (256 / lanes))];
  let starts: Tensor | undefined;
  if (plan.chunks > 1) {
    const totals = empty(x.device, [rows, plan.chunks], type);
    scanRows.run(x.device, { spec: { ...spec, writes: 'totals' }, tensors: { x, out: totals }, uniforms, grid });
    starts = scanned(totals, 1, { reverse: false, exclusive: true });
  }
  scanRows.run(x.device, { spec: { ...spec, carry: starts !== undefined }, tensors: { x, starts, out }, uniforms, grid });
}

function runColumns(x: Tensor, axis: number, out: Tensor, type: LaneScalar, options: Required<CumsumOptions>): void {
  const n = x.dim(axis);
  const outer = mergeAxes(x.shape.slice(0, axis), x.strides.slice(0, axis));
  const elements = product(x.shape, axis + 1);
  const blocks = product(x.shape, 0, axis);
  const step = x.strides[axis] ?? 1;
  const aligned =
    elements % 4 === 0 && x.offset % 4 === 0 && (n === 1 || step % 4 === 0) && (blocks === 1 || outer.strides.every((s) => s % 4 === 0));
  const width = aligned && !x.device.isSoftware ? 4 : 1;
  const inner = elements / width;
  const plan = planScan(n, blocks * inner, 1 << 16, 32);
  // `lanes` are the rows in flight; software drivers compile short texts fast
  const spec: ScanSpec = { type, writes: 'sums', carry: false, width, lanes: x.device.isSoftware ? 1 : 4, form: 'memory' };
  const columns = blocks * plan.chunks * inner;
  const stride = Math.floor(step / width);
  const uniforms = {
    shape: outer.shape,
    strides: outer.strides,
    rank: outer.shape.length,
    columns,
    inner,
    stride,
    n,
    ...plan,
    ...flags(options),
  };
  const grid = [Math.ceil(columns / 256)];
  let starts: Tensor | undefined;
  if (plan.chunks > 1) {
    const totals = empty(x.device, [blocks, plan.chunks, elements], type);
    scanColumns.run(x.device, { spec: { ...spec, writes: 'totals' }, tensors: { x, out: totals }, uniforms, grid });
    starts = scanned(totals, 1, { reverse: false, exclusive: true });
  }
  scanColumns.run(x.device, { spec: { ...spec, carry: starts !== undefined }, tensors: { x, starts, out }, uniforms, grid });
}
