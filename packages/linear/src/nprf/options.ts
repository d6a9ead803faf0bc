import { HeedError, type Tensor } from '@heed/core';
import { checkLengths } from '../scan/operands.js';
import type { NprfPath } from './plan.js';

/** Options of `nprf`. */
export interface NprfOptions {
  /** Query t sees keys up to t, bottom-right aligned when lengths differ. Default false. */
  causal?: boolean;
  /** `prf`: positive features, exp(w.x); `trf`: sines and cosines, whose denominators may vanish. Default `prf`. */
  featureMap?: 'prf' | 'trf';
  /** q and k divided by their lengths. Default true; false is the estimate of exp(q.k) of Performer. */
  normalize?: boolean;
  /** The least length to divide by. Default 1e-6. */
  normEps?: number;
  /** Added to denominators. Default 0. */
  denominatorEps?: number;
  /** Valid keys a batch entry, i32 [batch]. Default: all. */
  lengths?: Tensor;
  /**
   * Distance beyond which the bias is constant, 1 or more: rpeBias is then [heads, 2 clip + 1], entry (j - i) + clip with j - i cut to
   * -clip .. clip. For as many queries as keys. Default: every distance has an entry.
   */
  clip?: number;
  /** Default `auto`: the fastest one by measurement, see `planNprf`; `band` takes a clipped bias, in time linear in tokens. */
  path?: NprfPath | 'auto';
}

export interface NprfSettings {
  causal: boolean;
  trf: boolean;
  normalize: boolean;
  normEps: number;
  denominatorEps: number;
  clip: number | undefined;
  path: NprfPath | 'auto';
}

/** @throws HeedError INVALID_ARGUMENT for a value that is out of range */
export function resolveOptions(who: string, options: NprfOptions): NprfSettings {
  const invalid = (text: string): never => {
    throw new HeedError('INVALID_ARGUMENT', `${who}: ${text}`);
  };
  const { causal = false, featureMap = 'prf', normalize = true, normEps = 1e-6, denominatorEps = 0, path = 'auto', clip } = options;
  if (featureMap !== 'prf' && featureMap !== 'trf') invalid(`featureMap is "${String(featureMap)}"; use prf or trf`);
  if (!(normEps > 0) || !Number.isFinite(normEps)) invalid(`normEps is ${normEps}; it must be finite and above 0`);
  if (!(denominatorEps >= 0) || !Number.isFinite(denominatorEps))
    invalid(`denominatorEps is ${denominatorEps}; it must be finite and 0 or more`);
  if (!['auto', 'direct', 'fft', 'band'].includes(path)) invalid(`path is "${String(path)}"; use auto, direct, fft or band`);
  if (clip !== undefined && !(Number.isInteger(clip) && clip > 0)) invalid(`clip is ${clip}; it must be an integer of 1 or more`);
  if (path === 'band' && clip === undefined)
    invalid('path is band and no clip was given; give the distance beyond which the bias is constant');
  return { causal, trf: featureMap === 'trf', normalize, normEps, denominatorEps, clip, path };
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH unless the operands [batch, tokens, heads, ..] fit each other */
export function checkArguments(
  who: string,
  { q, k, v, features, lengths }: { q: Tensor; k: Tensor; v: Tensor; features: Tensor; lengths: Tensor | undefined },
): void {
  const shape = (text: string): never => {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${text}`);
  };
  for (const [name, x] of Object.entries({ q, k, v })) {
    if (x.dtype !== 'f32' && x.dtype !== 'f16')
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, cast it first`);
    if (x.rank !== 4) shape(`${name} is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
  }
  const [batch, , heads, dim] = q.shape as [number, number, number, number];
  if (k.dim(0) !== batch || k.dim(2) !== heads || k.dim(3) !== dim)
    shape(`k is ${k.describe()}, q is ${q.describe()}; batch, heads and headDim must agree`);
  if (v.dim(0) !== batch || v.dim(1) !== k.dim(1) || v.dim(2) !== heads)
    shape(`v is ${v.describe()}, k is ${k.describe()}; batch, tokens and heads must agree`);
  if (dim === 0 || v.dim(3) === 0) shape(`q is ${q.describe()}, v is ${v.describe()}; head dimensions must be 1 or more`);
  if (features.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: features is ${features.describe()}; it must be f32`);
  if (features.rank !== 3 || features.dim(0) !== heads || features.dim(2) !== dim || features.dim(1) === 0)
    shape(`features is ${features.describe()}; it must be [${heads}, m, ${dim}]: heads, random features, headDim`);
  checkLengths(who, lengths, batch);
}

/** @throws HeedError unless the table is f32 of this shape */
export function checkBias(who: string, bias: Tensor, shape: readonly number[], meaning: string): void {
  if (bias.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: rpeBias is ${bias.describe()}; it must be f32`);
  if (bias.shape.join() !== shape.join())
    throw new HeedError('SHAPE_MISMATCH', `${who}: rpeBias is ${bias.describe()}; it must be [${shape.join(', ')}]: ${meaning}`);
}
