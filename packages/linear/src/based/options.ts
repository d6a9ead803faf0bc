import { HeedError, type Tensor } from '@heed/core';
import { currentTape } from '@heed/core/~internal';
import { fullFeatures, symmetricFeatures } from './layout.js';

/** A state of `based`: sums of phi(k) v^T and of phi(k). Constants: no gradient flows through a state. */
export interface BasedStates {
  /** f32 [batch, heads, features, valueDim]; 1 + f + f^2 features in the official order 1, x_i, vec(x x^T), or 1 + f + f (f + 1) / 2 compressed ones. */
  kvState: Tensor;
  /** f32 [batch, heads, features] in the same order. */
  kState: Tensor;
}

/** Options of `based`. */
export interface BasedOptions {
  /** Factor on q.k, above 0. Default 1 / sqrt(featureDim), the paper's. */
  scale?: number;
  /** A query sees keys up to its own position. Default true; false: every key. */
  causal?: boolean;
  /** Divides by the sum of weights. Default true. */
  normalize?: boolean;
  /** Added to the denominator, which is at least half the number of keys. Default 1e-12. */
  eps?: number;
  /** Sums before the first token. Default zeros. */
  initialState?: BasedStates;
  /** Tokens that one workgroup sweeps before the state crosses to the next. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones count for nothing and give zeros. Default: all. */
  lengths?: Tensor;
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, UNSUPPORTED: what is wrong with the arguments */
export function checkBased(who: string, q: Tensor, k: Tensor, v: Tensor, options: BasedOptions): void {
  const wrong = (message: string): never => {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${message}`);
  };
  for (const [name, x] of [
    ['q', q],
    ['k', k],
    ['v', v],
  ] as const) {
    if (x.rank !== 4) wrong(`${name} is ${x.describe()}; it must be [batch, tokens, heads, dimension]`);
    if (x.dtype !== 'f32' && x.dtype !== 'f16')
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, cast it first`);
    if (x.dtype !== q.dtype)
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}, q is ${q.describe()}; cast them to one dtype`);
  }
  if (k.shape.join() !== q.shape.join()) wrong(`k is ${k.describe()}, q is ${q.describe()}; they must have one shape`);
  if (v.dim(0) !== q.dim(0) || v.dim(1) !== q.dim(1) || v.dim(2) !== q.dim(2))
    wrong(`v is ${v.describe()}, q is ${q.describe()}; batch, tokens and heads must agree (there are no grouped heads)`);
  if (q.dim(3) === 0 || v.dim(3) === 0) wrong(`q is ${q.describe()}, v is ${v.describe()}; dimensions must be 1 or more`);
  const { scale = 1, eps = 0, chunk, lengths, initialState } = options;
  if (!(Number.isFinite(scale) && scale > 0))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: scale is ${scale}; it must be above 0, the map is that of the coordinates times its root`,
    );
  if (!(Number.isFinite(eps) && eps >= 0)) throw new HeedError('INVALID_ARGUMENT', `${who}: eps is ${eps}; it must be 0 or more`);
  if (chunk !== undefined && !(Number.isInteger(chunk) && chunk > 0))
    throw new HeedError('INVALID_ARGUMENT', `${who}: chunk is ${chunk}; it must be an integer of 1 or more`);
  if (lengths) {
    if (lengths.dtype !== 'i32') throw new HeedError('DTYPE_MISMATCH', `${who}: lengths is ${lengths.describe()}; it must be i32`);
    if (lengths.rank !== 1 || lengths.size !== q.dim(0))
      wrong(`lengths is ${lengths.describe()}; it must be [${q.dim(0)}], one a batch entry`);
  }
  if (initialState) checkStates(who, initialState, [q.dim(0), q.dim(2)], q.dim(3), v.dim(3));
}

/** @throws HeedError unless the states fit; returns whether they are in the official order */
export function checkStates(
  who: string,
  { kvState, kState }: BasedStates,
  lead: readonly [number, number],
  featureDim: number,
  valueDim: number,
): boolean {
  if (!kvState || !kState)
    throw new HeedError('INVALID_ARGUMENT', `${who}: initialState has no kvState and kState; give both, as basedWithState does`);
  const [full, symmetric] = [fullFeatures(featureDim), symmetricFeatures(featureDim)];
  const features = kvState.shape[2] ?? 0;
  const fits =
    (features === full || features === symmetric) &&
    kvState.shape.join() === [...lead, features, valueDim].join() &&
    kState.shape.join() === [...lead, features].join();
  if (!fits)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: initialState is ${kvState.describe()} and ${kState.describe()}; they must be [${lead.join(', ')}, features, ${valueDim}] and [${lead.join(', ')}, features] with ${full} features, or ${symmetric} compressed ones`,
    );
  for (const x of [kvState, kState]) {
    if (x.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: initialState is ${x.describe()}; states are f32, cast it first`);
    if (currentTape()?.isTracked(x))
      throw new HeedError(
        'UNSUPPORTED',
        `${who}: initialState is being differentiated, and states are constants here; wrap it in stopGradient()`,
      );
  }
  return features === full;
}
