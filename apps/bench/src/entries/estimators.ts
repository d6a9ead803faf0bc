import { type Device, reshape, type Tensor } from '@heed/core';
import { lla } from '@heed/linear/lla';
import { nprf } from '@heed/linear/nprf';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { readRows, rowError, sampleRows, worst } from '../samples.js';

// Techniques of @heed/linear whose rows look at every key: local linear attention, and random features with relative positions.

const DIM = 64;
const RIDGE = 10;
/** Iterations of conjugate gradients that headDim 64 takes at this ridge, for the floor. */
const ITERATIONS = 5;

interface Setting {
  readonly tokens: number;
  readonly heads: number;
}

const at = (name: string, heads: number, head: number): ((token: number) => Float64Array) => {
  const number = inputAt(name);
  return (token) => Float64Array.from({ length: DIM }, (_, c) => number((token * heads + head) * DIM + c));
};

const dot = (a: Float64Array, b: Float64Array): number => a.reduce((sum, x, i) => sum + x * (b[i] as number), 0);

/** Operands [1, tokens, heads, DIM], and rows of the output against `row`. */
function opened(
  device: Device,
  { tokens, heads }: Setting,
  run: (q: Tensor, k: Tensor, v: Tensor) => Tensor,
  row: (head: number, token: number) => Float64Array,
  further: readonly Tensor[] = [],
): Opened {
  const [q, k, v] = ['q', 'k', 'v'].map((name) => input(device, name, [1, tokens, heads, DIM], { dtype: 'f32' })) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  const rows = sampleRows(tokens, heads);
  return {
    run: () => [run(q, k, v)],
    async sample([out]) {
      const got = await readRows(out as Tensor, rows);
      return () => worst(rows.map(({ token, head }, i) => rowError(got[i] as Float64Array, row(head, token))));
    },
    dispose: () => [q, k, v, ...further].forEach((t) => t.dispose()),
  };
}

/** x of A x = b by elimination; A symmetric positive definite, changed. */
function solve(a: Float64Array[], b: Float64Array): Float64Array {
  const n = b.length;
  const x = Float64Array.from(b);
  for (let c = 0; c < n; c++) {
    const pivot = a[c] as Float64Array;
    for (let r = c + 1; r < n; r++) {
      const line = a[r] as Float64Array;
      const share = (line[c] as number) / (pivot[c] as number);
      for (let d = c; d < n; d++) line[d]! -= share * (pivot[d] as number);
      x[r]! -= share * (x[c] as number);
    }
  }
  for (let r = n - 1; r >= 0; r--) {
    const line = a[r] as Float64Array;
    for (let c = r + 1; c < n; c++) x[r]! -= (line[c] as number) * (x[c] as number);
    x[r]! /= line[r] as number;
  }
  return x;
}

/** A row of local linear attention: the intercept of the weighted ridge regression at the query. */
function llaRow(heads: number, head: number, token: number): Float64Array {
  const [q, k, v] = ['q', 'k', 'v'].map((name) => at(name, heads, head)) as [
    ReturnType<typeof at>,
    ReturnType<typeof at>,
    ReturnType<typeof at>,
  ];
  const query = q(token);
  const keys = Array.from({ length: token + 1 }, (_, j) => k(j));
  const scores = keys.map((key) => dot(query, key) / Math.sqrt(DIM));
  const top = scores.reduce((m, s) => Math.max(m, s), -Infinity);
  const weights = scores.map((s) => Math.exp(s - top));
  const omega = weights.reduce((sum, w) => sum + w, 0);
  const z = keys.map((key) => key.map((x, c) => x - (query[c] as number)));
  const mu = new Float64Array(DIM);
  const sigma = Array.from({ length: DIM }, () => new Float64Array(DIM));
  z.forEach((zj, j) => {
    for (let c = 0; c < DIM; c++) {
      const wz = (weights[j] as number) * (zj[c] as number);
      mu[c]! += wz;
      const line = sigma[c] as Float64Array;
      for (let d = 0; d < DIM; d++) line[d]! += wz * (zj[d] as number);
    }
  });
  sigma.forEach((line, c) => (line[c]! += RIDGE * omega));
  const rho = solve(sigma, mu);
  const delta = omega - dot(mu, rho);
  const out = new Float64Array(DIM);
  z.forEach((zj, j) => {
    const share = ((weights[j] as number) * (1 - dot(zj, rho))) / delta;
    v(j).forEach((x, c) => (out[c]! += share * x));
  });
  return out;
}

