import { f64, type F64Array } from '@heed/core/testing';

/** Memory of the reference: weights [heads, in, out] and gamma [heads, headDim], shared by the batch. */
export interface TitansReferenceOptions {
  weights: readonly F64Array[];
  gamma?: F64Array | undefined;
  /** [batch, tokens, heads] */
  learningRate: F64Array;
  /** [batch, chunks, heads], one an order; none: no momentum. */
  momentum?: readonly F64Array[];
  /** [batch, chunks, heads] */
  forget: F64Array;
  chunkSize: number;
  gradientPeriod?: number | null;
  activation?: 'gelu' | 'silu' | 'relu' | 'tanh';
  lossReduction?: 'mean' | 'sum';
  lnEpsilon?: number;
  /** A chunk's gradient g of a tensor becomes g m tanh(|g| / m) / |g|. */
  gradientClamp?: number;
  /** Five Newton-Schulz steps on the updates of matrices. */
  orthogonalize?: boolean;
  /** Weights become point + gate (weights - point) where the gradient point moves, at the end of a period. */
  transition?: number;
}

/**
 * Titans' memory token by token in float64 (Behrouz et al. 2024, section 3): u_n = eta_n u_(n-1) - g_n,
 * W_n = (1 - alpha_n) W_(n-1) + u_n, o_t = f_W(q_t) with W behind floor((t + 1) / chunkSize) chunks. The inner
 * gradient is written out, layer by layer.
 * @param q [batch, tokens, heads, headDim]; k and v as q
 * @returns out, and the final tensors [batch, heads, ...] with their (first-order) momentum, weights first, then gamma
 */
export function referenceTitans(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  options: TitansReferenceOptions,
): { out: F64Array; memory: F64Array[]; momentum: F64Array[] } {
  const [batch, tokens, heads, d] = q.shape as [number, number, number, number];
  const { chunkSize, gradientPeriod = null, momentum = [] } = options;
  const tensors = [...options.weights, ...(options.gamma ? [options.gamma] : [])];
  const chunks = Math.floor(tokens / chunkSize);
  const out = f64(q.shape);
  const finals = tensors.map((w) => f64([batch, ...w.shape]));
  const finalMomentum = tensors.map((w) => f64([batch, ...w.shape]));
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const row = (x: F64Array, t: number): Float64Array =>
        x.values.subarray(((b * tokens + t) * heads + h) * d, ((b * tokens + t) * heads + h + 1) * d);
      const ofHead = (w: F64Array): Float64Array => w.values.slice((h * w.values.length) / heads, ((h + 1) * w.values.length) / heads);
      const gate = (x: F64Array, n: number): number => x.values[(b * x.shape[1]! + n) * heads + h] as number;
      let weights: Float64Array[] = tensors.map(ofHead);
      let point = weights;
      const moments = momentum.map(() => weights.map((w) => new Float64Array(w.length)));
      const read = (t: number): void => row(out, t).set(recallRow(weights, row(q, t), options).out);
      for (let t = 0; t < Math.min(tokens, chunkSize - 1); t++) read(t);
      for (let n = 0; n < chunks; n++) {
        let update: Float64Array[] = weights.map((w) => new Float64Array(w.length));
        for (let t = n * chunkSize; t < (n + 1) * chunkSize; t++) {
          const rate = options.learningRate.values[(b * tokens + t) * heads + h] as number;
          gradientOf(point, row(k, t), row(v, t), options).forEach((g, i) => g.forEach((x, j) => (update[i]![j]! -= rate * x)));
        }
        if (options.gradientClamp !== undefined) update = update.map((u) => clamped(u, options.gradientClamp as number));
        momentum.forEach((eta, o) =>
          update.forEach((u, i) =>
            u.forEach((x, j) => {
              moments[o]![i]![j] = gate(eta, n) * moments[o]![i]![j]! + x;
              u[j] = moments[o]![i]![j]!;
            }),
          ),
        );
        if (options.orthogonalize)
          update = update.map((u, i) => (tensors[i]!.shape.length === 3 ? orthogonal(u, tensors[i]!.shape[2]!) : u));
        weights = weights.map((w, i) => w.map((x, j) => (1 - gate(options.forget, n)) * x + update[i]![j]!));
        if (gradientPeriod !== null && ((n + 1) * chunkSize) % gradientPeriod === 0) {
          const from = point;
          weights = weights.map((w, i) => w.map((x, j) => from[i]![j]! + (options.transition ?? 1) * (x - from[i]![j]!)));
          point = weights;
        }
        for (let t = (n + 1) * chunkSize - 1; t < Math.min(tokens, (n + 2) * chunkSize - 1); t++) read(t);
      }
      weights.forEach((w, i) => finals[i]!.values.set(w, (b * heads + h) * w.length));
      moments[0]?.forEach((w, i) => finalMomentum[i]!.values.set(w, (b * heads + h) * w.length));
    }
  }
  return { out, memory: finals, momentum: finalMomentum };
}

/** g m tanh(|g| / m) / |g| */
function clamped(g: Float64Array, most: number): Float64Array {
  const size = Math.hypot(...g);
  return size === 0 ? g : g.map((x) => (x * most * Math.tanh(size / most)) / size);
}

