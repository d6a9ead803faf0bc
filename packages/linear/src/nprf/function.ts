import {
  cast,
  concat,
  full,
  HeedError,
  l2Normalize,
  lt,
  matmul,
  max,
  mul,
  permute,
  pointwise,
  reshape,
  scope,
  slice,
  square,
  stopGradient,
  sum,
  type Tensor,
  tensor,
  unsqueeze,
} from '@heed/core';
import { bandedProduct, clippedTable } from './clip.js';
import { planTransform } from './kernels/convolve.js';
import { checkArguments, checkBias, type NprfOptions, type NprfSettings, resolveOptions } from './options.js';
import { planNprf } from './plan.js';
import { imagePositions, type Positions, sequencePositions, spanOf } from './positions.js';
import { toeplitzProduct } from './toeplitz.js';

const positive = pointwise((projection, squares, share) => projection.sub(squares.mul(0.5)).exp().mul(share), { name: 'nprf-prf' });
const sine = pointwise((projection, squares, share) => projection.sin().mul(squares.mul(0.5).exp()).mul(share), { name: 'nprf-sin' });
const cosine = pointwise((projection, squares, share) => projection.cos().mul(squares.mul(0.5).exp()).mul(share), { name: 'nprf-cos' });
// a bias of minus infinity hides a pair
const factor = pointwise((bias, most) => bias.max(-1e30).sub(most).exp(), { name: 'nprf-factor' });
// rows without any weight have numerators of zero, too: any other divisor leaves them zero, and their gradients finite
const ratio = pointwise(
  (numerator, denominator, epsilon) => {
    const whole = denominator.add(epsilon);
    return numerator.div(whole.eq(0).select(1, whole));
  },
  { name: 'nprf-ratio' },
);

/**
 * Random features of x: phi(x) = m^-1/2 exp(-|x|^2 / 2) [exp(w.x)], or m^-1/2 exp(|x|^2 / 2) [sin(w.x), cos(w.x)].
 * @param x [batch, tokens, heads, headDim]
 * @param features [heads, m, headDim]
 * @returns f32 [batch, heads, tokens, m or 2 m]; differentiable in x
 */
export function nprfFeatures(x: Tensor, features: Tensor, settings: Pick<NprfSettings, 'trf' | 'normalize' | 'normEps'>): Tensor {
  return scope(() => {
    const whole = x.dtype === 'f32' ? x : cast(x, 'f32');
    const unit = permute(settings.normalize ? l2Normalize(whole, { epsilon: settings.normEps }) : whole, [0, 2, 1, 3]);
    const projection = matmul(unit, stopGradient(features), { transposeB: true });
    const squares = sum(square(unit), -1, { keepDims: true });
    const share = 1 / Math.sqrt(features.dim(1));
    if (!settings.trf) return positive(projection, squares, share);
    return concat([sine(projection, squares, share), cosine(projection, squares, share)], -1);
  });
}

/** v with a column of ones behind it, f32 [batch, heads, tokens, valueDim + 1]: the ones sum up to denominators. */
export function withOnes(v: Tensor): Tensor {
  return scope(() => {
    const turned = permute(v.dtype === 'f32' ? v : cast(v, 'f32'), [0, 2, 1, 3]);
    return concat([turned, full(v.device, [...turned.shape.slice(0, 3), 1], 1)], -1);
  });
}

/** exp(bias), less its largest entry where that cancels; entries that no pair reads are left out. */
export function factorsOf(bias: Tensor, denominatorEps: number): Tensor {
  return scope(() => (denominatorEps > 0 ? factor(bias, 0) : factor(bias, stopGradient(max(bias, 1, { keepDims: true })))));
}

