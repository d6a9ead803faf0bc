import type { FloatDType } from '../../dtype.js';
import type { Shape, Tensor } from '../../tensor/tensor.js';

/** One operand as the kernels read it: stored rows `row` elements apart, the last axis contiguous. */
export interface MatrixOperand {
  tensor: Tensor;
  dtype: FloatDType;
  /** The stored matrix is the transpose of the factor. */
  transposed: boolean;
  /** Elements between stored rows. */
  row: number;
  /** Elements between matrices along each of the four batch axes; 0 where it is shared. */
  batch: readonly number[];
  /** Elements that aligned loads along the contiguous axis may take at once. */
  width: 1 | 4 | 8;
}

/** out [batch, M, N] = a [batch, M, K] b [batch, K, N]: shapes and strides after folding shared batches into rows. */
export interface MatmulProblem {
  M: number;
  N: number;
  K: number;
  /** Lengths of the batch axes, always four; their product is `matrices`. */
  batchShape: readonly number[];
  matrices: number;
  a: MatrixOperand;
  b: MatrixOperand;
  out: MatrixOperand;
}

interface Axis {
  n: number;
  a: number;
  b: number;
  out: number;
}

/**
 * What the kernels see of a product. Batch axes are broadcast and merged; where b is shared they become rows of a, as far
 * as strides allow.
 * @param a [..., M, K], or [..., K, M] when transposed; b likewise; `out` [..., M, N] has all batch axes
 */
export function problemOf(a: Tensor, b: Tensor, out: Tensor, transposed: { a: boolean; b: boolean }): MatmulProblem {
  const N = out.dim(-1);
  const K = a.dim(transposed.a ? -2 : -1);
  let M = out.dim(-2);
  const axes = batchAxes(a, b, out);
  let rowA = strideOf(a, -2);
  let rowOut = strideOf(out, -2);
  // a shared b: the innermost batch axis joins the rows while both a and out step alike
  for (let axis = axes.at(-1); !transposed.a && axis && axis.b === 0; axis = axes.at(-1)) {
    if (M === 1) {
      [rowA, rowOut] = [axis.a, axis.out];
    } else if (axis.a !== M * rowA || axis.out !== M * rowOut) {
      break;
    }
    M *= axis.n;
    axes.pop();
  }
  while (axes.length < 4) axes.unshift({ n: 1, a: 0, b: 0, out: 0 });
  const operand = (
    tensor: Tensor,
    row: number,
    side: 'a' | 'b' | 'out',
    flipped: boolean,
    columns: number,
    rows: number,
  ): MatrixOperand => {
    const batch = axes.map((axis) => (axis.n === 1 ? 0 : axis[side]));
    return {
      tensor,
      dtype: tensor.dtype as FloatDType,
      transposed: flipped,
      row,
      batch,
      width: widest(tensor.offset, columns, rows > 1 ? [row, ...batch] : batch),
    };
  };
  return {
    M,
    N,
    K,
    batchShape: axes.map((axis) => axis.n),
    matrices: axes.reduce((product, axis) => product * axis.n, 1),
    a: operand(a, rowA, 'a', transposed.a, transposed.a ? M : K, transposed.a ? K : M),
    b: operand(b, strideOf(b, -2), 'b', transposed.b, transposed.b ? K : N, transposed.b ? N : K),
    out: operand(out, rowOut, 'out', false, N, M),
  };
}

/** Batch axes, outermost first, without those of length 1, neighbours merged where all three step alike. */
function batchAxes(a: Tensor, b: Tensor, out: Tensor): Axis[] {
  const axes: Axis[] = [];
  for (let axis = 0; axis < out.rank - 2; axis++) {
    const n = out.shape[axis] ?? 1;
    if (n === 1) continue;
    const next: Axis = {
      n,
      a: batchStride(a, axis - out.rank),
      b: batchStride(b, axis - out.rank),
      out: out.strides[axis] ?? 0,
    };
    const last = axes.at(-1);
    if (last && last.a === next.a * n && last.b === next.b * n && last.out === next.out * n) {
      axes[axes.length - 1] = { ...next, n: last.n * n };
    } else {
      axes.push(next);
    }
  }
  return axes;
}

/** Stride along an axis counted from the end; 0 where it is absent or stretched. */
function batchStride(x: Tensor, axis: number): number {
  const at = axis + x.rank;
  return at < 0 || x.shape[at] === 1 ? 0 : (x.strides[at] ?? 0);
}

function strideOf(x: Tensor, axis: number): number {
  return x.strides[axis + x.rank] ?? 0;
}

function widest(offset: number, length: number, strides: Shape): 1 | 4 | 8 {
  const fits = (width: number): boolean => offset % width === 0 && length % width === 0 && strides.every((s) => s % width === 0);
  return fits(8) ? 8 : fits(4) ? 4 : 1;
}
