import { add, cast, div, full, matmul, mean, mul, pad, permute, pointwise, reshape, scope, slice, tensor, type Tensor } from '@heed/core';
import { apply, asContiguous, empty, vjp } from '@heed/core/~internal';
import { type FeatureKernels, featureKernels } from '../scan/features/forward.js';
import { decayScan } from '../scan/decay-scan.js';
import { normAwareMap, normAwareSettings } from './feature-map.js';
import { type FeatureSettings, makeFeatures, pullFeatures, type RotaryTable } from './feature-kernels.js';
import { checkNalaformer, featureSettings, type NalaformerOptions } from './options.js';

/**
 * Norm-aware linear attention (NaLaFormer): o_i = phi(q_i) M / (phi(q_i).mean phi(k) + eps), M the mean of phi(k) v^T. Queries enter by their
 * direction raised to a power that grows with their norm, so that large queries attend sharply, as in softmax attention. Weights are
 * never negative. Cost is linear in tokens; all sums are f32.
 * @param q [batch, tokens, heads, headDim], f32 or f16; pictures as rows of tokens
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], dtype of q
 * @returns [batch, tokens, heads, valueDim], dtype of v; differentiable in q, k and v; queries of zero give zeros and no gradient
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED for lengths without causal
 */
export function nalaformer(q: Tensor, k: Tensor, v: Tensor, options: NalaformerOptions = {}): Tensor {
  checkNalaformer('nalaformer', q, k, v, options);
  const { causal = false, rope, eps = 1e-6, lengths, map = 'relu' } = options;
  const kernels = map === 'relu' ? signSplit : cosines;
  const tile = rope || v.size === 0 || q.dim(3) % 16 !== 0 ? undefined : kernels.tile(k, v);
  if (!tile) return composed(q, k, v, options);
  const { lambda, tau, keyPower, angleScale } = featureSettings(options);
  return apply<Tensor>({
    name: 'nalaformer',
    inputs: [q, k, v],
    forward: () => {
      const out = empty(v.device, v.shape, v.dtype);
      const values = { lambda, tau, keyPower, angleScale };
      kernels.run({ q, k, v, causal, normalise: true, eps, lengths, values }, { out }, tile);
      return out;
    },
    saves: () => [q, k, v, ...(lengths ? [lengths] : [])],
    backward: ([dOut = null], { saved }) => {
      const inputs = saved.slice(0, 3) as [Tensor, Tensor, Tensor];
      const given = saved[3] ? { ...options, lengths: saved[3] } : options;
      // from the features in memory, which were not made on the way
      return dOut ? vjp(() => composed(...inputs, given), inputs, [dOut]).grads : [null, null, null];
    },
  });
}

/** The kernels on fragments, for f16: features are made as tiles are loaded, and are never in a buffer. */
const signSplit: FeatureKernels = /* @__PURE__ */ featureKernels('nalaformer', normAwareSettings, /* @__PURE__ */ normAwareMap('relu'));
const cosines: FeatureKernels = /* @__PURE__ */ featureKernels('nalaformer-cosine', normAwareSettings, /* @__PURE__ */ normAwareMap('cos'));

/** The same from features in memory: any dtype, positions, gradients. */
function composed(q: Tensor, k: Tensor, v: Tensor, options: NalaformerOptions): Tensor {
  const { causal = false, rope, eps = 1e-6, lengths } = options;
  return scope(() => {
    if (v.size === 0) return mul(v, 0);
    const settings = featureSettings(options);
    const queries = features(q, { ...settings, of: 'q' }, rope);
    const keys = features(k, { ...settings, of: 'k' }, rope);
    if (causal) return causalForm(queries, keys, v, { eps, lengths, first: 0 });
    const byHead = (x: Tensor): Tensor => permute(x, [0, 2, 1, 3]);
    // means over keys, [batch, heads, 2 headDim, valueDim] and [.., 1]
    const share = 1 / q.dim(1);
    const state = mul(matmul(byHead(keys.turned ?? keys.phi), byHead(v), { transposeA: true, outDType: 'f32' }), share);
    const keyMean = reshape(mean(keys.phi, 1), [q.dim(0), q.dim(2), 2 * q.dim(3), 1]);
    const weight = add(matmul(byHead(queries.phi), keyMean), eps);
    const out = div(matmul(byHead(queries.turned ?? queries.phi), state), weight);
    return toDType(byHead(out), v);
  });
}