/** Numerators over denominators, [batch, tokens, heads, valueDim] from sums [batch x heads, tokens, valueDim + 1]. */
export function outputOf(sums: Tensor, batch: number, heads: number, denominatorEps: number, dtype: Tensor['dtype']): Tensor {
  return scope(() => {
    const width = sums.dim(2) - 1;
    const out = ratio(slice(sums, 2, 0, width), slice(sums, 2, width), denominatorEps);
    const turned = permute(reshape(out, [batch, heads, sums.dim(1), width]), [0, 2, 1, 3]);
    return dtype === 'f16' ? cast(turned, 'f16') : turned;
  });
}

/** The rows of [batch, heads, tokens, n] as [batch x heads, tokens, n]. */
export const asEntries = (x: Tensor): Tensor => reshape(x, [x.dim(0) * x.dim(1), x.dim(2), x.dim(3)]);

function masked(phi: Tensor, lengths: Tensor): Tensor {
  const tokens = phi.dim(2);
  const places = tensor(
    phi.device,
    Int32Array.from({ length: tokens }, (_, t) => t),
    [1, 1, tokens, 1],
  );
  const valid = lt(places, unsqueeze(unsqueeze(unsqueeze(lengths, -1), -1), -1));
  return mul(phi, cast(valid, 'f32'));
}

interface Operands {
  q: Tensor;
  k: Tensor;
  v: Tensor;
  features: Tensor;
  /** [heads, table] */
  bias: Tensor;
  lengths: Tensor | undefined;
}

function evaluate({ q, k, v, features, bias, lengths }: Operands, settings: NprfSettings, positions: Positions): Tensor {
  return scope(() => {
    const [batch, queries, heads] = q.shape as [number, number, number];
    const keys = k.dim(1);
    const { causal, clip } = settings;
    const columns = features.dim(1) * (settings.trf ? 2 : 1);
    const transform = planTransform(spanOf(positions, queries), spanOf(positions, keys)).n;
    const path =
      settings.path === 'auto'
        ? planNprf({ queries, keys, features: columns, valueDim: v.dim(3), causal, transform, clip })
        : settings.path;
    if (path === 'fft' && transform > 2 ** 20)
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `nprf: path fft with ${queries} queries and ${keys} keys needs transforms of ${transform}; at most 1048576, use path direct`,
      );
    const phiK = nprfFeatures(k, features, settings);
    const [a, b, w] = [nprfFeatures(q, features, settings), lengths ? masked(phiK, lengths) : phiK, withOnes(v)];
    if (path === 'band' && clip !== undefined) {
      const c = factorsOf(causal ? slice(bias, 1, 0, clip + 1) : bias, settings.denominatorEps);
      return outputOf(bandedProduct({ a, b, w, c }, { clip, causal }), batch, heads, settings.denominatorEps, q.dtype);
    }
    const table = clip === undefined ? bias : clippedTable(bias, clip, queries - 1, keys - 1);
    const visible = causal ? slice(table, 1, 0, Math.max(0, positions.centre + positions.shift + 1)) : table;
    const c = factorsOf(visible, settings.denominatorEps);
    const sums = toeplitzProduct({ a: asEntries(a), b: asEntries(b), w: asEntries(w), c }, { ...positions, heads, path });
    return outputOf(sums, batch, heads, settings.denominatorEps, q.dtype);
  });
}

/**
 * Kernelised attention with relative position bias (NPRF with RPE): z_i = sum_j exp(b_(j-i)) (phi(q_i).phi(k_j)) v_j over the same sum
 * without v. Estimates softmax over j of q^_i.k^_j + b_(j-i) with unit q^, k^. O(tokens log tokens) by Fourier transforms, or by pairs.
 * @param q [batch, queries, heads, headDim], f32 or f16 (computed in f32)
 * @param k [batch, keys, heads, headDim]
 * @param v [batch, keys, heads, valueDim]
 * @param features random features W, f32 [heads, m, headDim], rows N(0, I); constants, see `nprfRandomFeatures`
 * @param rpeBias b, f32 [heads, queries + keys - 1]; entry (j - i) + queries - 1, j the key. -Infinity hides pairs. With `clip`
 *   [heads, 2 clip + 1]
 * @param options `causal` default false; there is no factor on q.k
 * @returns [batch, queries, heads, valueDim], dtype of q; differentiable in q, k, v and rpeBias; rows without weight give 0
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; LIMIT_EXCEEDED where path fft is too short
 */
