import { layerNorm, matmul, mean, mul, pointwise, reshape, square, sub, sum, type Tensor, unsqueeze } from '@heed/core';
import { activationSlope, activate, type TitansActivation } from './activation.js';

/**
 * The memory network: f(x) = mlp(x), or LN(mlp(x)) (gamma + 1) + x where gamma is given; mlp(x) = act(x w1) w2 ..., without
 * biases. Its tensors are the state of the recurrence; at the start of a sequence they are learned and shared by the batch.
 */
export interface TitansMemory {
  [name: string]: Tensor | readonly Tensor[] | undefined;
  /** [heads, inputs, outputs] each, from headDim to headDim; one is a linear memory. */
  weights: readonly Tensor[];
  /** [heads, headDim]; given: the residual wrapper with layer norm. */
  gamma?: Tensor | undefined;
}

/** What the network is besides its tensors. */
export interface MemoryForm {
  activation: TitansActivation;
  lnEpsilon: number;
  precision: 'f32' | 'f16';
}

/** The tensors of a memory in one list: weights, then gamma. */
export function tensorsOf(memory: TitansMemory): Tensor[] {
  return [...memory.weights, ...(memory.gamma ? [memory.gamma] : [])];
}

/** The memory of a list of tensors: the last one is gamma where there is one. */
export function memoryOf(tensors: readonly Tensor[], residual: boolean): TitansMemory {
  const gamma = residual ? tensors.at(-1) : undefined;
  return gamma ? { weights: tensors.slice(0, -1), gamma } : { weights: tensors };
}

const wrapped = pointwise((normed, gamma, x) => normed.mul(gamma.add(1)).add(x), { name: 'titans-residual' });
const surprised = pointwise((v, f, rate, factor) => v.sub(f).mul(rate).mul(factor), { name: 'titans-surprise' });
const inverseOf = pointwise((variance, epsilon) => variance.add(epsilon).inverseSqrt(), { name: 'titans-inverse-deviation' });
const scaled = pointwise((y, gamma) => y.mul(gamma.add(1)), { name: 'titans-gain' });
const normGradient = pointwise((y, meanY, hat, meanYHat, inverse) => y.sub(meanY).sub(hat.mul(meanYHat)).mul(inverse), {
  name: 'titans-norm-gradient',
});

/**
 * f(x) for rows of x.
 * @param memory tensors with the batch axes of x, [..., inputs, outputs] and [..., headDim]
 * @param x [..., rows, headDim]
 */
export function recall(memory: TitansMemory, x: Tensor, { activation, lnEpsilon, precision }: MemoryForm): Tensor {
  let m = x;
  memory.weights.forEach((w, i) => {
    m = matmul(i > 0 ? activate(m, activation) : m, w, { precision, outDType: 'f32' });
  });
  if (!memory.gamma) return m;
  return wrapped(layerNorm(m, undefined, undefined, { epsilon: lnEpsilon }), unsqueeze(memory.gamma, -2), x);
}

/**
 * Minus the gradient of sum_t rate_t l(f(k_t), v_t) over each chunk, for each tensor of the memory, in ordinary ops: the outer
 * pass differentiates them (the sheet's inner gradient: df, dgamma, dm, then down the layers through act').
 * @param point where it is taken, tensors [batch or 1, heads, ...]
 * @param k [batch, heads, chunks * chunkSize, headDim]; v as k
 * @param rate [batch, heads, chunks * chunkSize, 1]
 * @param factor 2 / headDim for the mean of squares, 2 for their sum
 * @returns [batch, heads, chunks, ...] each, in the order of `tensorsOf`
 */
export function surprises(
  point: TitansMemory,
  k: Tensor,
  v: Tensor,
  rate: Tensor,
  shape: { chunks: number; factor: number },
  form: MemoryForm,
): Tensor[] {
  const { activation, lnEpsilon, precision } = form;
  const product = { precision, outDType: 'f32' } as const;
  const [batch, heads, rows] = [k.dim(0), k.dim(1), k.dim(2)];
  const chunked = (x: Tensor): Tensor => reshape(x, [batch, heads, shape.chunks, rows / shape.chunks, x.dim(3)]);
  const inputs: Tensor[] = [];
  const slopes: Tensor[] = [];
  let m = k;
  point.weights.forEach((w, i) => {
    if (i > 0) slopes.push(activationSlope(m, activation));
    inputs.push(i > 0 ? activate(m, activation) : m);
    m = matmul(inputs[i] as Tensor, w, product);
  });
  const out: Tensor[] = [];
  let d: Tensor;
  if (point.gamma) {
    const gamma = unsqueeze(point.gamma, -2);
    const centred = sub(m, mean(m, -1, { keepDims: true }));
    const inverse = inverseOf(mean(square(centred), -1, { keepDims: true }), lnEpsilon);
    const hat = mul(centred, inverse);
    const df = surprised(v, wrapped(hat, gamma, k), rate, shape.factor);
    out.push(sum(chunked(mul(df, hat)), 3));
    const y = scaled(df, gamma);
    d = normGradient(y, mean(y, -1, { keepDims: true }), hat, mean(mul(y, hat), -1, { keepDims: true }), inverse);
  } else d = surprised(v, m, rate, shape.factor);
  for (let i = point.weights.length - 1; i >= 0; i--) {
    out.unshift(matmul(chunked(inputs[i] as Tensor), chunked(d), { ...product, transposeA: true }));
    if (i > 0) d = mul(matmul(d, point.weights[i] as Tensor, { ...product, transposeB: true }), slopes[i - 1] as Tensor);
  }
  return out;
}
