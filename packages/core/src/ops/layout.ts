import { dtypeBytes, isFloat } from '../dtype.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel, type KernelContext } from '../kernel/define.js';
import { typedExpr } from '../kernel/expr/index.js';
import { copyContiguous, mergeAxes } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import { contiguousStrides, type Shape, type Tensor } from '../tensor/tensor.js';
import { mergeJointly, planPointwise } from './broadcast.js';
import { product } from './check.js';
import { fusedKernel, type FusedKernel } from './pointwise-kernel.js';

// Layout changes without gradients, views where possible: what the ops in shape.ts and join.ts, and gradients, are made of.

type TransposeSpec = {
  /** Elements of 2 bytes go in pairs: both contiguous axes have even lengths, and all rows start at even places. */
  pairs: boolean;
};

// Copies a permuted tensor through tiles, so that both reads and writes run along contiguous axes.
// tile    32 words along the rows (of x) x 32 columns; words are elements, or pairs of halves; 256 lanes, 4.2 KB of workgroup memory
//         (33 words a row against bank conflicts). Tiles of 64 columns left room for too few workgroups: 1.6 TB/s against 2.0
// bytes   reads and writes each element once
// limits  the contiguous axis of the input and that of the output differ; up to 4 further axes
const transposeTiles = defineKernel({
  name: 'transpose-tiles',
  bindings: {
    x: read<TransposeSpec>('any', { raw: ({ pairs }) => (pairs ? 'u32' : undefined) }),
    out: write<TransposeSpec>('any', { raw: ({ pairs }) => (pairs ? 'u32' : undefined) }),
  },
  uniforms: {
    shape: 'u32x8',
    xStrides: 'u32x8',
    outStrides: 'u32x8',
    rank: 'u32',
    batch: 'u32',
    rows: 'u32',
    rowStride: 'u32',
    columns: 'u32',
    columnStride: 'u32',
  },
  wgsl: ({ pairs }: TransposeSpec, { dtypes }: KernelContext) => {
    const dtype = dtypes['x'] ?? 'f32';
    const type = pairs ? 'u32' : isFloat(dtype) ? 'f32' : dtype === 'i32' ? 'i32' : 'u32';
    const tileRows = pairs ? 64 : 32;
    // rows are contiguous in x, columns in out; a word of x holds two rows of a column, a word of out two columns of a row
    const load = pairs
      ? `let row = row0 / 2u + lane.x;
        if (live && row < uniforms.rows / 2u && column < uniforms.columns) {
          tile[(lane.y + k) * 33u + lane.x] = x[base_x() + readAt / 2u + row + column * (uniforms.columnStride / 2u)];
        }`
      : `let row = row0 + lane.x;
        if (live && row < uniforms.rows && column < uniforms.columns) {
          tile[(lane.y + k) * 33u + lane.x] = load_x(readAt + row + column * uniforms.columnStride);
        }`;
    const store = pairs
      ? `for (var k = 0u; k < 32u; k += 16u) {
        // half of the lanes go along the 16 words of a row of out
        let pair = 2u * lane.y + lane.x / 16u + k;
        let word = lane.x % 16u;
        let row = row0 + 2u * pair;
        let column = column0 / 2u + word;
        if (live && row < uniforms.rows && column < uniforms.columns / 2u) {
          let left = tile[(2u * word) * 33u + pair];
          let right = tile[(2u * word + 1u) * 33u + pair];
          let at = base_out() + writeAt / 2u + row * (uniforms.rowStride / 2u) + column;
          out[at] = (left & 0xffffu) | (right << 16u);
          out[at + uniforms.rowStride / 2u] = (left >> 16u) | (right & 0xffff0000u);
        }
      }`
      : `for (var k = 0u; k < 32u; k += 8u) {
        let row = row0 + lane.y + k;
        let column = column0 + lane.x;
        if (live && row < uniforms.rows && column < uniforms.columns) {
          store_out(writeAt + row * uniforms.rowStride + column, tile[lane.x * 33u + lane.y + k]);
        }
      }`;
    return `
    var<workgroup> tile: array<${type}, ${32 * 33}>;
    @compute @workgroup_size(32, 8)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_id) lane: vec3u) {
      let tileColumns = (uniforms.columns + 31u) / 32u;
      let tileRows = (uniforms.rows + ${tileRows - 1}u) / ${tileRows}u;
      let index = workgroupIndex(group, groups);
      let column0 = (index % tileColumns) * 32u;
      let row0 = ((index / tileColumns) % tileRows) * ${tileRows}u;
      let block = index / tileColumns / tileRows;
      let live = block < uniforms.batch;
      var rest = block;
      var readAt = 0u;
      var writeAt = 0u;
      for (var axis = uniforms.rank; axis > 0u; axis--) {
        let a = (axis - 1u) >> 2u;
        let c = (axis - 1u) & 3u;
        let n = uniforms.shape[a][c];
        readAt += (rest % n) * uniforms.xStrides[a][c];
        writeAt += (rest % n) * uniforms.outStrides[a][c];
        rest /= n;
      }
      for (var k = 0u; k < 32u; k += 8u) {
        let column = column0 + lane.y + k;
        ${load}
      }
      workgroupBarrier();
      ${store}
    }`;
  },
});

