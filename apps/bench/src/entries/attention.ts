import type { Device, Tensor } from '@heed/core';
import { attention, type AttentionOptions } from '@heed/core/attention';
import { vjp } from '@heed/core/~internal';
import type { Entry, MaskFigures, Opened, Pass } from '../entry.js';
import { input } from '../inputs.js';
import { type AttentionProblem, attentionDkv, attentionDq, attentionRow } from '../reference.js';
import { readRows, rowError, sampleRows, worst } from '../samples.js';

/** An entry of the engine, or of any function of its kind. */
export interface AttentionCase extends AttentionProblem {
  readonly id: string;
  readonly dtype: 'f16' | 'f32';
  readonly pass: Pass;
  /** Visible pairs of all heads together. */
  readonly pairs: number;
  readonly series?: string;
  readonly mask?: MaskFigures;
  readonly shape?: Readonly<Record<string, number | string>>;
  /** Default: the engine with `options`. */
  readonly call?: (q: Tensor, k: Tensor, v: Tensor) => Tensor;
  readonly options?: AttentionOptions;
}

const widths = { f16: 2, f32: 4 } as const;
export const TOLERANCE = { f16: { forward: 4e-3, backward: 4e-3 }, f32: { forward: 2e-4, backward: 1e-3 } } as const;

/**
 * An entry for softmax attention over any set of pairs. A forward pass does 4 x pairs x headDim operations, a backward pass 2.5 times
 * that (five products, two of them again).
 */
export function attentionEntry(c: AttentionCase): Entry {
  const { tokens, heads, kvHeads, headDim, dtype, pass, pairs, queries = tokens } = c;
  const size = widths[dtype];
  const rows = queries * heads * headDim * size;
  const stored = tokens * kvHeads * headDim * size;
  const statistics = queries * heads * 4;
  const forward = pass !== 'backward';
  return {
    id: c.id,
    shape: { batch: 1, tokens, ...(queries !== tokens && { queries }), heads, ...(kvHeads !== heads && { kvHeads }), headDim, ...c.shape },
    dtype,
    pass,
    work: forward
      ? {
          algorithm: 'q, k, v read once, out and logsumexp written once; two products a pair',
          bytes: 2 * rows + 2 * stored + statistics,
          flops: 4 * pairs * headDim,
        }
      : {
          algorithm: 'q, k, v, out, dOut, logsumexp read once, dq, dk, dv written once; five products a pair',
          bytes: 4 * rows + 4 * stored + statistics,
          flops: 10 * pairs * headDim,
        },
    memory: forward
      ? { bytes: 2 * rows + 2 * stored + statistics, why: 'q, k, v, out and the logsumexp' }
      : { bytes: 4 * rows + 4 * stored + 2 * statistics, why: 'q, k, v, out, dOut, dq, dk, dv, the logsumexp and one more vector a row' },
    ...(c.mask && { mask: c.mask }),
    tolerance: TOLERANCE[dtype][forward ? 'forward' : 'backward'],
    ...(c.series !== undefined && { series: { name: c.series, tokens } }),
    open: (device) => openAttention(device, c),
  };
}

function openAttention(device: Device, c: AttentionCase): Opened {
  const { tokens, heads, kvHeads, headDim, dtype, queries = tokens } = c;
  const q = input(device, 'q', [1, queries, heads, headDim], { dtype });
  const k = input(device, 'k', [1, tokens, kvHeads, headDim], { dtype });
  const v = input(device, 'v', [1, tokens, kvHeads, headDim], { dtype });
  const call = c.call ?? ((...x: [Tensor, Tensor, Tensor]): Tensor => attention(...x, c.options));
  const release = (...more: Tensor[]): void => [q, k, v, ...more].forEach((t) => t.dispose());
  if (c.pass !== 'backward') {
    const rows = sampleRows(queries, heads);
    return {
      run: () => [call(q, k, v)],
      async sample([out]) {
        const got = await readRows(out as Tensor, rows);
        return () => worst(rows.map(({ token, head }, i) => rowError(got[i] as Float64Array, attentionRow(c, head, token), dtype)));
      },
      dispose: () => release(),
    };
  }
  const dOut = input(device, 'dOut', [1, tokens, heads, headDim], { dtype });
  const differentiate = (cotangent: Tensor, restart: () => void): Tensor[] => {
    const forward = (): Tensor => {
      const out = call(q, k, v);
      restart();
      return out;
    };
    const { outputs, grads } = vjp(forward, [q, k, v], [cotangent]);
    return [...grads, ...outputs];
  };
  return {
    run: (restart) => differentiate(dOut, restart),
    sample: async (outputs) => sampleGradients(device, c, outputs, (cotangent) => differentiate(cotangent, () => {})),
    dispose: () => release(dOut),
  };
}

/**
 * dq of sampled rows; dk and dv of the last keys, which few queries see; and, from a run whose cotangent is zero but for four tokens,
 * dk and dv of early keys: the only way to check these in time that is linear in tokens.
 */
async function sampleGradients(
  device: Device,
  c: AttentionCase,
  [dq, dk, dv]: readonly Tensor[],
  differentiate: (cotangent: Tensor) => Tensor[],
): Promise<() => number> {
  const { tokens, heads, headDim, dtype } = c;
  const error = (got: Float64Array, expected: Float64Array): number => rowError(got, expected, dtype);
  const rows = sampleRows(tokens, heads);
  const gotDq = await readRows(dq as Tensor, rows);
  const every = Math.max(1, Math.floor(tokens / 4));
  const few = Array.from({ length: Math.floor(tokens / every) }, (_, i) => (i + 1) * every - 1);
  const head = heads >> 1;
  // the last keys of a causal mask; other masks show them to more queries, and are checked by the few alone
  const causal = c.visible(0, 0).length === 1;
  const late = causal ? [tokens - 1, Math.max(0, tokens - 3)] : [];
  const after = late.length === 0 ? [] : Array.from({ length: Math.min(3, tokens) }, (_, i) => tokens - 1 - i);
  const early = [0, Math.floor(tokens / 8) + 1, Math.floor(tokens / 2) + 1].filter((key) => key < tokens);
  const place = (keys: readonly number[]): { token: number; head: number }[] => keys.map((token) => ({ token, head }));
  const lateGot = { dk: await readRows(dk as Tensor, place(late)), dv: await readRows(dv as Tensor, place(late)) };
  const sparse = input(device, 'dOut', [1, tokens, heads, headDim], { dtype, every });
  const grads = differentiate(sparse);
  const earlyGot = { dk: await readRows(grads[1] as Tensor, place(early)), dv: await readRows(grads[2] as Tensor, place(early)) };
  for (const t of [sparse, ...grads]) t.dispose();
  const compare = (got: { dk: Float64Array[]; dv: Float64Array[] }, keys: readonly number[], queries: readonly number[]): number =>
    worst(
      attentionDkv(c, head, keys, queries).flatMap((expected, i) =>
        seen(expected) ? [error(got.dk[i] as Float64Array, expected.dk), error(got.dv[i] as Float64Array, expected.dv)] : [],
      ),
    );
  return () =>
    worst([
      ...rows
        .filter(({ token }) => c.visible(0, token).length > 1)
        .map(({ token, head: own }) =>
          error(gotDq[rows.findIndex((r) => r.token === token && r.head === own)] as Float64Array, attentionDq(c, own, token)),
        ),
      compare(lateGot, late, after),
      compare(earlyGot, early, few),
    ]);
}

/** Keys that none of the queries sees have zero gradients, against which no relative error exists. */
const seen = ({ dv }: { dv: Float64Array }): boolean => dv.some((x) => x !== 0);
