import { concat, permuteTokens, permuteTokensOf, reshape, scope, type Tensor, tensor } from '@heed/core';
import { attentionWithLse, type AttentionOptions, type AttentionResult, type Mask, scoreMod, type ScoreMod } from '@heed/core/attention';
import { attentionInOrder, capture, type Expr, joinHeads, splitHeads, uniform } from '@heed/core/~internal';
import { at, type TokenGrid, tokenGrid } from './grid.js';
import { neighborhoodMask } from './mask.js';
import { checkFna, type FnaOptions, type FnaProblem } from './options.js';
import { partOptions, planParts } from './parts.js';

/**
 * Neighborhood attention in one, two or three dimensions: each query sees the `window` keys around it, shifted inside at
 * borders, so that every query sees as many. Exact; one fused kernel over square token tiles, nothing of the size of the
 * weights is ever stored. Differentiable in q, k, v, bias and the additional keys and values.
 *
 * Source: Hassani, Hwu, Shi 2024, "Faster Neighborhood Attention" (arXiv 2403.04690), section 3; even windows as in NATTEN 0.17.5.
 *
 * @param q [batch, ...grid, heads, headDim], f32 or f16
 * @param k [batch, ...grid, kvHeads, headDim]; heads is a multiple of kvHeads
 * @param v [batch, ...grid, kvHeads, valueDim]
 * @param options scale (default 1/sqrt(headDim)), window, dilation, causal, bias, additionalKeys and additionalValues
 * @returns [batch, ...grid, heads, valueDim], the dtype of q
 * @throws HeedError SHAPE_MISMATCH when shapes do not fit, INVALID_ARGUMENT when window x dilation exceeds the grid,
 *   UNSUPPORTED for a bias on a causal axis
 */
export function fna(q: Tensor, k: Tensor, v: Tensor, options: FnaOptions): Tensor {
  return scope(() => attendInOrder(q, k, v, options).out());
}

/**
 * As `fna`, with the logsumexp of each row's scores, for merging with other parts of a softmax.
 * @returns out, and lse, f32 [batch, ...grid, heads], natural logarithm
 * @throws HeedError what `fna` throws
 */
export function fnaWithLse(q: Tensor, k: Tensor, v: Tensor, options: FnaOptions): { out: Tensor; lse: Tensor } {
  return scope(() => {
    const { out, lse } = attendInOrder(q, k, v, options);
    return { out: out(), lse: lse() };
  });
}

/** Attention over tokens in tile order, in parts where tensors are larger than a binding; what is wanted of it, back in row-major order. */
function attendInOrder(q: Tensor, k: Tensor, v: Tensor, options: FnaOptions): { out: () => Tensor; lse: () => Tensor } {
  const problem = checkFna(q, k, v, options);
  const plan = planFna(problem);
  const { batch, grid, heads, kvHeads, headDim, valueDim } = problem;
  const { tokens, order } = plan.grid;
  const rowMajor = [
    reshape(q, [batch, tokens, heads, headDim]),
    reshape(k, [batch, tokens, kvHeads, headDim]),
    reshape(v, [batch, tokens, kvHeads, valueDim]),
  ] as const;
  const onGrid = (x: Tensor): Tensor => reshape(x, [batch, ...grid, ...x.shape.slice(2)]);
  const parts = plan.mask && planParts(problem, q.dtype, q.device.limits.maxStorageBufferBindingSize);
  if (!parts && order && problem.additional === 0) {
    const { out, lse } = attentionInOrder(...rowMajor, order, optionsOf(options, problem, plan));
    return { out: () => onGrid(out()), lse: () => onGrid(lse()) };
  }
  if (!parts) {
    const placed = (order ? permuteTokensOf(rowMajor, order) : rowMajor) as Triple;
    const { out, lse } = attend(placed, options, problem, plan);
    const back = (x: Tensor): Tensor => onGrid(order ? permuteTokens(x, order, { inverse: true }) : x);
    return { out: () => back(out), lse: () => back(lse) };
  }
  const { keys, list } = parts;
  const own = list.map(({ queries }) => queries);
  const queries = splitHeads(rowMajor[0], own, order);
  const [partKeys, partValues] = [splitHeads(rowMajor[1], keys, order), splitHeads(rowMajor[2], keys, order)];
  const results = list.map((part, i) =>
    attend(
      [queries[i], partKeys[part.keysAt], partValues[part.keysAt]] as unknown as Triple,
      partOptions(options, part, keys),
      problem,
      plan,
    ),
  );
  const join = (results: readonly Tensor[], ...dims: readonly number[]): Tensor =>
    onGrid(joinHeads(results, own, [batch, tokens, heads, ...dims], order));
  return {
    out: () =>
      join(
        results.map(({ out }) => out),
        valueDim,
      ),
    lse: () => join(results.map(({ lse }) => lse)),
  };
}

