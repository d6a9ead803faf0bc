import { apply } from '../../autodiff/tape.js';
import { HeedError } from '../../errors.js';
import { asContiguous } from '../../tensor/copy.js';
import type { Tensor } from '../../tensor/tensor.js';
import { choleskyFactors, largestMatrix, smallProduct, symmetrised, triangularSolutions } from './kernels.js';

function checkMatrices(who: string, a: Tensor, name: string): void {
  const n = a.rank < 2 ? 0 : a.dim(-1);
  if (a.rank < 2 || a.dim(-2) !== n || n < 1 || n > largestMatrix)
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${name} is ${a.describe()}; it must be [..., n, n] with n from 1 to ${largestMatrix}`);
  if (a.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${a.describe()}; it must be f32`);
}

/**
 * Lower Cholesky factors: a = L L^T.
 * @param a symmetric positive definite matrices, f32 [..., n, n], n <= 60; only the lower triangle is read
 * @returns L, zero above the diagonal; differentiable (Murray 2016, eq. 8 to 10; the gradient is symmetric)
 */
export function cholesky(a: Tensor): Tensor {
  checkMatrices('cholesky', a, 'a');
  return apply({
    name: 'cholesky',
    inputs: [a],
    forward: () => choleskyFactors(asContiguous(a, 1)),
    saves: ([l]) => (l ? [l] : []),
    backward: ([dL], { saved: [l] }) => {
      if (!dL || !l) return [null];
      // dA = sym(L^-T Phi(L^T dL) L^-1)
      const phi = smallProduct(l, asContiguous(dL, 1), { transposeA: true, part: 'half' });
      const left = triangularSolutions(l, phi, true);
      // left L^-1 = (L^-T left^T)^T, and its symmetric part needs no transposition back
      const identityFree = triangularSolutions(l, transposed(left), true);
      return [symmetrised(identityFree)];
    },
  });
}

function transposed(x: Tensor): Tensor {
  const [rows, columns] = [x.dim(-2), x.dim(-1)];
  if (rows !== columns) throw new HeedError('SHAPE_MISMATCH', `linalg: ${x.describe()} is not square`);
  // as a product with the identity would be: a strided read of the last two axes
  const outer = x.shape.slice(0, -2);
  const count = outer.reduce((p, n) => p * n, 1);
  const flat = x.view({ shape: [count, columns, rows, 1], strides: [rows * columns, 1, columns, 1] });
  return asContiguous(flat, 1).view({ shape: x.shape, strides: x.strides });
}

/**
 * Solves L x = b, or L^T x = b, for lower triangular L.
 * @param l f32 [..., n, n], n <= 60; what is above the diagonal is not read
 * @param b f32 [..., n, m], the same outer axes
 * @param options.transpose solve with L^T. Default false
 * @returns x, the shape of b; differentiable in l and b
 */
export function solveTriangular(l: Tensor, b: Tensor, options: { transpose?: boolean } = {}): Tensor {
  checkMatrices('solveTriangular', l, 'l');
  const transpose = options.transpose ?? false;
  if (b.rank !== l.rank || b.dim(-2) !== l.dim(-1) || b.shape.slice(0, -2).join() !== l.shape.slice(0, -2).join()) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `solveTriangular: l is ${l.describe()}, b is ${b.describe()}; b must be [..., n, m] with the outer axes and n of l`,
    );
  }
  if (b.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `solveTriangular: b is ${b.describe()}; it must be f32`);
  return apply({
    name: 'solveTriangular',
    inputs: [l, b],
    forward: () => triangularSolutions(asContiguous(l, 1), asContiguous(b, 1), transpose),
    saves: ([x]) => (x ? [l, x] : []),
    backward: ([dX], { saved: [factor, x], needs }) => {
      if (!dX || !factor || !x) return [null, null];
      const own = asContiguous(factor, 1);
      const dB = triangularSolutions(own, asContiguous(dX, 1), !transpose);
      if (!needs[0]) return [null, dB];
      // dL = -tril(dB x^T); for L^T it is -tril(x dB^T)
      const dL = transpose
        ? smallProduct(x, dB, { transposeB: true, part: 'lower', sign: -1 })
        : smallProduct(dB, x, { transposeB: true, part: 'lower', sign: -1 });
      return [dL, dB];
    },
  });
}
