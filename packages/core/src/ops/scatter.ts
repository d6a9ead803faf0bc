import { apply } from '../autodiff/tape.js';
import type { FloatDType } from '../dtype.js';
import { HeedError } from '../errors.js';
import { read, write } from '../kernel/bindings.js';
import { defineKernel } from '../kernel/define.js';
import { asContiguous } from '../tensor/copy.js';
import { empty, zeros } from '../tensor/create.js';
import { contiguousStrides, type Tensor } from '../tensor/tensor.js';
import { expectDType, expectFloat, product } from './check.js';
import { searchSorted } from './searchsorted.js';
import { sortPairs } from './sort/index.js';
import { countUp } from './sort/count.js';
import { gatherRowsOf } from './gather-rows.js';

const chunkEntries = 64;

// Sums of rows that share an index, from entries sorted by index. A workgroup walks 64 entries; a run that lies inside goes
// to its row at once, the first and the last one, which may go on next door, to partial sums that are added in order.
// tile    64 entries x 64 columns
// bytes   reads the values once and 8 an entry, writes the rows once and two partial rows a chunk
// limits  deterministic: no atomics, sums in the order of the entries
const chunkSums = defineKernel({
  name: 'scatter-chunk-sums',
  bindings: { values: read('float'), keys: read('u32'), entries: read('u32'), partials: write('f32'), out: write('f32') },
  uniforms: { count: 'u32', row: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let column = group.x * 64u + lane;
      if (column >= uniforms.row) { return; }
      let chunk = group.y + group.z * 65535u;
      let first = chunk * ${chunkEntries}u;
      if (first >= uniforms.count) { return; }
      let end = min(first + ${chunkEntries}u, uniforms.count);
      var key = load_keys(first);
      var sum = 0.0;
      var start = first;
      for (var i = first; i < end; i++) {
        let own = load_keys(i);
        if (own != key) {
          if (start == first) { store_partials(2u * chunk * uniforms.row + column, sum); } else { store_out(key * uniforms.row + column, sum); }
          key = own;
          sum = 0.0;
          start = i;
        }
        sum += load_values(load_entries(i) * uniforms.row + column);
      }
      store_partials((2u * chunk + select(1u, 0u, start == first)) * uniforms.row + column, sum);
    }`,
});

// Rows whose entries reach a chunk's border, from the partial sums of their chunks.
// tile    1 row x 64 columns
// bytes   reads 8 a row; of a row at a border also 4 a chunk and 4 a chunk and column, and writes 4 a column
// limits  any number of rows: they fold into z
const borderRows = defineKernel({
  name: 'scatter-border-rows',
  bindings: { partials: read('f32'), keys: read('u32'), starts: read('u32'), out: write('f32') },
  uniforms: { count: 'u32', row: 'u32', size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let column = group.x * 64u + lane;
      let r = group.y + group.z * 65535u;
      if (column >= uniforms.row || r >= uniforms.size) { return; }
      let start = load_starts(r);
      var end = uniforms.count;
      if (r + 1u < uniforms.size) { end = load_starts(r + 1u); }
      if (start == end) { return; }
      let firstChunk = start / ${chunkEntries}u;
      let lastChunk = (end - 1u) / ${chunkEntries}u;
      // a run inside one chunk that touches neither of its ends is written already
      let lastEntry = min((firstChunk + 1u) * ${chunkEntries}u, uniforms.count);
      if (firstChunk == lastChunk && start > firstChunk * ${chunkEntries}u && end < lastEntry) { return; }
      var sum = 0.0;
      for (var chunk = firstChunk; chunk <= lastChunk; chunk++) {
        let leads = load_keys(chunk * ${chunkEntries}u) == r;
        sum += load_partials((2u * chunk + select(1u, 0u, leads)) * uniforms.row + column);
      }
      store_out(r * uniforms.row + column, sum);
    }`,
});

/** Sums of rows of values [...index shape, ...row] by index [count] into [size, row], f32; rows without an entry are zero. */
export function scatterSums(values: Tensor, index: Tensor, size: number): Tensor {
  const { device } = values;
  const count = index.size;
  const row = product(values.shape, index.rank);
  const out = zeros(device, [size, row]);
  if (count === 0 || row === 0 || size === 0) return out;
  const bits = Math.max(1, Math.ceil(Math.log2(size)));
  const flat = asContiguous(index, 1).view({ shape: [1, count], strides: [count, 1] });
  const sorted = sortPairs(flat, countUp(device, count), { bits: Math.min(32, bits) });
  const keys = sorted.keys.view({ shape: [count], strides: [1] });
  const entries = sorted.values.view({ shape: [count], strides: [1] });
  const starts = searchSorted(keys, countUp(device, size).view({ shape: [size], strides: [1] }));
  const chunks = Math.ceil(count / chunkEntries);
  const partials = empty(device, [2 * chunks, row]);
  const columns = Math.ceil(row / 64);
  const fold = (n: number): [number, number, number] => [columns, Math.min(n, 65535), Math.ceil(n / 65535)];
  chunkSums.run(device, {
    spec: {},
    tensors: { values: asContiguous(values, 1), keys, entries, partials, out },
    uniforms: { count, row },
    grid: fold(chunks),
  });
  borderRows.run(device, { spec: {}, tensors: { partials, keys, starts, out }, uniforms: { count, row, size }, grid: fold(size) });
  return out;
}

/**
 * Sums of rows that share an index: out[index[i]] += values[i]. Deterministic: entries are sorted by index and added in order.
 * @param values f32 or f16, [...index shape, ...row]
 * @param index u32, every one below size
 * @param size rows of the output
 * @returns f32 [size, ...row]; differentiable in values
 */
export function scatterAdd(values: Tensor, index: Tensor, size: number): Tensor {
  expectFloat('scatterAdd', 'values', values);
  expectDType('scatterAdd', 'index', index, ['u32']);
  if (values.shape.slice(0, index.rank).join() !== index.shape.join()) {
    throw new HeedError('SHAPE_MISMATCH', `scatterAdd: values ${values.describe()} must begin with the shape of index ${index.describe()}`);
  }
  const rest = values.shape.slice(index.rank);
  const shape = [size, ...rest];
  return apply({
    name: 'scatterAdd',
    inputs: [values, index],
    forward: () => {
      const sums = scatterSums(values.contiguous ? values : asContiguous(values, 1), index, size);
      return sums.view({ shape, strides: contiguousStrides(shape) });
    },
    saves: () => [index],
    backward: ([dOut], { saved: [rows] }) => [dOut && rows ? gatherRowsOf(dOut, rows, values.dtype as FloatDType) : null, null],
  });
}
