import { elements, f64, f64Like, indexOf } from '@heed/core/testing';
import type { F64Array } from '@heed/core/testing';

/** Options of the reference; every list has one entry a spatial axis. */
export interface FnaReferenceOptions {
  /** Keys seen along each axis, the own one included; odd or even. */
  window: readonly number[];
  /** Default 1. */
  dilation?: readonly number[] | undefined;
  /** Default false. */
  causal?: readonly boolean[] | undefined;
  /** Factor on q.k; default 1/sqrt(headDim). */
  scale?: number | undefined;
  /** Relative position bias, [heads, 2 window_0 - 1, 2 window_1 - 1, ...]; not defined with a causal axis. */
  bias?: F64Array | undefined;
  /** Keys and values that every query sees, [batch, tokens, kvHeads, headDim or valueDim]. */
  additionalKeys?: F64Array | undefined;
  additionalValues?: F64Array | undefined;
}

export interface FnaReferenceResult {
  /** [batch, ...grid, heads, valueDim]. */
  out: F64Array;
  /** Natural logsumexp, [batch, ...grid, heads]. */
  lse: F64Array;
}

export interface FnaReferenceGradients {
  q: F64Array;
  k: F64Array;
  v: F64Array;
  bias?: F64Array;
  additionalKeys?: F64Array;
  additionalValues?: F64Array;
}

/**
 * Neighborhood attention in float64 (Hassani, Hwu, Shi 2024, arXiv 2403.04690; mask as in NATTEN): q is
 * [batch, ...grid, heads, headDim], k and v have the same grid and kvHeads heads; query head h reads floor(h kvHeads / heads).
 */
export function referenceFna(q: F64Array, k: F64Array, v: F64Array, options: FnaReferenceOptions): FnaReferenceResult {
  const size = sizes(q, k, v, options);
  const out = f64([size.batch, ...size.grid, size.heads, size.valueDim]);
  const lse = f64([size.batch, ...size.grid, size.heads]);
  forEachRow(size, options, (b, token, h, keys) => {
    const row = (b * size.tokens + token) * size.heads + h;
    const scores = keys.map((key) => score(q, k, options, size, b, row, h, key));
    const max = Math.max(...scores);
    const rowLse = max + Math.log(scores.reduce((sum, s) => sum + Math.exp(s - max), 0));
    lse.values[row] = rowLse;
    keys.forEach((key, n) => {
      const p = Math.exp((scores[n] as number) - rowLse);
      const [values, place] = valueOf(v, options, size, b, h, key);
      for (let d = 0; d < size.valueDim; d++) add(out, row * size.valueDim + d, p * at(values, place + d));
    });
  });
  return { out, lse };
}

/**
 * The gradients of {@link referenceFna} from cotangents of out and of lse (either may be left out): dS = P (dP - delta) with
 * delta = sum_d out dOut - dLse; the bias collects dS by relative position.
 */
export function referenceFnaGradients(
  q: F64Array,
  k: F64Array,
  v: F64Array,
  cotangents: { out?: F64Array | undefined; lse?: F64Array | undefined },
  options: FnaReferenceOptions,
): FnaReferenceGradients {
  const size = sizes(q, k, v, options);
  const scale = options.scale ?? 1 / Math.sqrt(size.headDim);
  const { out, lse } = referenceFna(q, k, v, options);
  const dq = f64Like(q);
  const dk = f64Like(k);
  const dv = f64Like(v);
  const dBias = options.bias && f64Like(options.bias);
  const dAdditionalKeys = options.additionalKeys && f64Like(options.additionalKeys);
  const dAdditionalValues = options.additionalValues && f64Like(options.additionalValues);
  forEachRow(size, options, (b, token, h, keys) => {
    const row = (b * size.tokens + token) * size.heads + h;
    const dOut = (d: number): number => cotangents.out?.values[row * size.valueDim + d] ?? 0;
    let delta = -(cotangents.lse?.values[row] ?? 0);
    for (let d = 0; d < size.valueDim; d++) delta += at(out, row * size.valueDim + d) * dOut(d);
    for (const key of keys) {
      const p = Math.exp(score(q, k, options, size, b, row, h, key) - at(lse, row));
      const [values, valuePlace] = valueOf(v, options, size, b, h, key);
      const dValues = key.additional ? (dAdditionalValues as F64Array) : dv;
      let dP = 0;
      for (let d = 0; d < size.valueDim; d++) {
        dP += dOut(d) * at(values, valuePlace + d);
        add(dValues, valuePlace + d, p * dOut(d));
      }
      const dScore = p * (dP - delta);
      if (dBias && !key.additional) add(dBias, biasPlace(options, h, key), dScore);
      const [keyValues, keyPlace] = keyOf(k, options, size, b, h, key);
      const dKeys = key.additional ? (dAdditionalKeys as F64Array) : dk;
      for (let d = 0; d < size.headDim; d++) {
        add(dq, row * size.headDim + d, scale * dScore * at(keyValues, keyPlace + d));
        add(dKeys, keyPlace + d, scale * dScore * at(q, row * size.headDim + d));
      }
    }
  });
  return {
    q: dq,
    k: dk,
    v: dv,
    ...(dBias && { bias: dBias }),
    ...(dAdditionalKeys && { additionalKeys: dAdditionalKeys }),
    ...(dAdditionalValues && { additionalValues: dAdditionalValues }),
  };
}

