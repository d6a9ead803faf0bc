import { read, write } from '../../kernel/bindings.js';
import { defineKernel } from '../../kernel/define.js';
import { empty } from '../../tensor/create.js';
import type { Tensor } from '../../tensor/tensor.js';

/** Largest matrix that one workgroup factors in 16 KiB of workgroup memory. */
export const largestMatrix = 60;

// Cholesky factors of small matrices, one workgroup each: column by column, lanes over the rows below.
// tile    1 matrix x 64 lanes
// bytes   reads and writes 4 n^2; 4 n^2 bytes of workgroup memory
// limits  n <= 60; a pivot that is not positive is taken as 1e-30, its column is then large and finite
const factors = defineKernel({
  name: 'cholesky',
  bindings: { a: read('f32'), out: write('f32') },
  uniforms: { matrices: 'u32', n: 'u32' },
  wgsl: () => `
    var<workgroup> l: array<f32, ${largestMatrix * largestMatrix}>;
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let matrix = workgroupIndex(group, groups);
      if (matrix >= uniforms.matrices) { return; }
      let n = uniforms.n;
      for (var i = lane; i < n * n; i += 64u) { l[i] = load_a(matrix * n * n + i); }
      workgroupBarrier();
      for (var column = 0u; column < n; column++) {
        var pivot = l[column * n + column];
        for (var k = 0u; k < column; k++) { pivot -= l[column * n + k] * l[column * n + k]; }
        let root = sqrt(max(pivot, 1e-30));
        // every lane has read the diagonal before it changes
        workgroupBarrier();
        for (var row = column + lane; row < n; row += 64u) {
          var sum = l[row * n + column];
          for (var k = 0u; k < column; k++) { sum -= l[row * n + k] * l[column * n + k]; }
          l[row * n + column] = select(sum / root, root, row == column);
        }
        workgroupBarrier();
      }
      for (var i = lane; i < n * n; i += 64u) { store_out(matrix * n * n + i, select(0.0, l[i], i % n <= i / n)); }
    }`,
});

/** Lower factors of contiguous matrices [count, n, n]. */
export function choleskyFactors(a: Tensor): Tensor {
  const out = empty(a.device, a.shape);
  const n = a.dim(-1);
  const matrices = a.size / (n * n);
  factors.run(a.device, { spec: {}, tensors: { a, out }, uniforms: { matrices, n }, grid: [matrices] });
  return out;
}

// Solutions of lower triangular systems, one lane a right-hand column.
// tile    64 columns a workgroup
// bytes   reads 4 n^2 / 2 a column (from cache), reads and writes 4 n
// limits  n <= 60: the solution of 64 columns lies in 15 KiB of workgroup memory; matrices over 65,535 fold into z
const solutions = defineKernel({
  name: 'solve-triangular',
  bindings: { l: read('f32'), b: read('f32'), out: write('f32') },
  uniforms: { n: 'u32', columns: 'u32' },
  wgsl: ({ transpose }: { transpose: boolean }) => `
    var<workgroup> x: array<f32, ${largestMatrix * 64}>;
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
      let n = uniforms.n;
      let column = group.x * 64u + lane;
      if (column >= uniforms.columns) { return; }
      let matrix = group.y + group.z * 65535u;
      for (var step = 0u; step < n; step++) {
        let row = ${transpose ? 'n - 1u - step' : 'step'};
        var sum = load_b((matrix * n + row) * uniforms.columns + column);
        for (var s = 0u; s < step; s++) {
          let k = ${transpose ? 'n - 1u - s' : 's'};
          sum -= load_l(matrix * n * n + ${transpose ? 'k * n + row' : 'row * n + k'}) * x[k * 64u + lane];
        }
        let value = sum / load_l(matrix * n * n + row * n + row);
        x[row * 64u + lane] = value;
        store_out((matrix * n + row) * uniforms.columns + column, value);
      }
    }`,
});

