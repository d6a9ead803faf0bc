import { pointwise, reshape, scope, type Tensor } from '@heed/core';
import { lawcat } from '@heed/linear/lawcat';
import { titans } from '@heed/linear/titans';
import type { Entry, Family, Opened } from '../entry.js';
import { input, inputAt } from '../inputs.js';
import { readRows, rowError, type Row, sampleRows, worst } from '../samples.js';

// lawcat (gates a token and channel, normaliser) in f16, on fragments, and in f32; titans (a deep memory, gradients at its start) in f32:
// weights that are states leave no room for halves.

const DIM = 64;
const HIDDEN = 128;
const CHUNK = 64;
/** Of the root mean square of a row. */
const TOLERANCE = 1e-4;
const HALF_TOLERANCE = 4e-3;

interface Setting {
  readonly tokens: number;
  readonly heads: number;
}

const q = inputAt('q');
const k = inputAt('k');
const v = inputAt('v');
const a = inputAt('gate');
const w1 = inputAt('w1');
const w2 = inputAt('w2');

const positive = {
  f16: pointwise((x) => x.exp(), { name: 'bench-features', dtype: 'f16' }),
  f32: pointwise((x) => x.exp(), { name: 'bench-features', dtype: 'f32' }),
};
const scaled = pointwise((x, factor) => x.mul(factor), { name: 'bench-scale' });

/** A row of lawcat: weights phi_q phi_k exp(sum of gates between), newest key first. */
function lawcatRow({ heads }: Setting, { token, head }: Row): Float64Array {
  const at = (t: number): number => (t * heads + head) * DIM;
  const decayed = Float64Array.from({ length: DIM }, (_, c) => Math.exp(q(at(token) + c)));
  const out = new Float64Array(DIM);
  let total = 0;
  for (let t = token; t >= 0; t--) {
    let weight = 0;
    for (let c = 0; c < DIM; c++) weight += (decayed[c] as number) * Math.exp(k(at(t) + c));
    total += weight;
    for (let c = 0; c < DIM; c++) out[c] = (out[c] as number) + weight * v(at(t) + c);
    // what is older than this token forgets by its gate
    for (let c = 0; c < DIM; c++) decayed[c] = (decayed[c] as number) * Math.exp(-Math.log1p(Math.exp(-a(at(t) + c))) / 16);
    if (decayed.every((x) => x < 1e-30)) break;
  }
  return out.map((x) => x / total);
}