/** A coordinate that a query sees along one axis, with its distance from the query in steps of the dilation. */
export interface AxisNeighbor {
  coordinate: number;
  distance: number;
}

/**
 * The coordinates that coordinate c sees on an axis. Tokens of one dilation group (c mod dilation) see each other; within the
 * group of n tokens the window begins floor(window / 2) before the token and is shifted inside at the borders, never shortened.
 * Causal: the token and the window - 1 before it, as far as there are any.
 */
export function referenceAxisNeighbors(length: number, window: number, dilation: number, causal: boolean, c: number): AxisNeighbor[] {
  const group = c % dilation;
  const i = Math.floor(c / dilation);
  const n = Math.ceil((length - group) / dilation);
  const start = causal ? Math.max(i - window + 1, 0) : Math.min(Math.max(i - Math.floor(window / 2), 0), n - window);
  const end = causal ? i + 1 : start + window;
  return Array.from({ length: end - start }, (_, j) => ({ coordinate: (start + j) * dilation + group, distance: start + j - i }));
}

/** A key that a query sees: a token of the grid, with its relative position on each axis, or an additional one. */
interface SeenKey {
  token: number;
  distance: readonly number[];
  additional: boolean;
}

interface Sizes {
  batch: number;
  grid: number[];
  tokens: number;
  additional: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
}

function sizes(q: F64Array, k: F64Array, v: F64Array, options: FnaReferenceOptions): Sizes {
  const grid = q.shape.slice(1, -2);
  return {
    batch: q.shape[0] as number,
    grid,
    tokens: elements(grid),
    additional: options.additionalKeys?.shape[1] ?? 0,
    heads: q.shape.at(-2) as number,
    kvHeads: k.shape.at(-2) as number,
    headDim: q.shape.at(-1) as number,
    valueDim: v.shape.at(-1) as number,
  };
}

function forEachRow(
  size: Sizes,
  options: FnaReferenceOptions,
  visit: (b: number, token: number, h: number, keys: SeenKey[]) => void,
): void {
  for (let token = 0; token < size.tokens; token++) {
    const keys = seenKeys(size, options, indexOf(size.grid, token));
    for (let b = 0; b < size.batch; b++) for (let h = 0; h < size.heads; h++) visit(b, token, h, keys);
  }
}

/** The product of what the axes let through, then the additional tokens. */
function seenKeys({ grid, additional }: Sizes, options: FnaReferenceOptions, coordinates: readonly number[]): SeenKey[] {
  let keys: SeenKey[] = [{ token: 0, distance: [], additional: false }];
  for (const [axis, c] of coordinates.entries()) {
    const length = grid[axis] as number;
    const neighbors = referenceAxisNeighbors(
      length,
      options.window[axis] as number,
      options.dilation?.[axis] ?? 1,
      options.causal?.[axis] ?? false,
      c,
    );
    keys = keys.flatMap((key) =>
      neighbors.map(({ coordinate, distance }) => ({
        token: key.token * length + coordinate,
        distance: [...key.distance, distance],
        additional: false,
      })),
    );
  }
  for (let token = 0; token < additional; token++) keys.push({ token, distance: [], additional: true });
  return keys;
}

function score(
  q: F64Array,
  k: F64Array,
  options: FnaReferenceOptions,
  size: Sizes,
  b: number,
  row: number,
  h: number,
  key: SeenKey,
): number {
  const [keys, place] = keyOf(k, options, size, b, h, key);
  let dot = 0;
  for (let d = 0; d < size.headDim; d++) dot += at(q, row * size.headDim + d) * at(keys, place + d);
  const scaled = dot * (options.scale ?? 1 / Math.sqrt(size.headDim));
  return options.bias && !key.additional ? scaled + at(options.bias, biasPlace(options, h, key)) : scaled;
}

/** rpb[h, j_0 - i_0 + window_0 - 1, ...]. */
function biasPlace({ window }: FnaReferenceOptions, h: number, { distance }: SeenKey): number {
  return distance.reduce((place, step, axis) => place * (2 * (window[axis] as number) - 1) + step + (window[axis] as number) - 1, h);
}

function keyOf(k: F64Array, options: FnaReferenceOptions, size: Sizes, b: number, h: number, key: SeenKey): [F64Array, number] {
  return [key.additional ? (options.additionalKeys as F64Array) : k, kvRow(size, b, h, key) * size.headDim];
}

function valueOf(v: F64Array, options: FnaReferenceOptions, size: Sizes, b: number, h: number, key: SeenKey): [F64Array, number] {
  return [key.additional ? (options.additionalValues as F64Array) : v, kvRow(size, b, h, key) * size.valueDim];
}

function kvRow({ tokens, additional, heads, kvHeads }: Sizes, b: number, h: number, key: SeenKey): number {
  return (b * (key.additional ? additional : tokens) + key.token) * kvHeads + Math.floor((h * kvHeads) / heads);
}

function at(array: F64Array, position: number): number {
  return array.values[position] as number;
}

function add(array: F64Array, position: number, amount: number): void {
  array.values[position] = at(array, position) + amount;
}
