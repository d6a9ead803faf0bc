import { apply } from '../autodiff/tape.js';
import { isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import { asContiguous } from '../tensor/copy.js';
import { empty } from '../tensor/create.js';
import type { Tensor } from '../tensor/tensor.js';
import { packExtras } from './extras.js';
import { runMergeBackward, runMergeParts } from './kernels/merge.js';

/** Attention over some of the keys, with the logsumexp that makes it combine with the rest. */
export interface AttentionResult {
  /** [batch, queries, heads, valueDim], dtype of q. */
  out: Tensor;
  /** Natural logsumexp of each row's scores, f32 [batch, queries, heads]; minus infinity where a row sees nothing. */
  lse: Tensor;
}

/**
 * The exact attention over the union of disjoint key sets, from the attention over each: out = sum_p exp(lse_p - lse) out_p.
 * Serves split decoding, context parallelism, and a sparse branch beside a global one. Differentiable in every out and lse.
 * @param parts one or more results of equal shapes; rows that a part does not see (lse = minus infinity) do not count in it
 * @returns out in the dtype of the first part's; a row that no part sees gives 0 and minus infinity
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT when there is no part
 */
export function mergeAttention(parts: readonly AttentionResult[]): AttentionResult {
  const [first] = parts;
  if (!first) throw new HeedError('INVALID_ARGUMENT', 'mergeAttention: no parts were given; give one or more results of attentionWithLse');
  for (const part of parts) checkPart(part, first);
  const inputs = parts.flatMap(({ out, lse }) => [out, lse]);
  const [out, lse] = apply<readonly [Tensor, Tensor]>({
    name: 'mergeAttention',
    inputs,
    forward: () => {
      const { device } = first.out;
      const merged = empty(device, first.out.shape, first.out.dtype);
      const mergedLse = empty(device, first.lse.shape, 'f32');
      const stacked = packExtras(
        device,
        parts.map((p) => p.out),
      ).tensor as Tensor;
      const stackedLse = packExtras(
        device,
        parts.map((p) => p.lse),
      ).tensor as Tensor;
      runMergeParts(device, { parts: stacked, partLse: stackedLse, out: merged, lse: mergedLse }, parts.length);
      return [merged, mergedLse];
    },
    saves: (outputs) => [...inputs, ...outputs],
    backward: ([dOut, dLse], { saved, needs }) => {
      const [merged, mergedLse] = saved.slice(inputs.length) as [Tensor, Tensor];
      const cotangent = dOut && asContiguous(dOut, 1);
      const lseCotangent = dLse && asContiguous(dLse, 1);
      return parts.flatMap((_, i) => {
        if (!needs[2 * i] && !needs[2 * i + 1]) return [null, null];
        const part = asContiguous(saved[2 * i] as Tensor, 1);
        const partLse = asContiguous(saved[2 * i + 1] as Tensor, 1);
        const dPart = empty(part.device, part.shape, part.dtype);
        const dPartLse = empty(part.device, partLse.shape, 'f32');
        runMergeBackward(part.device, {
          part,
          partLse,
          out: merged,
          lse: mergedLse,
          dOut: cotangent ?? undefined,
          dLse: lseCotangent ?? undefined,
          dPart,
          dPartLse,
        });
        return [dPart, dPartLse];
      });
    },
  });
  return { out, lse };
}

function checkPart({ out, lse }: AttentionResult, first: AttentionResult): void {
  const [batch, queries, heads] = out.shape;
  if (!isFloat(out.dtype) || lse.dtype !== 'f32')
    throw new HeedError('DTYPE_MISMATCH', `mergeAttention: out is ${out.dtype}, lse ${lse.dtype}; out must be f32 or f16, lse f32`);
  if (out.rank !== 4 || lse.rank !== 3 || lse.dim(0) !== batch || lse.dim(1) !== queries || lse.dim(2) !== heads)
    throw new HeedError(
      'SHAPE_MISMATCH',
      `mergeAttention: out is ${out.describe()}, lse ${lse.describe()}; they must be [batch, queries, heads, valueDim] and [batch, queries, heads]`,
    );
  if (out.shape.join() !== first.out.shape.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `mergeAttention: parts ${first.out.describe()} and ${out.describe()}; all parts must have one shape`,
    );
}
