import { type Device, HeedError, RandomStream, type Tensor, tensor } from '@heed/core';

/** What random features are drawn with. */
export interface NprfFeatureOptions {
  heads: number;
  headDim: number;
  /** Random features m. Default 2 headDim. */
  features?: number;
  /** Philox seed; required. */
  seed: number;
  /** Blocks of headDim rows orthogonal to each other, their lengths those of normal vectors (Performer). Default false. */
  orthogonal?: boolean;
}

/** Rows N(0, I) as numbers, [heads, features, headDim]. */
export function drawFeatures(random: RandomStream, heads: number, features: number, headDim: number, orthogonal: boolean): Float32Array {
  const values = Float32Array.from(random.normal(heads * features * headDim));
  if (!orthogonal) return values;
  const row = (r: number): Float32Array => values.subarray(r * headDim, (r + 1) * headDim);
  const dot = (a: Float32Array, b: Float32Array): number => a.reduce((sum, x, i) => sum + x * (b[i] as number), 0);
  for (let h = 0; h < heads; h++) {
    const lengths = Array.from({ length: features }, (_, r) => Math.sqrt(dot(row(h * features + r), row(h * features + r))));
    for (let r = 0; r < features; r++) {
      const own = row(h * features + r);
      const first = Math.floor(r / headDim) * headDim;
      // Gram and Schmidt twice: once is not orthogonal to f32 accuracy
      for (let pass = 0; pass < 2; pass++) {
        for (let before = first; before < r; before++) {
          const other = row(h * features + before);
          const share = dot(own, other) / dot(other, other);
          own.forEach((x, i) => (own[i] = x - share * (other[i] as number)));
        }
      }
    }
    for (let r = 0; r < features; r++) {
      const own = row(h * features + r);
      const share = (lengths[r] as number) / Math.sqrt(dot(own, own));
      own.forEach((x, i) => (own[i] = x * share));
    }
  }
  return values;
}

/**
 * Random features for `nprf`, f32 [heads, features, headDim]. They stay as they are in training: redrawing is not needed once
 * inputs are normalised.
 * @throws HeedError INVALID_ARGUMENT without a seed
 */
export function nprfRandomFeatures(device: Device, options: NprfFeatureOptions): Tensor {
  const { heads, headDim, features = 2 * headDim, seed, orthogonal = false } = options;
  if (!Number.isInteger(seed)) throw new HeedError('INVALID_ARGUMENT', `nprfRandomFeatures: seed is ${String(seed)}; give an integer`);
  for (const [name, n] of Object.entries({ heads, headDim, features }))
    if (!Number.isInteger(n) || n < 1)
      throw new HeedError('INVALID_ARGUMENT', `nprfRandomFeatures: ${name} is ${n}; it must be an integer of 1 or more`);
  return tensor(device, drawFeatures(new RandomStream(seed, 'nprf features'), heads, features, headDim, orthogonal), [
    heads,
    features,
    headDim,
  ]);
}