function lawcatEntry(setting: Setting, dtype: 'f16' | 'f32'): Entry {
  const { tokens, heads } = setting;
  const bytes = tokens * heads * DIM * (dtype === 'f16' ? 2 : 4) * 5;
  return {
    id: `lawcat/${dtype}/d${DIM}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, keyDim: DIM, valueDim: DIM },
    dtype,
    pass: 'forward',
    work: {
      algorithm: 'one sweep: q, k, v and gates read once, out written once',
      bytes,
      flops: 4 * tokens * heads * DIM * (DIM + 1),
      units: dtype,
    },
    tolerance: dtype === 'f16' ? HALF_TOLERANCE : TOLERANCE,
    series: { name: `lawcat, d${DIM}, ${dtype}, forward`, tokens },
    open: (device) => {
      const [queries, keys] = ['q', 'k'].map((name) =>
        scope(() => positive[dtype](input(device, name, [1, tokens, heads, DIM], { dtype }))),
      ) as [Tensor, Tensor];
      const [values, gate] = ['v', 'gate'].map((name) => input(device, name, [1, tokens, heads, DIM], { dtype })) as [Tensor, Tensor];
      return opened(
        [queries, keys, values, gate],
        sampleRows(tokens, heads),
        () => lawcat(queries, keys, values, { gate }),
        (row) => lawcatRow(setting, row),
      );
    },
  };
}

// Rates and gates of the titans entry.
const [RATE, ETA, ALPHA] = [0.5, 0.6, 0.1];
const [KEY_SCALE, W1_SCALE, W2_SCALE] = [0.125, 0.1, 0.07];

/** Phi and the density of the normal distribution, for gelu and its slope. */
function gelu(x: number): [value: number, slope: number] {
  const t = 1 / (1 + 0.5 * (Math.abs(x) / Math.SQRT2));
  const z = Math.abs(x) / Math.SQRT2;
  // Press et al. 1992, section 6.2: relative error below 1.2e-7
  const series = [
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277,
  ];
  const erfc = t * Math.exp(-z * z + series.reduceRight((sum, c) => sum * t + c, 0));
  const phi = x >= 0 ? 1 - 0.5 * erfc : 0.5 * erfc;
  return [x * phi, phi + (x * Math.exp(-0.5 * x * x)) / Math.sqrt(2 * Math.PI)];
}

/** One head's rows of titans, in order of tokens, by the recurrence over whole chunks. */
function titansRows({ tokens, heads }: Setting, head: number, wanted: readonly number[]): Map<number, Float64Array> {
  const first = Float64Array.from({ length: DIM * HIDDEN }, (_, i) => W1_SCALE * w1(head * DIM * HIDDEN + i));
  const second = Float64Array.from({ length: HIDDEN * DIM }, (_, i) => W2_SCALE * w2(head * HIDDEN * DIM + i));
  const [start1, start2] = [first.slice(), second.slice()];
  const [u1, u2] = [new Float64Array(first.length), new Float64Array(second.length)];
  const [g1, g2] = [new Float64Array(first.length), new Float64Array(second.length)];
  const at = (t: number): number => (t * heads + head) * DIM;
  const forward = (
    x: (c: number) => number,
    left: Float64Array,
    right: Float64Array,
  ): { pre: Float64Array; act: Float64Array; out: Float64Array } => {
    const pre = new Float64Array(HIDDEN);
    for (let i = 0; i < DIM; i++)
      for (let j = 0, y = x(i); j < HIDDEN; j++) pre[j] = (pre[j] as number) + y * (left[i * HIDDEN + j] as number);
    const act = pre.map((y) => gelu(y)[0]);
    const out = new Float64Array(DIM);
    for (let i = 0; i < HIDDEN; i++)
      for (let j = 0; j < DIM; j++) out[j] = (out[j] as number) + (act[i] as number) * (right[i * DIM + j] as number);
    return { pre, act, out };
  };
  const found = new Map<number, Float64Array>();
  const last = Math.max(...wanted);
  const read = (t: number): void => {
    if (wanted.includes(t)) found.set(t, forward((c) => KEY_SCALE * q(at(t) + c), first, second).out);
  };
  for (let t = 0; t < Math.min(CHUNK - 1, tokens); t++) read(t);
  for (let n = 0; (n + 1) * CHUNK <= tokens && (n + 1) * CHUNK - 1 <= last; n++) {
    g1.fill(0);
    g2.fill(0);
    for (let t = n * CHUNK; t < (n + 1) * CHUNK; t++) {
      const key = Float64Array.from({ length: DIM }, (_, c) => KEY_SCALE * k(at(t) + c));
      const { pre, act, out } = forward((c) => key[c] as number, start1, start2);
      const d = out.map((y, c) => ((2 * RATE) / DIM) * (y - v(at(t) + c)));
      for (let i = 0; i < HIDDEN; i++) {
        let back = 0;
        for (let j = 0; j < DIM; j++) {
          g2[i * DIM + j] = (g2[i * DIM + j] as number) + (act[i] as number) * (d[j] as number);
          back += (d[j] as number) * (start2[i * DIM + j] as number);
        }
        back *= gelu(pre[i] as number)[1];
        for (let c = 0; c < DIM; c++) g1[c * HIDDEN + i] = (g1[c * HIDDEN + i] as number) + (key[c] as number) * back;
      }
    }
    const step = (w: Float64Array, u: Float64Array, g: Float64Array): void =>
      w.forEach((x, i) => {
        u[i] = ETA * (u[i] as number) - (g[i] as number);
        w[i] = (1 - ALPHA) * x + (u[i] as number);
      });
    step(first, u1, g1);
    step(second, u2, g2);
    for (let t = (n + 1) * CHUNK - 1; t < Math.min((n + 2) * CHUNK - 1, tokens); t++) read(t);
  }
  return found;
}

function titansEntry(setting: Setting): Entry {
  const { tokens, heads } = setting;
  const weights = 2 * DIM * HIDDEN;
  const chunks = Math.floor(tokens / CHUNK);
  const passes = 6; // gradient and momentum written and read, weights written and read
  return {
    id: `titans/f32/d${DIM}/h${HIDDEN}/c${CHUNK}/${tokens}/forward`,
    shape: { batch: 1, tokens, heads, headDim: DIM, hidden: HIDDEN, chunkSize: CHUNK },
    dtype: 'f32',
    pass: 'forward',
    work: {
      algorithm: "products for the gradient and the reading; a chunk's gradient, momentum and weights written and read once",
      bytes: heads * (chunks * weights * 4 * passes + tokens * DIM * 4 * 4),
      flops: tokens * heads * weights * (2 + 6),
      units: 'f32',
    },
    tolerance: TOLERANCE,
    series: { name: `titans, d${DIM}, hidden ${HIDDEN}, f32, forward`, tokens },
    open: (device) => {
      const shape = [1, tokens, heads, DIM];
      const small = (name: string, sizes: readonly number[], factor: number): Tensor =>
        scope(() => scaled(input(device, name, sizes), factor));
      const [queries, keys, values] = [small('q', shape, KEY_SCALE), small('k', shape, KEY_SCALE), input(device, 'v', shape)];
      // inputs are made a batch entry at a time
      const matrices = (name: string, inputs: number, outputs: number, factor: number): Tensor =>
        scope(() => reshape(scaled(input(device, name, [1, heads * inputs, outputs]), factor), [heads, inputs, outputs]));
      const [left, right] = [matrices('w1', DIM, HIDDEN, W1_SCALE), matrices('w2', HIDDEN, DIM, W2_SCALE)];
      const constant = (sizes: readonly number[], value: number): Tensor => scope(() => constantLike(input(device, 'q', sizes), value));
      const [learningRate, momentum, forget] = [
        constant([1, tokens, heads], RATE),
        constant([1, chunks, heads], ETA),
        constant([1, chunks, heads], ALPHA),
      ];
      const options = { memory: { weights: [left, right] }, learningRate, momentum, forget, chunkSize: CHUNK };
      const known = new Map<number, Map<number, Float64Array>>();
      const rows = titansSamples(tokens, heads);
      return opened(
        [queries, keys, values, left, right, learningRate, momentum, forget],
        rows,
        () => titans(queries, keys, values, options),
        ({ token, head }) => {
          if (!known.has(head))
            known.set(
              head,
              titansRows(
                setting,
                head,
                rows.filter((row) => row.head === head).map((row) => row.token),
              ),
            );
          return known.get(head)?.get(token) ?? new Float64Array(DIM);
        },
      );
    },
  };
}

const constantLike = pointwise((x, value) => x.mul(0).add(value), { name: 'bench-constant' });

/** Rows of one head, the last after `checkedTokens`: each token of the reference takes 10^5 operations on the host. */
const checkedTokens = 2048;

function titansSamples(tokens: number, heads: number): Row[] {
  const last = Math.min(tokens, checkedTokens) - 1;
  return [0, CHUNK - 1, Math.floor(last / 2), last].map((token) => ({ token: Math.min(token, last), head: heads - 1 }));
}

function opened(inputs: readonly Tensor[], rows: readonly Row[], run: () => Tensor, expected: (row: Row) => Float64Array): Opened {
  return {
    run: () => [run()],
    async sample([out]) {
      const got = await readRows(out as Tensor, rows);
      return () => worst(rows.map((row, i) => rowError(got[i] as Float64Array, expected(row))));
    },
    dispose: () => inputs.forEach((t) => t.dispose()),
  };
}

/** lawcat and titans, forward. */
export const memories: Family = ({ suite, software, sizes }) => {
  const heads = software ? 2 : 16;
  const all = (tokens: number): Entry[] => {
    const setting = { tokens, heads };
    return [lawcatEntry(setting, 'f16'), lawcatEntry(setting, 'f32'), titansEntry(setting)];
  };
  if (suite === 'kernels') return (sizes ?? (software ? [256] : [16384, 65536])).flatMap(all);
  if (suite === 'scaling') return (sizes ?? (software ? [128, 256] : [1024, 4096, 16384, 65536])).flatMap(all);
  return [];
};
