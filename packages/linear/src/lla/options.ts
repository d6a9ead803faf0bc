import { type FloatDType, HeedError, type Tensor } from '@heed/core';

/** How the system of a query is solved: conjugate gradients without its matrix, or the matrix and its Cholesky factor. */
export type LlaSolver = 'auto' | 'cg' | 'cholesky';

/** Options of conjugate gradients. */
export interface LlaSolveOptions {
  /** Default true: query t sees keys up to t, bottom-right aligned when lengths differ. */
  causal?: boolean;
  /** Factor on q.k in the weights. Default 1/sqrt(headDim). */
  scale?: number;
  /** lambda > 0, the ridge relative to the sum of a query's weights: a number, or f32 [batch, tokens, heads]. No default: it decides what is fitted. */
  ridgeLambda: number | Tensor;
  /** Edge of the diagonal blocks that are kept of Sigma; divides headDim. Default headDim: the whole of it. */
  blockSize?: number;
  /** Default `auto`: Cholesky where Sigma is whole and headDim at most 32, or 64 with a number of at most 0.1 as lambda; else conjugate gradients. */
  solver?: LlaSolver;
  /** Iterations of conjugate gradients at most; tiles end when converged. Default 32, or 2 headDim where that is more. */
  maxIterations?: number;
  /** Conjugate gradients end where the squared residual is at most rtol max(atol, its first value). Default 1e-12. */
  atol?: number;
  /** Default 1e-12. */
  rtol?: number;
  /** `jacobi` helps only where keys are badly scaled. Default `none`. */
  preconditioner?: 'none' | 'jacobi';
}

/** Options of `lla`; `ridgeLambda` has no default. */
export interface LlaOptions extends LlaSolveOptions {
  /** Added to delta with its sign. Default 1e-12. */
  deltaEps?: number;
  /** `detached`: the ridge is a constant in the backward, as published, though it is relative to the weights. Default `exact`. */
  ridgeGradient?: 'exact' | 'detached';
}

/** Options with their defaults. */
export interface LlaSettings {
  causal: boolean;
  scale: number;
  ridgeLambda: number | Tensor;
  block: number;
  cholesky: boolean;
  maxIterations: number;
  atol: number;
  rtol: number;
  jacobi: boolean;
  deltaEps: number;
  exact: boolean;
}

/** Widest head whose Sigma is factored in workgroup memory. */
export const widestCholesky = 64;
/** Widest head for which `auto` takes Cholesky at any lambda: beyond it about ten iterations of conjugate gradients cost less. */
const widestAuto = 32;
/** lambda from which on that many iterations are enough. */
const easyLambda = 0.1;

/** @throws HeedError for operands or options that do not fit */
export function resolve(who: string, q: Tensor, k: Tensor, v: Tensor | undefined, options: LlaOptions): LlaSettings {
  const shape = (text: string): never => {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${text}`);
  };
  const invalid = (text: string): never => {
    throw new HeedError('INVALID_ARGUMENT', `${who}: ${text}`);
  };
  for (const [name, x] of Object.entries({ q, k, ...(v && { v }) })) {
    if (x.rank !== 4) shape(`${name} is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
    if (x.dtype !== 'f32' && x.dtype !== 'f16')
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, cast it first`);
    if (x.dtype !== q.dtype)
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}, q is ${q.describe()}; cast them to one dtype`);
  }
  const [batch, , heads, dim] = q.shape as [number, number, number, number];
  if (k.dim(0) !== batch || k.dim(2) !== heads || k.dim(3) !== dim)
    shape(`k is ${k.describe()}, q is ${q.describe()}; batch, heads and headDim must agree (grouped heads: repeat k and v)`);
  if (v && (v.dim(0) !== batch || v.dim(2) !== heads || v.dim(1) !== k.dim(1)))
    shape(`v is ${v.describe()}, k is ${k.describe()}; batch, tokens and heads must agree`);
  if (dim === 0 || v?.dim(3) === 0) shape(`q is ${q.describe()}; head dimensions must be 1 or more`);
  const {
    causal = true,
    scale = 1 / Math.sqrt(dim),
    ridgeLambda,
    blockSize = dim,
    solver = 'auto',
    maxIterations = Math.max(32, 2 * dim),
  } = options;
  const { atol = 1e-12, rtol = 1e-12, preconditioner = 'none', deltaEps = 1e-12, ridgeGradient = 'exact' } = options;
  if (!Number.isFinite(scale)) invalid(`scale is ${scale}; it must be finite`);
  checkLambda(who, ridgeLambda, [batch, q.dim(1), heads]);
  if (!Number.isInteger(blockSize) || blockSize < 1 || dim % blockSize !== 0)
    invalid(`blockSize is ${blockSize}; it must divide headDim ${dim}`);
  if (!['auto', 'cg', 'cholesky'].includes(solver)) invalid(`solver is "${solver}"; use auto, cg or cholesky`);
  if (solver === 'cholesky' && (dim > widestCholesky || blockSize < dim))
    invalid(
      `solver cholesky with headDim ${dim} and blockSize ${blockSize}; it takes the whole Sigma and headDim up to ${widestCholesky}, use cg`,
    );
  if (!Number.isInteger(maxIterations) || maxIterations < 1)
    invalid(`maxIterations is ${maxIterations}; it must be an integer of 1 or more`);
  for (const [name, value] of Object.entries({ atol, rtol, deltaEps }))
    if (!(value >= 0) || !Number.isFinite(value)) invalid(`${name} is ${value}; it must be a finite number of 0 or more`);
  if (preconditioner !== 'none' && preconditioner !== 'jacobi')
    invalid(`preconditioner is "${String(preconditioner)}"; use none or jacobi`);
  if (ridgeGradient !== 'exact' && ridgeGradient !== 'detached')
    invalid(`ridgeGradient is "${String(ridgeGradient)}"; use exact or detached`);
  if ('lengths' in options && options.lengths !== undefined)
    throw new HeedError(
      'UNSUPPORTED',
      `${who}: lengths were given; there are none here, pad behind the tokens with causal: true (earlier queries do not see it), or cut the batch`,
    );
  const hard = typeof ridgeLambda === 'number' && ridgeLambda <= easyLambda;
  return {
    causal,
    scale,
    ridgeLambda,
    block: blockSize,
    cholesky: solver === 'cholesky' || (solver === 'auto' && blockSize === dim && dim <= (hard ? widestCholesky : widestAuto)),
    maxIterations,
    atol,
    rtol,
    jacobi: preconditioner === 'jacobi',
    deltaEps,
    exact: ridgeGradient === 'exact',
  };
}

/** @throws HeedError unless lambda is positive, or f32 of this shape */
function checkLambda(who: string, lambda: number | Tensor, shape: readonly number[]): void {
  if (lambda === undefined || lambda === null)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: no ridgeLambda was given; pass a number above 0 (1 to 10 solves fast, 0.01 extrapolates), or f32 [batch, tokens, heads]`,
    );
  if (typeof lambda === 'number') {
    if (!(lambda > 0) || !Number.isFinite(lambda))
      throw new HeedError('INVALID_ARGUMENT', `${who}: ridgeLambda is ${lambda}; it must be finite and above 0`);
    return;
  }
  if (lambda.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: ridgeLambda is ${lambda.describe()}; it must be f32`);
  if (lambda.shape.join() !== shape.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: ridgeLambda is ${lambda.describe()}; it must be [${shape.join(', ')}], one a query and head`,
    );
}

/** dtype of the outputs. */
export function dtypeOf(x: Tensor): FloatDType {
  return x.dtype === 'f16' ? 'f16' : 'f32';
}