type Triple = readonly [queries: Tensor, keys: Tensor, values: Tensor];

/** Attention of tokens that are in the plan's order. */
function attend([queries, keys, values]: Triple, options: FnaOptions, problem: FnaProblem, plan: FnaPlan): AttentionResult {
  const { additionalKeys, additionalValues } = options;
  return attentionWithLse(
    queries,
    additionalKeys ? concat([keys, additionalKeys], 1) : keys,
    additionalValues ? concat([values, additionalValues], 1) : values,
    optionsOf(options, problem, plan),
  );
}

function optionsOf({ scale, bias }: FnaOptions, problem: FnaProblem, { grid, mask, causal, window }: FnaPlan): AttentionOptions {
  return {
    ...(mask ? { mask } : causal ? { causal, ...(window !== undefined && { window }) } : {}),
    queryOffset: 0,
    ...(scale !== undefined && { scale }),
    ...(bias && { scoreMod: relativeBias(bias, grid, problem) }),
  };
}

/** How a problem runs: the order of its tokens, and the mask over it, or the closed form that it amounts to. */
export interface FnaPlan {
  grid: TokenGrid;
  /** Undefined where the neighborhood is everything, or a causal window of one axis. */
  mask: Mask | undefined;
  causal: boolean;
  window: number | undefined;
}

const masks = new Map<string, Mask>();
const mostMasks = 16;

/**
 * Plans a problem. A window as large as the grid is dense attention, and on one axis without dilation a causal window is the
 * engine's own; these need no order and no mask. Pure but for a cache of the last masks.
 * @param problem the grid and the neighbourhood
 */
export function planFna({
  grid: shape,
  window,
  dilation,
  causal,
  additional,
}: Pick<FnaProblem, 'grid' | 'window' | 'dilation' | 'causal' | 'additional'>): FnaPlan {
  const plain = dilation.every((d) => d === 1);
  const whole = plain && shape.every((n, axis) => window[axis] === n);
  const rowMajor = (): TokenGrid => tokenGrid([shape.reduce((p, n) => p * n, 1)], [1]);
  if (whole && causal.every((c) => !c)) return { grid: rowMajor(), mask: undefined, causal: false, window: undefined };
  if (shape.length === 1 && plain && causal[0] && additional === 0)
    return { grid: rowMajor(), mask: undefined, causal: true, window: whole ? undefined : window[0] };
  const grid = tokenGrid(shape, dilation);
  const key = [shape, window, dilation, causal, [additional]].map((list) => list.join('x')).join(' ');
  let mask = masks.get(key);
  if (!mask) {
    mask = neighborhoodMask(grid, { window, causal, additional });
    const [oldest] = masks.keys();
    if (masks.size >= mostMasks && oldest !== undefined) masks.delete(oldest);
    masks.set(key, mask);
  }
  return { grid, mask, causal: false, window: undefined };
}

/** s + bias[h, j - i + window - 1] with indices inside the dilation group, an axis at a time. */
function relativeBias(bias: Tensor, grid: TokenGrid, { window, dilation, additional }: FnaProblem): ScoreMod {
  const table = capture('bias', 'f32', { differentiable: true });
  const coordinates = capture('places', 'i32');
  const count = uniform('gridTokens', 'i32');
  const uniforms: Record<string, number> = { gridTokens: grid.tokens };
  window.forEach((n, axis) => {
    uniforms[`reach${axis}`] = n - 1;
    uniforms[`width${axis}`] = 2 * n - 1;
    uniforms[`step${axis}`] = at(dilation, axis);
  });
  return scoreMod(
    (s, { h, q, kv }) => {
      let index: Expr<'i32'> = h;
      window.forEach((_, axis) => {
        const base = count.mul(axis);
        const apart = coordinates
          .at(base.add(kv))
          .sub(coordinates.at(base.add(q)))
          .div(uniform(`step${axis}`, 'i32'));
        index = index.mul(uniform(`width${axis}`, 'i32')).add(apart.add(uniform(`reach${axis}`, 'i32')));
      });
      const biased = s.add(table.at(index));
      return additional > 0 ? kv.ge(count).select(s, biased) : biased;
    },
    { captures: { bias: reshape(bias, [bias.size]), places: tensor(bias.device, grid.coordinates) }, uniforms },
  );
}