function llaEntry({ tokens, heads }: Setting): Entry {
  const pairs = (heads * tokens * (tokens + 1)) / 2;
  return {
    id: `lla/f32/d${DIM}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, headDim: DIM, ridgeLambda: RIDGE },
    dtype: 'f32',
    pass: 'forward',
    work: {
      algorithm: `weights and their mean, ${ITERATIONS} iterations of conjugate gradients, outputs: ${10 + 6 * ITERATIONS} headDim operations a visible pair`,
      bytes: 4 * tokens * heads * DIM * 4,
      flops: pairs * (10 + 6 * ITERATIONS) * DIM,
      units: 'f32',
    },
    memory: { bytes: 7 * tokens * heads * DIM * 4, why: 'q, k, v, out, the mean key, mu and rho' },
    tolerance: 2e-4,
    series: { name: `lla, d${DIM}, f32, forward`, tokens },
    open: (device) =>
      opened(
        device,
        { tokens, heads },
        (q, k, v) => lla(q, k, v, { ridgeLambda: RIDGE }),
        (head, token) => llaRow(heads, head, token),
      ),
  };
}

const bias = inputAt('bias');
const feature = inputAt('feature');

/** A row of nprf: weights exp(b) phi(q).phi(k) over their sum; the factors m^-1/2 exp(-1/2) of phi cancel. */
function nprfRow({ tokens, heads }: Setting, head: number, token: number): Float64Array {
  const [q, k, v] = ['q', 'k', 'v'].map((name) => at(name, heads, head)) as [
    ReturnType<typeof at>,
    ReturnType<typeof at>,
    ReturnType<typeof at>,
  ];
  const rows = Array.from({ length: DIM }, (_, r) => Float64Array.from({ length: DIM }, (_, c) => feature((head * DIM + r) * DIM + c)));
  const phi = (x: Float64Array): Float64Array => {
    const length = Math.sqrt(dot(x, x));
    return Float64Array.from(rows, (row) => Math.exp(dot(row, x) / length));
  };
  const own = phi(q(token));
  const out = new Float64Array(DIM);
  let total = 0;
  for (let j = 0; j <= token; j++) {
    const weight = Math.exp(bias(head * (2 * tokens - 1) + j - token + tokens - 1)) * dot(own, phi(k(j)));
    total += weight;
    v(j).forEach((x, c) => (out[c]! += weight * x));
  }
  return out.map((x) => x / total);
}

function nprfEntry({ tokens, heads }: Setting): Entry {
  const pairs = (heads * tokens * (tokens + 1)) / 2;
  const direct = 2 * pairs * (2 * DIM + 1);
  const length = 2 ** Math.ceil(Math.log2(2 * tokens - 1));
  const transforms = heads * DIM * ((DIM + 1) / 2) * 2 * 5 * length * Math.log2(length);
  return {
    id: `nprf/f32/m${DIM}/d${DIM}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, features: DIM, headDim: DIM, valueDim: DIM },
    dtype: 'f32',
    pass: 'forward',
    work: {
      algorithm: 'the fewer operations of visible pairs (2 (features + valueDim + 1) each) and of transforms of all features and columns',
      bytes: 4 * tokens * heads * DIM * 4,
      flops: Math.min(direct, transforms),
      units: 'f32',
    },
    tolerance: 2e-4,
    series: { name: `nprf, m${DIM}, d${DIM}, f32, forward`, tokens },
    open: (device) => {
      const flat = input(device, 'feature', [heads * DIM, DIM], { dtype: 'f32' });
      const features = reshape(flat, [heads, DIM, DIM]);
      const table = input(device, 'bias', [heads, 2 * tokens - 1], { dtype: 'f32' });
      return opened(
        device,
        { tokens, heads },
        (q, k, v) => nprf(q, k, v, features, table, { causal: true }),
        (head, token) => nprfRow({ tokens, heads }, head, token),
        [flat, features, table],
      );
    },
  };
}

/** lla and nprf, causal, f32. */
export const estimators: Family = ({ suite, software, sizes }) => {
  // tables of 4 heads or more are whole vectors
  const heads = software ? 4 : 16;
  const both = (tokens: readonly number[]): Entry[] =>
    tokens.flatMap((n) => [llaEntry({ tokens: n, heads }), nprfEntry({ tokens: n, heads })]);
  if (suite === 'kernels') return both(sizes ?? (software ? [128] : [4096]));
  return [];
};
