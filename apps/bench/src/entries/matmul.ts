import { matmul, slice, type Tensor } from '@heed/core';
import type { Entry, Family } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { rowError, worst } from '../samples.js';

/** Columns that are checked of each sampled row. */
const COLUMNS = 64;

/** The square product of an edge; f16 operands, f32 sums and an f16 result, or all f32. */
function square(edge: number, dtype: 'f16' | 'f32'): Entry {
  const bytes = 3 * edge * edge * (dtype === 'f16' ? 2 : 4);
  const rows = [0, Math.floor((edge * 37) / 100), edge - 1];
  return {
    id: `matmul/${dtype}/${edge}`,
    shape: { m: edge, n: edge, k: edge },
    dtype,
    pass: 'forward',
    work: { algorithm: 'a, b read once, the product written once; 2 edge^3 operations', bytes, flops: 2 * edge ** 3 },
    memory: { bytes, why: 'a, b and the product' },
    tolerance: dtype === 'f16' ? 2e-3 : 1e-5,
    open(device) {
      const a = input(device, 'a', [edge, edge], { dtype });
      const b = input(device, 'b', [edge, edge], { dtype });
      return {
        run: () => [matmul(a, b)],
        async sample([product]) {
          const got: Float64Array[] = [];
          for (const row of rows) {
            const view = slice(product as Tensor, 0, row, row + 1);
            got.push(Float64Array.from(await view.read(), Number).subarray(edge - Math.min(COLUMNS, edge)));
            view.dispose();
          }
          return () => worst(rows.map((row, i) => rowError(got[i] as Float64Array, productRow(edge, row))));
        },
        dispose: () => [a, b].forEach((t) => t.dispose()),
      };
    },
  };
}

const a = inputAt('a');
const b = inputAt('b');

/** The last columns of a row of the product. */
function productRow(edge: number, row: number): Float64Array {
  const columns = Math.min(COLUMNS, edge);
  const out = new Float64Array(columns);
  for (let i = 0; i < edge; i++) {
    const left = a(row * edge + i);
    for (let c = 0; c < columns; c++) out[c] = (out[c] as number) + left * b(i * edge + edge - columns + c);
  }
  return out;
}

/** Square matrix products. */
export const matmulFamily: Family = ({ suite, software, sizes }) => {
  if (suite !== 'quick' && suite !== 'kernels') return [];
  if (software) return (sizes ?? [256]).map((edge) => square(edge, 'f32'));
  const edges = sizes?.filter((edge) => edge <= 8192) ?? (suite === 'quick' ? [4096] : [1024, 2048, 4096, 8192]);
  return [...edges.map((edge) => square(edge, 'f16')), ...edges.filter((edge) => edge <= 4096).map((edge) => square(edge, 'f32'))];
};