export function nprf(q: Tensor, k: Tensor, v: Tensor, features: Tensor, rpeBias: Tensor, options: NprfOptions = {}): Tensor {
  const settings = resolveOptions('nprf', options);
  const { lengths } = options;
  checkArguments('nprf', { q, k, v, features, lengths });
  const { clip } = settings;
  if (clip !== undefined && q.dim(1) !== k.dim(1))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `nprf: clip was given with ${q.dim(1)} queries and ${k.dim(1)} keys; it takes as many of both, give the whole table for cross attention`,
    );
  if (clip !== undefined) checkBias('nprf', rpeBias, [q.dim(2), 2 * clip + 1], 'heads, 2 clip + 1');
  else checkBias('nprf', rpeBias, [q.dim(2), Math.max(0, q.dim(1) + k.dim(1) - 1)], 'heads, queries + keys - 1');
  if (q.dim(1) === 0) return scope(() => reshape(q, [q.dim(0), 0, q.dim(2), v.dim(3)]));
  return evaluate({ q, k, v, features, bias: rpeBias, lengths }, settings, sequencePositions(q.dim(1), k.dim(1), settings.causal));
}

/**
 * As `nprf` over the tokens of images, with one bias an offset of both axes. Bidirectional.
 * @param q [batch, height, width, heads, headDim]
 * @param k as q
 * @param v [batch, height, width, heads, valueDim]
 * @param rpeBias f32 [heads, 2 height - 1, 2 width - 1]; entry (yj - yi) + height - 1, (xj - xi) + width - 1
 * @returns [batch, height, width, heads, valueDim]
 * @throws HeedError what `nprf` throws
 */
export function nprf2d(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  features: Tensor,
  rpeBias: Tensor,
  options: Omit<NprfOptions, 'causal' | 'lengths' | 'clip'> = {},
): Tensor {
  if ((options as NprfOptions).causal)
    throw new HeedError('INVALID_ARGUMENT', 'nprf2d: causal is true; images have no order of tokens, leave it out');
  if ((options as NprfOptions).clip !== undefined)
    throw new HeedError('INVALID_ARGUMENT', 'nprf2d: clip was given; images take the whole table, [heads, 2 height - 1, 2 width - 1]');
  const settings = resolveOptions('nprf2d', options);
  for (const [name, x] of Object.entries({ q, k, v }))
    if (x.rank !== 5 || x.shape.slice(0, 4).join() !== q.shape.slice(0, 4).join())
      throw new HeedError(
        'SHAPE_MISMATCH',
        `nprf2d: ${name} is ${x.describe()}; q, k and v must be [batch, height, width, heads, headDim]`,
      );
  const [height, width] = [q.dim(1), q.dim(2)];
  return scope(() => {
    const flat = (x: Tensor): Tensor => reshape(x, [x.dim(0), height * width, x.dim(3), x.dim(4)]);
    const operands = { q: flat(q), k: flat(k), v: flat(v), features, lengths: undefined };
    checkArguments('nprf2d', operands);
    const lines = Math.max(0, 2 * height - 1);
    const columns = Math.max(0, 2 * width - 1);
    checkBias('nprf2d', rpeBias, [q.dim(3), lines, columns], 'heads, 2 height - 1, 2 width - 1');
    const bias = reshape(rpeBias, [q.dim(3), lines * columns]);
    const out = evaluate({ ...operands, bias }, settings, imagePositions(height, width));
    return reshape(out, [q.dim(0), height, width, q.dim(3), v.dim(4)]);
  });
}