// Copies with a start and strides that may run backwards (they wrap around in 32 bits).
// tile    1 element a lane, 256 lanes
// bytes   reads and writes each element once
const copySigned = defineKernel({
  name: 'copy-signed-strides',
  bindings: { x: read('any'), out: write('any') },
  uniforms: { shape: 'u32x8', strides: 'u32x8', rank: 'u32', start: 'u32', size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      var rest = i;
      var at = uniforms.start;
      for (var axis = uniforms.rank; axis > 0u; axis--) {
        let a = (axis - 1u) >> 2u;
        let c = (axis - 1u) & 3u;
        let n = uniforms.shape[a][c];
        at += (rest % n) * uniforms.strides[a][c];
        rest /= n;
      }
      store_out(i, load_x(at));
    }`,
});

/** A contiguous tensor of elements at `start + index . strides` of x, counted from its offset; strides may be negative. */
export function gatherSigned(x: Tensor, shape: Shape, strides: Shape, start: number): Tensor {
  const out = empty(x.device, shape, x.dtype);
  copySigned.run(x.device, {
    spec: {},
    tensors: { x, out },
    uniforms: { shape, strides: strides.map((s) => s >>> 0), rank: shape.length, start, size: out.size },
    grid: [Math.ceil(out.size / 256)],
  });
  return out;
}

/** Strides that show a tensor in another shape without a copy, or undefined when there are none. */
export function viewStrides(shape: Shape, strides: Shape, target: Shape): number[] | undefined {
  const blocks = mergeAxes(shape, strides);
  const out = new Array<number>(target.length).fill(1);
  let block = 0;
  let rest = blocks.shape[0] ?? 1;
  for (let axis = 0; axis < target.length; axis++) {
    const n = target[axis] ?? 1;
    if (n === 1) continue;
    if (rest === 1) rest = blocks.shape[++block] ?? 1;
    if (rest % n !== 0) return undefined;
    rest /= n;
    out[axis] = rest * (blocks.strides[block] ?? 1);
  }
  const last = target.length - 1;
  return (target[last] ?? 1) === 1 || out[last] === 1 ? out : undefined;
}

/** x in another shape of the same size: a view where strides allow, else a copy. */
export function reshaped(x: Tensor, shape: Shape): Tensor {
  if (x.contiguous || x.size === 0) return x.view({ shape, strides: contiguousStrides(shape) });
  const strides = viewStrides(x.shape, x.strides, shape);
  if (strides) return x.view({ shape, strides });
  return copyContiguous(x).view({ shape, strides: contiguousStrides(shape) });
}

/** x with axes in another order: a view where the last axis stays contiguous, else a copy. */
export function permuted(x: Tensor, order: readonly number[]): Tensor {
  const shape = order.map((axis) => x.shape[axis] ?? 1);
  const strides = order.map((axis) => x.strides[axis] ?? 0);
  const last = order.length - 1;
  if (order.length === 0 || x.size === 0) return x.view({ shape, strides: contiguousStrides(shape) });
  if (shape[last] === 1) strides[last] = 1;
  if (strides[last] === 1) return x.view({ shape, strides });
  return transposeCopy(x, shape, strides);
}

/** A contiguous copy of the elements of x at these strides, none of which need be 1 on the last axis. */
function transposeCopy(x: Tensor, shape: Shape, strides: Shape): Tensor {
  const merged = mergeJointly(shape, [contiguousStrides(shape), strides]);
  const [outStrides = [], xStrides = []] = merged.strides;
  const last = merged.shape.length - 1;
  const inner = xStrides.indexOf(1);
  if (inner < 0 || inner === last || (merged.shape[inner] ?? 1) < 4 || (merged.shape[last] ?? 1) < 4)
    return gatherSigned(x, shape, strides, 0);
  const out = empty(x.device, shape, x.dtype);
  const others = merged.shape.map((_, axis) => axis).filter((axis) => axis !== inner && axis !== last);
  const pick = (list: readonly number[]): number[] => others.map((axis) => list[axis] ?? 0);
  const batch = product(pick(merged.shape));
  const rows = merged.shape[inner] ?? 1;
  const columns = merged.shape[last] ?? 1;
  const even = [rows, columns, x.offset, xStrides[last] ?? 1, outStrides[inner] ?? 1, ...pick(xStrides), ...pick(outStrides)];
  const pairs = dtypeBytes(x.dtype) === 2 && even.every((n) => n % 2 === 0);
  transposeTiles.run(x.device, {
    spec: { pairs },
    tensors: { x, out },
    uniforms: {
      shape: pick(merged.shape),
      xStrides: pick(xStrides),
      outStrides: pick(outStrides),
      rank: others.length,
      batch,
      rows,
      rowStride: outStrides[inner] ?? 1,
      columns,
      columnStride: xStrides[last] ?? 1,
    },
    grid: [Math.ceil(columns / 32) * Math.ceil(rows / (pairs ? 64 : 32)) * batch],
  });
  return out;
}

/** x stretched to a shape that it broadcasts to: a view with strides of 0, or a copy where the last axis stretches. */
export function expanded(x: Tensor, shape: Shape): Tensor {
  const lead = shape.length - x.rank;
  const last = shape.length - 1;
  const stretched = (axis: number): boolean => axis < lead || ((x.shape[axis - lead] ?? 1) === 1 && (shape[axis] ?? 1) !== 1);
  if (shape.length === 0 || !stretched(last) || shape[last] === 1) {
    const strides = shape.map((_, axis) => (stretched(axis) ? 0 : (x.strides[axis - lead] ?? 0)));
    if (shape.length > 0) strides[last] = 1;
    return x.view({ shape, strides });
  }
  return copyExpanded(x, shape);
}

const copies: Map<string, FusedKernel> = new Map();

/** A contiguous copy of x stretched to a shape, in vectors of 4. */
function copyExpanded(x: Tensor, shape: Shape): Tensor {
  const type = isFloat(x.dtype) ? 'f32' : x.dtype === 'i32' ? 'i32' : 'u32';
  let copy = copies.get(type);
  if (!copy) {
    const { inputs, body } = typedExpr([type], (v) => v);
    copies.set(type, (copy = fusedKernel({ name: 'copy', inputs, bodies: [body] })));
  }
  const out = empty(x.device, shape, x.dtype);
  copy.run(x.device, planPointwise(shape, [x]), [x], [out]);
  return out;
}
