import { type Device, rmsNorm, slice, type Tensor } from '@heed/core';
import { defineKernel, empty, read, write } from '@heed/core/~internal';
import type { Entry, Family } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { rowError, worst } from '../samples.js';

// What memory bandwidth bounds: a copy, the ceiling of all the others, and norms.

const x = inputAt('x');

// The device's copy speed, as a kernel reaches it.
// tile    4 elements a lane, 256 lanes
// bytes   reads and writes each element once
const copied = defineKernel({
  name: 'bench-copy',
  bindings: { x: read('float', { width: 4 }), out: write('float', { width: 4 }) },
  uniforms: { items: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(256)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 256u + lane;
      if (i < uniforms.items) { store_out(i, load_x(i)); }
    }`,
});

function copy(source: Tensor): Tensor {
  const out = empty(source.device, source.shape, source.dtype);
  const items = source.size / 4;
  copied.run(source.device, { spec: {}, tensors: { x: source, out }, uniforms: { items }, grid: [Math.ceil(items / 256)] });
  return out;
}

interface Setting {
  readonly rows: number;
  readonly width: number;
  readonly dtype: 'f16' | 'f32';
}

/** An entry for an op from rows to rows of one size. */
function rowsEntry(
  id: string,
  { rows, width, dtype }: Setting,
  op: (input: Tensor) => Tensor,
  expected: (row: Float64Array) => Float64Array,
): Entry {
  const bytes = 2 * rows * width * (dtype === 'f16' ? 2 : 4);
  const places = [0, Math.floor(rows / 3), rows - 1];
  return {
    id,
    shape: { rows, width },
    dtype,
    pass: 'forward',
    work: { algorithm: 'one read, one write', bytes, flops: 0 },
    memory: { bytes, why: 'input and output' },
    tolerance: dtype === 'f16' ? 2e-3 : 1e-5,
    open(device: Device) {
      const source = input(device, 'x', [rows, width], { dtype });
      return {
        run: () => [op(source)],
        async sample([out]) {
          const got: Float64Array[] = [];
          for (const place of places) {
            const view = slice(out as Tensor, 0, place, place + 1);
            got.push(Float64Array.from(await view.read(), Number));
            view.dispose();
          }
          return () =>
            worst(
              places.map((place, i) =>
                rowError(got[i] as Float64Array, expected(Float64Array.from({ length: width }, (_, c) => x(place * width + c)))),
              ),
            );
        },
        dispose: () => source.dispose(),
      };
    },
  };
}

function normalised(row: Float64Array): Float64Array {
  const square = row.reduce((sum, value) => sum + value * value, 0) / row.length;
  return row.map((value) => value / Math.sqrt(square + 1e-6));
}

/** Copy and norm. */
export const memoryFamily: Family = ({ suite, software }) => {
  if (suite !== 'quick' && suite !== 'kernels') return [];
  const copySize: Setting = software ? { rows: 1024, width: 1024, dtype: 'f32' } : { rows: 16384, width: 1024, dtype: 'f32' };
  const normed: Setting = software ? { rows: 1024, width: 512, dtype: 'f32' } : { rows: 65536, width: 1024, dtype: 'f16' };
  return [
    rowsEntry(`copy/${copySize.dtype}/${copySize.rows}x${copySize.width}`, copySize, copy, (row) => row),
    rowsEntry(`rms-norm/${normed.dtype}/${normed.rows}x${normed.width}`, normed, (source) => rmsNorm(source), normalised),
  ];
};