/** Features of a query or key: as they are, and rotated where there are positions. */
export interface Features {
  phi: Tensor;
  turned: Tensor | undefined;
}

/** The feature map as an op with a gradient. */
export function features(x: Tensor, settings: FeatureSettings, table: RotaryTable | undefined): Features {
  const [phi, turned] = apply<readonly Tensor[]>({
    name: 'nalaformerFeatures',
    inputs: [x],
    forward: () => {
      const made = makeFeatures(x, settings, { plain: true, table });
      return made.turned ? [made.phi as Tensor, made.turned] : [made.phi as Tensor];
    },
    saves: () => [x, ...(table ? [table.sin, table.cos] : [])],
    backward: ([dPhi, dTurned], { saved }) => {
      const [point, sin, cos] = saved as [Tensor, Tensor?, Tensor?];
      const cotangents = { ...(dPhi && { dPhi: asContiguous(dPhi) }), ...(dTurned && { dTurned: asContiguous(dTurned) }) };
      return [pullFeatures(point, settings, cotangents, sin && cos ? { sin, cos } : undefined)];
    },
  });
  return { phi: phi as Tensor, turned };
}

const quotient = /* @__PURE__ */ lazily();

// Running means of numerator and denominator, multiplied by the number of keys: n / (d + eps count).
function lazily(): (numerator: Tensor, denominator: Tensor, counts: Tensor, eps: number) => Tensor {
  let op: ReturnType<typeof pointwise> | undefined;
  return (...operands) => {
    op ??= pointwise((n, d, count, eps) => n.div(d.add(count.mul(eps))), { name: 'nalaformer-quotient' });
    return op(...operands);
  };
}

/** The causal form, by the scan that the package shares: sums of [v, 1], or with positions those of v and of 1 apart. */
function causalForm(
  queries: Features,
  keys: Features,
  v: Tensor,
  { eps, lengths, first }: { eps: number; lengths: Tensor | undefined; first: number },
): Tensor {
  const given = lengths ? { lengths } : {};
  const values = widened(v);
  const width = v.dim(3);
  const sums = queries.turned ? undefined : decayScan(queries.phi, keys.phi, values, given, 'nalaformer');
  const numerator = sums
    ? slice(sums, 3, 0, width)
    : decayScan(queries.turned as Tensor, keys.turned as Tensor, slice(values, 3, 0, width), given, 'nalaformer');
  const denominator = sums
    ? slice(sums, 3, width, width + 1)
    : decayScan(queries.phi, keys.phi, full(v.device, [...v.shape.slice(0, 3), 1], 1), given, 'nalaformer');
  return toDType(quotient(numerator, denominator, counts(v, first), eps), v);
}

/** v in f32 with a column of ones, whose sums are the denominators. */
export function widened(v: Tensor): Tensor {
  const whole = cast(v, 'f32');
  return pad(
    whole,
    [
      [0, 0],
      [0, 0],
      [0, 0],
      [0, 1],
    ],
    { value: 1 },
  );
}

/** Keys seen by each token, the first of which is number `first`: f32 [1, tokens, 1, 1]. */
export function counts(v: Tensor, first: number): Tensor {
  const tokens = v.dim(1);
  return tensor(
    v.device,
    Float32Array.from({ length: tokens }, (_, t) => first + t + 1),
    [1, tokens, 1, 1],
  );
}

/** Numerators over denominators, as `causalForm` has them. */
export function meanQuotient(sums: Tensor, v: Tensor, first: number, eps: number): Tensor {
  const width = v.dim(3);
  return toDType(quotient(slice(sums, 3, 0, width), slice(sums, 3, width, width + 1), counts(v, first), eps), v);
}

function toDType(x: Tensor, like: Tensor): Tensor {
  return x.dtype === like.dtype ? x : cast(x, like.dtype);
}