/** L^-1 b, or L^-T b, for contiguous l [count, n, n] and b [count, n, columns]. */
export function triangularSolutions(l: Tensor, b: Tensor, transpose: boolean): Tensor {
  const out = empty(b.device, b.shape);
  const [n, columns] = [l.dim(-1), b.dim(-1)];
  const matrices = l.size / (n * n);
  if (out.size === 0) return out;
  solutions.run(b.device, {
    spec: { transpose },
    tensors: { l, b, out },
    uniforms: { n, columns },
    grid: [Math.ceil(columns / 64), Math.min(matrices, 65535), Math.ceil(matrices / 65535)],
  });
  return out;
}

// Products of small matrices for the gradients here.
// part `all`, `lower` (above the diagonal zero) or `half` (that with half the diagonal: Phi of the source).
// tile    1 element of the result a lane, 64 lanes
// bytes   reads 8 depth (from cache: rows x depth and depth x columns a matrix), writes 4 an element
// limits  no staging: made for matrices that a cache holds
// source  Murray 2016, Differentiation of the Cholesky decomposition
const products = defineKernel({
  name: 'small-product',
  bindings: { a: read('f32'), b: read('f32'), out: write('f32') },
  uniforms: { size: 'u32', rows: 'u32', columns: 'u32', depth: 'u32', sign: 'f32' },
  wgsl: ({ transposeA, transposeB, part }: { transposeA: boolean; transposeB: boolean; part: string }) => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.size) { return; }
      let matrix = i / (uniforms.rows * uniforms.columns);
      let row = (i / uniforms.columns) % uniforms.rows;
      let column = i % uniforms.columns;
      var sum = 0.0;
      for (var k = 0u; k < uniforms.depth; k++) {
        let x = load_a(matrix * uniforms.rows * uniforms.depth + ${transposeA ? 'k * uniforms.rows + row' : 'row * uniforms.depth + k'});
        let y = load_b(matrix * uniforms.columns * uniforms.depth + ${transposeB ? 'column * uniforms.depth + k' : 'k * uniforms.columns + column'});
        sum += x * y;
      }
      ${part === 'all' ? '' : 'if (column > row) { sum = 0.0; }'}
      ${part === 'half' ? 'if (column == row) { sum *= 0.5; }' : ''}
      store_out(i, sum * uniforms.sign);
    }`,
});

export interface ProductOptions {
  transposeA?: boolean;
  transposeB?: boolean;
  part?: 'all' | 'lower' | 'half';
  sign?: number;
}

/** Products of contiguous small matrices, [count, rows, columns]. */
export function smallProduct(a: Tensor, b: Tensor, options: ProductOptions = {}): Tensor {
  const { transposeA = false, transposeB = false, part = 'all', sign = 1 } = options;
  const rows = a.dim(transposeA ? -1 : -2);
  const depth = a.dim(transposeA ? -2 : -1);
  const columns = b.dim(transposeB ? -2 : -1);
  const out = empty(a.device, [...a.shape.slice(0, -2), rows, columns]);
  products.run(a.device, {
    spec: { transposeA, transposeB, part },
    tensors: { a, b, out },
    uniforms: { size: out.size, rows, columns, depth, sign },
    grid: [Math.ceil(out.size / 64)],
  });
  return out;
}

// (a + a^T) / 2
// tile    1 element a lane, 64 lanes
// bytes   reads 8, writes 4 an element
const symmetric = defineKernel({
  name: 'symmetrise',
  bindings: { a: read('f32'), out: write('f32') },
  uniforms: { size: 'u32', n: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i >= uniforms.size) { return; }
      let n = uniforms.n;
      let at = i % (n * n);
      store_out(i, 0.5 * (load_a(i) + load_a(i - at + (at % n) * n + at / n)));
    }`,
});

export function symmetrised(a: Tensor): Tensor {
  const out = empty(a.device, a.shape);
  symmetric.run(a.device, { spec: {}, tensors: { a, out }, uniforms: { size: a.size, n: a.dim(-1) }, grid: [Math.ceil(a.size / 64)] });
  return out;
}
