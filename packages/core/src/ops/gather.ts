import { apply } from '../autodiff/tape.js';
import type { FloatDType } from '../dtype.js';
import { isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { axisOf, expectDType, expectFloat, product } from './check.js';
import { gatherRowsOf } from './gather-rows.js';
import { scatterSums } from './scatter.js';

/**
 * Rows of x along axis 0 by index: out[i] = x[index[i]].
 * @param x [rows, ...], any dtype
 * @param index u32 of any shape, every one below rows
 * @returns [...index shape, ...row shape]; differentiable in x (gradients of rows that are taken twice are summed in order)
 * @throws HeedError DTYPE_MISMATCH, SHAPE_MISMATCH when x has no rows to take
 */
export function indexSelect(x: Tensor, index: Tensor): Tensor {
  return takeRows('indexSelect', x, index);
}

/**
 * Embedding vectors of tokens: a row of the table each.
 * @param table [vocabulary, dim], f32 or f16
 * @param tokens u32 of any shape
 * @returns [...tokens shape, dim], the dtype of the table; differentiable in the table
 * @throws HeedError DTYPE_MISMATCH, SHAPE_MISMATCH when the table has another rank or no rows
 */
export function embedding(table: Tensor, tokens: Tensor): Tensor {
  expectFloat('embedding', 'table', table);
  if (table.rank !== 2) throw new HeedError('SHAPE_MISMATCH', `embedding: table is ${table.describe()}; it must be [vocabulary, dim]`);
  return takeRows('embedding', table, tokens);
}

function takeRows(name: string, x: Tensor, index: Tensor): Tensor {
  expectDType(name, 'index', index, ['u32']);
  if (x.rank === 0 || (x.dim(0) === 0 && index.size > 0))
    throw new HeedError('SHAPE_MISMATCH', `${name}: x is ${x.describe()}; it needs a first axis with rows to take`);
  const { shape, dtype } = x;
  return apply({
    name,
    inputs: [x, index],
    forward: () => gatherRowsOf(x, index),
    saves: () => [index],
    ...(isFloat(dtype)
      ? {
          backward: ([dOut], { saved: [rows] }) => {
            if (!dOut || !rows) return [null, null];
            const sums = scatterSums(dOut, rows, shape[0] ?? 0);
            const strides = shape.map((_, axis) => product(shape, axis + 1));
            return [sums.view({ shape, strides }), null];
          },
        }
      : {}),
  });
}

// Elements of each line along one axis by index. Layout of x [outer, n, inner], of the index [outer, m, inner].
// tile    1 element a lane, 256 lanes
// bytes   reads 4 and one element, writes one
// limits  n >= 1; an index beyond the line reads its last element
const takeAlong = defineKernel({
  name: 'take-along-axis',
  bindings: { x: read('any'), index: read('u32'), out: write('any') },
  uniforms: { size: 'u32', n: 'u32', m: 'u32', inner: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let outer = i / (uniforms.m * uniforms.inner);
      let at = min(load_index(i), uniforms.n - 1u);
      store_out(i, load_x((outer * uniforms.n + at) * uniforms.inner + i % uniforms.inner));
    }`,
});

// The way back: each element of x looks for itself among the m indices of its line. No atomics, sums in order.
// tile    1 element a lane, 256 lanes
// bytes   reads 4 m and the gradients that it finds (m n of a line in all), writes one element
// limits  n m steps a line: for long lines rows by index (scatterSums) are cheaper
const takeAlongBackward = defineKernel({
  name: 'take-along-axis-backward',
  bindings: { g: read('float'), index: read('u32'), out: write('float') },
  uniforms: { size: 'u32', n: 'u32', m: 'u32', inner: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let outer = i / (uniforms.n * uniforms.inner);
      let own = (i / uniforms.inner) % uniforms.n;
      let inner = i % uniforms.inner;
      var sum = 0.0;
      for (var j = 0u; j < uniforms.m; j++) {
        let at = (outer * uniforms.m + j) * uniforms.inner + inner;
        if (load_index(at) == own) { sum += load_g(at); }
      }
      store_out(i, sum);
    }`,
});

/**
 * Elements of each line along an axis: out[..., i, ...] = x[..., index[..., i, ...], ...].
 * @param x any dtype
 * @param index u32, the shape of x but for the axis; every one below the length of the axis
 * @param axis default -1
 * @returns the shape of index, the dtype of x; differentiable in x at a cost of length x indices (for long lines use indexSelect)
 * @throws HeedError SHAPE_MISMATCH also where the axis of x is empty and index is not, DTYPE_MISMATCH
 */
export function takeAlongAxis(x: Tensor, index: Tensor, axis = -1): Tensor {
  const at = axisOf('takeAlongAxis', x, axis);
  expectDType('takeAlongAxis', 'index', index, ['u32']);
  const differs = x.shape.some((n, i) => i !== at && n !== index.shape[i]);
  if (index.rank !== x.rank || differs)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `takeAlongAxis: x is ${x.describe()}, index ${index.describe()}; they must agree on every axis but ${at}`,
    );
  if (x.dim(at) === 0 && index.size > 0)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `takeAlongAxis: x is ${x.describe()}; axis ${at} needs elements to take for index ${index.describe()}`,
    );
  const { shape, dtype, device } = x;
  const uniforms = { n: x.dim(at), m: index.dim(at), inner: product(shape, at + 1) };
  return apply({
    name: 'takeAlongAxis',
    inputs: [x, index],
    forward: () => {
      const out = empty(device, index.shape, dtype);
      takeAlong.run(device, {
        spec: {},
        tensors: { x: asContiguous(x, 1), index: asContiguous(index, 1), out },
        uniforms: { size: out.size, ...uniforms },
        grid: [Math.ceil(out.size / 256)],
      });
      return out;
    },
    saves: () => [index],
    ...(isFloat(dtype)
      ? {
          backward: ([g], { saved: [where] }) => {
            if (!g || !where) return [null, null];
            const out = empty(device, shape, dtype as FloatDType);
            takeAlongBackward.run(device, {
              spec: {},
              tensors: { g: asContiguous(g, 1), index: asContiguous(where, 1), out },
              uniforms: { size: out.size, ...uniforms },
              grid: [Math.ceil(out.size / 256)],
            });
            return [out, null];
          },
        }
      : {}),
  });
}

