import { HeedError, type Tensor } from '@heed/core';

/** Options of `fna`. Lists have one entry a spatial axis; one number or boolean stands for all axes. */
export interface FnaOptions {
  /** Factor on q.k. Default 1/sqrt(headDim). */
  scale?: number;
  /** Keys seen along each axis, the own one included; odd or even (even ones reach one further back). */
  window: number | readonly number[];
  /** Step between the tokens that see each other. Default 1. */
  dilation?: number | readonly number[];
  /** A query sees keys up to its own coordinate. Default false. */
  causal?: boolean | readonly boolean[];
  /** Relative position bias, f32 [heads, 2 window_0 - 1, ...], added after the scale. Differentiable. Not with a causal axis. */
  bias?: Tensor;
  /** Keys that every query sees, [batch, tokens, kvHeads, headDim]. Differentiable. */
  additionalKeys?: Tensor;
  /** Their values, [batch, tokens, kvHeads, valueDim]. */
  additionalValues?: Tensor;
}

/** A checked problem. */
export interface FnaProblem {
  batch: number;
  grid: number[];
  heads: number;
  kvHeads: number;
  headDim: number;
  valueDim: number;
  window: number[];
  dilation: number[];
  causal: boolean[];
  /** Tokens of `additionalKeys`. */
  additional: number;
}

function perAxis<T extends number | boolean>(name: string, value: T | readonly T[], axes: number): T[] {
  const list = typeof value === 'object' ? [...value] : Array.from({ length: axes }, () => value);
  if (list.length !== axes)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `fna: ${name} [${list.join(', ')}] has ${list.length} entries, the token grid has ${axes} axes; give one an axis, or one for all`,
    );
  return list;
}

/** @throws HeedError SHAPE_MISMATCH, INVALID_ARGUMENT or UNSUPPORTED with what was given and what fits */
export function checkFna(q: Tensor, k: Tensor, v: Tensor, options: FnaOptions): FnaProblem {
  const axes = q.rank - 3;
  if (axes < 1 || axes > 3)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `fna: q is ${q.describe()}; it must be [batch, ...grid, heads, headDim] with 1, 2 or 3 spatial axes`,
    );
  const grid = q.shape.slice(1, -2);
  const [batch, heads, headDim] = [q.dim(0), q.dim(-2), q.dim(-1)];
  if (
    k.rank !== q.rank ||
    v.rank !== q.rank ||
    k.shape.slice(0, -2).join() !== q.shape.slice(0, -2).join() ||
    v.shape.slice(0, -1).join() !== k.shape.slice(0, -1).join()
  ) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `fna: q is ${q.describe()}, k ${k.describe()}, v ${v.describe()}; k and v must have the batch and grid of q, and as many heads as each other`,
    );
  }
  if (k.dim(-1) !== headDim)
    throw new HeedError('SHAPE_MISMATCH', `fna: q has head dimension ${headDim}, k has ${k.dim(-1)}; they must be equal`);
  const kvHeads = k.dim(-2);
  if (kvHeads === 0 || heads % kvHeads !== 0)
    throw new HeedError('SHAPE_MISMATCH', `fna: q has ${heads} heads, k and v have ${kvHeads}; the heads of q must be a multiple`);
  const window = perAxis('window', options.window, axes);
  const dilation = perAxis('dilation', options.dilation ?? 1, axes);
  const causal = perAxis('causal', options.causal ?? false, axes);
  for (const [name, list] of [
    ['window', window],
    ['dilation', dilation],
  ] as const) {
    if (list.some((n) => !Number.isInteger(n) || n < 1))
      throw new HeedError('INVALID_ARGUMENT', `fna: ${name} is [${list.join(', ')}]; use integers of 1 or more`);
  }
  if (grid.some((n, axis) => (window[axis] ?? 1) * (dilation[axis] ?? 1) > n)) {
    const dilated = dilation.some((d) => d > 1);
    throw new HeedError(
      'INVALID_ARGUMENT',
      `fna: window [${window.join(', ')}]${dilated ? ` with dilation [${dilation.join(', ')}]` : ''} is larger than the token grid [${grid.join(', ')}]; ` +
        `choose a window${dilated ? ' x dilation' : ''} no larger than the grid on each axis`,
    );
  }
  const additional = checkAdditional(options, { batch, kvHeads, headDim, valueDim: v.dim(-1) });
  checkBias(options, heads, window, causal);
  return { batch, grid, heads, kvHeads, headDim, valueDim: v.dim(-1), window, dilation, causal, additional };
}

function checkAdditional(
  { additionalKeys: keys, additionalValues: values }: FnaOptions,
  p: { batch: number; kvHeads: number; headDim: number; valueDim: number },
): number {
  if (!keys !== !values)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `fna: additional${keys ? 'Keys' : 'Values'} was given without additional${keys ? 'Values' : 'Keys'}; give both`,
    );
  if (!keys || !values) return 0;
  const tokens = keys.rank === 4 ? keys.dim(1) : 0;
  if (
    keys.shape.join() !== [p.batch, tokens, p.kvHeads, p.headDim].join() ||
    values.shape.join() !== [p.batch, tokens, p.kvHeads, p.valueDim].join()
  ) {
    throw new HeedError(
      'SHAPE_MISMATCH',
      `fna: additionalKeys is ${keys.describe()}, additionalValues ${values.describe()}; they must be [${p.batch}, tokens, ${p.kvHeads}, ${p.headDim}] and [${p.batch}, tokens, ${p.kvHeads}, ${p.valueDim}]`,
    );
  }
  return tokens;
}

function checkBias({ bias }: FnaOptions, heads: number, window: readonly number[], causal: readonly boolean[]): void {
  if (!bias) return;
  if (causal.some(Boolean))
    throw new HeedError('UNSUPPORTED', 'fna: a relative position bias is not defined on a causal axis; leave out bias, or causal');
  const wanted = [heads, ...window.map((n) => 2 * n - 1)];
  if (bias.shape.join() !== wanted.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `fna: bias is ${bias.describe()}; for these heads and this window it must be [${wanted.join(', ')}]`,
    );
}
