import { HeedError, type Tensor } from '@heed/core';
import { currentTape } from '@heed/core/~internal';
import { checkChunk, checkLengths, checkOperands } from '../scan/operands.js';
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
  /**
   * Tokens of a segment, before which the state is kept. Default: as many segments as fill the device; on fragments 256, and never more
   * than 512, since tokens of a segment meet one by one. Any value gives the same result up to rounding.
   */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones count for nothing and give zeros. Default: all. */
  lengths?: Tensor;
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, UNSUPPORTED: what is wrong with the arguments */
export function checkBased(who: string, q: Tensor, k: Tensor, v: Tensor, options: BasedOptions): void {
  checkOperands(who, q, k, v);
  const { scale = 1, eps = 0, chunk, lengths, initialState } = options;
  if (!(Number.isFinite(scale) && scale > 0))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: scale is ${scale}; it must be above 0, the map is that of the coordinates times its root`,
    );
  if (!(Number.isFinite(eps) && eps >= 0)) throw new HeedError('INVALID_ARGUMENT', `${who}: eps is ${eps}; it must be 0 or more`);
  checkChunk(who, chunk);
  checkLengths(who, lengths, q.dim(0));
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