/** Newton-Schulz: t <- 3.4445 t - 4.775 (t t') t + 2.0315 (t t')^2 t, five times from t / |t|. */
function orthogonal(matrix: Float64Array, columns: number): Float64Array {
  const size = Math.max(Math.hypot(...matrix), 1e-7);
  const rows = matrix.length / columns;
  const product = (a: Float64Array, b: Float64Array): Float64Array =>
    new Float64Array(rows * columns).map((_, at) => {
      let sum = 0;
      for (let r = 0; r < rows; r++) sum += a[Math.floor(at / columns) * rows + r]! * b[r * columns + (at % columns)]!;
      return sum;
    });
  let t = matrix.map((x) => x / size);
  for (let step = 0; step < 5; step++) {
    const from = t;
    const gram = new Float64Array(rows * rows).map((_, at) => {
      let sum = 0;
      for (let c = 0; c < columns; c++) sum += from[Math.floor(at / rows) * columns + c]! * from[(at % rows) * columns + c]!;
      return sum;
    });
    const once = product(gram, from);
    const twice = product(gram, once);
    t = from.map((x, i) => 3.4445 * x - 4.775 * once[i]! + 2.0315 * twice[i]!);
  }
  return t;
}

interface Pass {
  out: Float64Array;
  /** Input of each layer and preactivations of all but the last. */
  inputs: Float64Array[];
  pre: Float64Array[];
  hat: Float64Array;
  inverse: number;
}

/** f(x) for one row, and what the gradient needs. */
function recallRow(tensors: readonly Float64Array[], x: Float64Array, options: TitansReferenceOptions): Pass {
  const layers = options.weights.length;
  const gamma = options.gamma && tensors[layers];
  const inputs: Float64Array[] = [];
  const pre: Float64Array[] = [];
  let m = x;
  for (let l = 0; l < layers; l++) {
    if (l > 0) pre.push(m);
    const input = l > 0 ? m.map((y) => activation(y, options.activation)[0]) : m;
    inputs.push(input);
    const outputs = tensors[l]!.length / input.length;
    m = new Float64Array(outputs).map((_, j) => input.reduce((sum, y, i) => sum + y * tensors[l]![i * outputs + j]!, 0));
  }
  const mean = m.reduce((a, b) => a + b, 0) / m.length;
  const inverse = 1 / Math.sqrt(m.reduce((a, b) => a + (b - mean) ** 2, 0) / m.length + (options.lnEpsilon ?? 1e-5));
  const hat = m.map((y) => (y - mean) * inverse);
  return { out: gamma ? hat.map((y, i) => y * (gamma[i]! + 1) + x[i]!) : m, inputs, pre, hat, inverse };
}

/** Gradient of mean or sum over d of (f(k) - v)^2 by every tensor. */
function gradientOf(tensors: readonly Float64Array[], k: Float64Array, v: Float64Array, options: TitansReferenceOptions): Float64Array[] {
  const layers = options.weights.length;
  const pass = recallRow(tensors, k, options);
  const factor = options.lossReduction === 'sum' ? 2 : 2 / k.length;
  const df = pass.out.map((y, i) => factor * (y - v[i]!));
  const grads: Float64Array[] = [];
  let d = df;
  const gamma = options.gamma && tensors[layers];
  if (gamma) {
    const y = df.map((x, i) => x * (1 + gamma[i]!));
    const meanY = y.reduce((a, b) => a + b, 0) / y.length;
    const meanYHat = y.reduce((a, b, i) => a + b * pass.hat[i]!, 0) / y.length;
    d = y.map((x, i) => (x - meanY - pass.hat[i]! * meanYHat) * pass.inverse);
  }
  for (let l = layers - 1; l >= 0; l--) {
    const input = pass.inputs[l]!;
    const dm = d;
    grads.unshift(new Float64Array(input.length * dm.length).map((_, at) => input[Math.floor(at / dm.length)]! * dm[at % dm.length]!));
    if (l > 0)
      d = input.map(
        (_, i) =>
          dm.reduce((sum, x, j) => sum + x * tensors[l]![i * dm.length + j]!, 0) * activation(pass.pre[l - 1]![i]!, options.activation)[1],
      );
  }
  if (gamma) grads.push(df.map((x, i) => x * pass.hat[i]!));
  return grads;
}

/** An activation and its slope. */
function activation(x: number, name: TitansReferenceOptions['activation'] = 'gelu'): [number, number] {
  if (name === 'relu') return [Math.max(0, x), x > 0 ? 1 : 0];
  if (name === 'tanh') return [Math.tanh(x), 1 - Math.tanh(x) ** 2];
  const s = 1 / (1 + Math.exp(-x));
  if (name === 'silu') return [x * s, s * (1 + x * (1 - s))];
  const phi = 0.5 * (1 + erf(x * Math.SQRT1_2));
  return [x * phi, phi + (x * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI)];
}

/** The error function: its series below 3, the continued fraction of its complement above. */
function erf(x: number): number {
  const a = Math.abs(x);
  if (a > 3) {
    let fraction = 0;
    for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
    return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * (a + fraction)));
  }
  let term = a;
  let sum = a;
  for (let n = 1; n < 80; n++) {
    term *= (-a * a) / n;
    sum += term / (2 * n + 1);
  }
  return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
}