// One at the place of each index, zero elsewhere.
// tile    1 element a lane, 256 lanes
// bytes   reads 4 (shared by the classes of an index), writes one element
// limits  an index beyond the classes matches none
const marks = defineKernel({
  name: 'one-hot',
  bindings: { index: read('u32'), out: write('any') },
  uniforms: { size: 'u32', classes: 'u32' },
  wgsl: (_, { dtypes }) => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i >= uniforms.size) { return; }
      let hit = load_index(i / uniforms.classes) == i % uniforms.classes;
      store_out(i, ${dtypes['out'] === 'f32' || dtypes['out'] === 'f16' ? 'select(0.0, 1.0, hit)' : dtypes['out'] === 'i32' ? 'select(0i, 1i, hit)' : 'select(0u, 1u, hit)'});
    }`,
});

/**
 * One at the place of each index, zero elsewhere; an index of `classes` or more gives a row of zeros.
 * @param index u32 of any shape
 * @param classes length of the new last axis, 1 or more
 * @param options.dtype default f32
 * @returns [...index shape, classes]; no gradient
 * @throws HeedError DTYPE_MISMATCH, INVALID_ARGUMENT for a number of classes that is no integer of 1 or more
 */
export function oneHot(index: Tensor, classes: number, options: { dtype?: Tensor['dtype'] } = {}): Tensor {
  expectDType('oneHot', 'index', index, ['u32']);
  if (!Number.isInteger(classes) || classes < 1)
    throw new HeedError('INVALID_ARGUMENT', `oneHot: classes is ${classes}; use an integer of 1 or more`);
  return apply({
    name: 'oneHot',
    inputs: [index],
    forward: () => {
      const out = empty(index.device, [...index.shape, classes], options.dtype ?? 'f32');
      marks.run(index.device, {
        spec: {},
        tensors: { index: asContiguous(index, 1), out },
        uniforms: { size: out.size, classes },
        grid: [Math.ceil(out.size / 256)],
      });
      return out;
    },
  });
}
