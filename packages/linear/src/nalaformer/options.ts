import { HeedError, type Tensor } from '@heed/core';
import { checkLengths, checkOperands } from '../scan/operands.js';
import type { FeatureSettings, RotaryTable } from './feature-kernels.js';

/** Options of `nalaformer`. */
export interface NalaformerOptions {
  /** The norm n of a query sets its exponent, p(n) = lambda (tau + tanh n); there is no other factor on q.k. Default 3. */
  lambda?: number;
  /** Default 0.5. */
  tau?: number;
  /** Exponent of the keys' coordinates. Default 3. */
  keyPower?: number;
  /** `relu`: the released sign split. `cos`: the paper's cosine and sine of the direction. Default `relu`. */
  map?: 'relu' | 'cos';
  /** Angle of a direction's coordinate, for `cos`. Default pi / 4: weights then never are negative. */
  angleScale?: number;
  /** Added to the mean weight. Default 1e-6. */
  eps?: number;
  /** A query sees keys up to its own position, and means run over these. Default false. */
  causal?: boolean;
  /** Rotary positions of the numerator, [tokens, headDim]; `nalaformerRope` makes those of an image. Default: none. */
  rope?: RotaryTable;
  /** Valid tokens a batch entry, i32 [batch]; causal only. Default: all. */
  lengths?: Tensor;
}

/** The settings of the two feature maps. */
export function featureSettings(options: NalaformerOptions): Omit<FeatureSettings, 'of'> {
  const { lambda = 3, tau = 0.5, keyPower = 3, map = 'relu', angleScale = Math.PI / 4 } = options;
  return { lambda, tau, keyPower, map, angleScale };
}

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, UNSUPPORTED: what is wrong with the arguments */
export function checkNalaformer(who: string, q: Tensor, k: Tensor, v: Tensor, options: NalaformerOptions): void {
  const wrong = (message: string): never => {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${message}`);
  };
  checkOperands(who, q, k, v);
  const { map = 'relu', lambda = 3, tau = 0.5, keyPower = 3, angleScale = 0, eps = 0, rope, lengths, causal = false } = options;
  if (map !== 'relu' && map !== 'cos') throw new HeedError('INVALID_ARGUMENT', `${who}: map is "${String(map)}"; use "relu" or "cos"`);
  // below 1 a power has no finite slope at 0
  for (const [name, value, least] of [
    ['lambda x tau', lambda * tau, 1],
    ['keyPower', keyPower, 1],
    ['eps', eps, 0],
    ['angleScale', angleScale, -Infinity],
  ] as const) {
    if (!(value >= least && Number.isFinite(value)))
      throw new HeedError('INVALID_ARGUMENT', `${who}: ${name} is ${value}; it must be finite and at least ${least}`);
  }
  if (rope) {
    for (const [name, x] of Object.entries(rope) as [string, Tensor][]) {
      if (x.dtype !== 'f32' || x.shape.join() !== [q.dim(1), q.dim(3)].join() || !x.contiguous)
        wrong(`rope.${name} is ${x.describe()}; it must be contiguous f32 [${q.dim(1)}, ${q.dim(3)}], tokens and head dimension`);
    }
    if (q.dim(3) % 2 !== 0) wrong(`rotary positions turn pairs of coordinates, the head dimension is ${q.dim(3)}; use an even one`);
  }
  if (lengths && !causal)
    throw new HeedError(
      'UNSUPPORTED',
      `${who}: lengths were given without causal; pictures have one size, cut a batch by its lengths first`,
    );
  checkLengths(who, lengths, q.dim(0));
}
