import { HeedError, Tensor } from '@heed/core';

/** Options of `zeta`; `range` has no default, since it must fit the queries and keys. */
export interface ZetaOptions {
  /** The range [low, high] of q and k that the cells divide; what lies outside falls into the outermost cells. */
  range: readonly [number, number];
  /** Bits of a cell index a dimension, bits x keyDim <= 32. Default min(16, floor(32 / keyDim)). */
  bits?: number;
  /** Tokens kept by distance. Default 32. */
  topK?: number;
  /** Tokens looked at around the query's place on the curve, at least topK. Default 2 topK. */
  window?: number;
  /** Tokens a chunk: a causal query searches the chunks before its own. Default 256. */
  chunk?: number;
  /** Default true. */
  causal?: boolean;
  /** The mean of all tokens up to the query (of all tokens when not causal) joins the kept ones. Default true. */
  historyMean?: boolean;
  /** 2: half of the window on a second curve, whose cells are shifted against those of the first. Default 1. */
  curves?: 1 | 2;
  /** The last tokens, the own one included, that are kept whatever their distance (causal only). Default 0, the paper's form. */
  localWindow?: number;
}

/** Options with their defaults filled in. */
export interface ZetaSettings {
  low: number;
  high: number;
  bits: number;
  topK: number;
  window: number;
  chunk: number;
  causal: boolean;
  historyMean: boolean;
  curves: 1 | 2;
  localWindow: number;
  keyDim: number;
}

/** @throws HeedError INVALID_ARGUMENT for a value that is out of range */
export function resolveOptions(who: string, options: ZetaOptions, keyDim: number): ZetaSettings {
  const wrong = (text: string): never => {
    throw new HeedError('INVALID_ARGUMENT', `${who}: ${text}`);
  };
  if (!Number.isInteger(keyDim) || keyDim < 1 || keyDim > 4)
    wrong(`q and k have ${keyDim} dimensions a head; the curve takes 1 to 4 (3 is the paper's)`);
  const { range, topK = 32, window = 2 * topK, chunk = 256, causal = true, historyMean = true, curves = 1, localWindow = 0 } = options;
  const { bits = Math.min(16, Math.floor(32 / keyDim)) } = options;
  const [low, high] = range ?? wrong('no range was given; pass range: [low, high] of q and k, for instance [-1, 1] after tanh');
  if (!Number.isFinite(low) || !Number.isFinite(high) || !(high > low))
    wrong(`range is [${low}, ${high}]; give two finite numbers, the lower one first`);
  const count = (name: string, value: number, least: number): void => {
    if (!Number.isInteger(value) || value < least) wrong(`${name} is ${value}; it must be an integer of ${least} or more`);
  };
  count('bits', bits, 1);
  if (bits > 16 || bits * keyDim > 32) wrong(`bits is ${bits} for ${keyDim} dimensions; use at most 16, and at most 32 in all`);
  count('topK', topK, 1);
  count('window', window, 1);
  count('chunk', chunk, 1);
  count('localWindow', localWindow, 0);
  if (window < topK) wrong(`window is ${window}, topK is ${topK}; the window must hold at least topK tokens`);
  if (curves !== 1 && curves !== 2) wrong(`curves is ${String(curves)}; use 1 or 2`);
  if (localWindow > 0 && !causal)
    wrong(`localWindow is ${localWindow} with causal: false; a bidirectional query searches its own surroundings anyway`);
  return { low, high, bits, topK, window, chunk, causal, historyMean, curves, localWindow, keyDim };
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH unless q, k, v and theta fit each other; INVALID_ARGUMENT where options stand in the place of theta */
export function checkArguments(who: string, q: Tensor, k: Tensor, v: Tensor, theta: Tensor): void {
  const shape = (text: string): never => {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${text}`);
  };
  if (!(theta instanceof Tensor))
    throw new HeedError('INVALID_ARGUMENT', `${who}: theta is no tensor; call ${who}(q, k, v, theta, options) with theta [heads], f32`);
  for (const [name, t] of Object.entries({ q, k, v }))
    if (t.rank !== 4) shape(`${name} is ${t.describe()}; it must be [batch, tokens, heads, dimension]`);
  for (const [name, t] of Object.entries({ q, k, theta }))
    if (t.dtype !== 'f32')
      throw new HeedError(
        'DTYPE_MISMATCH',
        `${who}: ${name} is ${t.describe()}; it must be f32, since f16 is coarser than the cells: cast() it`,
      );
  if (v.dtype !== 'f32' && v.dtype !== 'f16') throw new HeedError('DTYPE_MISMATCH', `${who}: v is ${v.describe()}; it must be f32 or f16`);
  if (q.shape.join() !== k.shape.join()) shape(`q is ${q.describe()}, k is ${k.describe()}; they must have one shape`);
  if (v.shape.slice(0, 3).join() !== q.shape.slice(0, 3).join())
    shape(`v is ${v.describe()}, q is ${q.describe()}; batch, tokens and heads must be the same`);
  if (v.dim(3) < 1) shape(`v is ${v.describe()}; the value dimension must be 1 or more`);
  if (theta.rank !== 1 || theta.size !== q.dim(2)) shape(`theta is ${theta.describe()}; it must be [${q.dim(2)}], one a head`);
}
