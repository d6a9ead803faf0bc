import { HeedError, scope, type Tensor } from '@heed/core';
import { apply, asContiguous, currentTape } from '@heed/core/~internal';
import { backwardZeta } from './backward.js';
import { runZeta } from './forward.js';
import { backwardInPieces, forwardInPieces, headGroups } from './in-pieces.js';
import { encodePoints } from './kernels/codes.js';
import { checkArguments, resolveOptions, type ZetaOptions, type ZetaSettings } from './options.js';

/**
 * ZETA (Zeng et al. 2025, arXiv 2501.14577): each query attends to the topK nearest of the keys that lie around it on a Z-order
 * curve, by an adaptive Cauchy softmax, w = 1 / (|q - k|^2 + gamma^2) with gamma = sigmoid(theta). A causal query searches the
 * chunks before its own; its own chunk it sees through the history mean and the local window. Differentiable in q, k, v and theta;
 * the selection is a constant. O(T log T) operations, O(T) bytes.
 * @param q [batch, tokens, heads, keyDim], f32, keyDim 1 to 4
 * @param k as q
 * @param v [batch, tokens, heads, valueDim], f32 or f16
 * @param theta [heads], f32; 0 gives gamma = 0.5
 * @param options `range` must hold q and k; see {@link ZetaOptions}
 * @returns [batch, tokens, heads, valueDim], dtype of v; rows that see nothing are 0
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, LIMIT_EXCEEDED when windows exceed the workgroup memory
 */
export function zeta(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, options: ZetaOptions): Tensor {
  const [out, indices] = applyZeta('zeta', q, k, v, theta, options, false);
  indices?.dispose();
  return out;
}

/** What `zetaWithIndices` gives. */
export interface ZetaWithIndices {
  /** [batch, tokens, heads, valueDim]. */
  out: Tensor;
  /** Tokens found by the search and kept, by ascending distance, -1 unused; i32 [batch, tokens, heads, topK]. The local window is not listed. */
  indices: Tensor;
  /** Morton codes on the first curve, u32 [batch, tokens, heads]. */
  codesQ: Tensor;
  codesK: Tensor;
}

/**
 * As `zeta`, with the selection and the codes; only `out` carries a gradient.
 * @returns out as `zeta`; see `ZetaWithIndices` for the rest
 * @throws HeedError what `zeta` throws
 */
export function zetaWithIndices(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, options: ZetaOptions): ZetaWithIndices {
  return scope(() => {
    const [out, indices] = applyZeta('zetaWithIndices', q, k, v, theta, options, true);
    const codes = (x: Tensor): Tensor =>
      apply({ name: 'zetaCodes', inputs: [], forward: () => encodePoints(x, resolveOptions('zeta', options, x.dim(3)), false).codes });
    return { out, indices: indices as Tensor, codesQ: codes(q), codesK: codes(k) };
  });
}

/**
 * Cells and Morton codes of points: cell = clamp(floor((x - low) / (high - low) 2^bits), 0, 2^bits - 1); bit p of dimension j goes
 * to code bit p d + (d - 1 - j).
 * @param x [..., d], f32, d 1 to 4
 * @returns cells u32 [..., d] and codes u32 [...]
 * @throws HeedError INVALID_ARGUMENT, DTYPE_MISMATCH
 */
export function zetaCodes(x: Tensor, options: Pick<ZetaOptions, 'range' | 'bits'>): { cells: Tensor; codes: Tensor } {
  if (x.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `zetaCodes: x is ${x.describe()}; it must be f32`);
  const settings = resolveOptions('zetaCodes', options, x.dim(-1));
  const [codes, cells] = apply<readonly Tensor[]>({
    name: 'zetaCodes',
    inputs: [x],
    forward: () => {
      const made = encodePoints(asContiguous(x, 1), settings, true);
      return [made.codes, made.cells as Tensor];
    },
  }) as readonly [Tensor, Tensor];
  return { cells, codes };
}

function applyZeta(
  who: string,
  q: Tensor,
  k: Tensor,
  v: Tensor,
  theta: Tensor,
  options: ZetaOptions,
  list: boolean,
): readonly [Tensor, Tensor | undefined] {
  checkArguments(who, q, k, v, theta);
  const settings: ZetaSettings = resolveOptions(who, options, q.dim(3));
  const inputs = [q, k, v, theta] as const;
  const store = list || tracked(inputs);
  const outputs = apply<readonly Tensor[]>({
    name: who,
    inputs,
    forward: () => {
      const groups = headGroups(inputs, store ? settings.topK : 0);
      const { out, indices } = groups ? forwardInPieces(inputs, settings, store, groups) : runZeta(...inputs, settings, store);
      return indices ? [out, indices] : [out];
    },
    saves: ([, indices]) => (indices ? [...inputs, indices] : inputs),
    backward: ([dOut], { saved }) => {
      const [savedQ, savedK, savedV, savedTheta, indices] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor];
      if (!dOut) return [null, null, null, null];
      const own = [savedQ, savedK, savedV, savedTheta] as const;
      const groups = headGroups(own, settings.topK, dOut);
      return groups ? backwardInPieces(own, indices, dOut, settings, groups) : backwardZeta(...own, indices, dOut, settings);
    },
  });
  return outputs as readonly [Tensor, Tensor | undefined];
}

function tracked(inputs: readonly Tensor[]): boolean {
  const tape = currentTape();
  return tape !== null && inputs.some((t) => tape.isTracked(t));
}
