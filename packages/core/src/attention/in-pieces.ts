import { accumulate } from '../autodiff/accumulate.js';
import { copyInto } from '../ops/assign.js';
import { empty, zeros } from '../tensor/create.js';
import { scope } from '../tensor/scope.js';
import type { Tensor } from '../tensor/tensor.js';
import { type AttentionGradients, runBackward, type Wanted } from './backward.js';
import type { BackwardInputs } from './backward-queries.js';
import type { CallTensors } from './bind.js';
import type { AttentionCall } from './call.js';
import { packExtras } from './extras.js';
import { resultOf, runForward } from './forward.js';
import { runMergeParts } from './kernels/merge.js';
import type { AttentionResult } from './merge.js';
import { biasOf, pieceCall, type PieceProblem, planKeyPieces, planQueryPieces, type TokenRange, tokensOf } from './pieces.js';

/** A call whose tensors are larger than a binding, queries by queries; results over several ranges of keys are merged by their logsumexp. */
export function forwardInPieces(call: AttentionCall, tensors: CallTensors, problem: PieceProblem): AttentionResult {
  const { device } = call;
  const whole = resultOf(call, tensors.q.dtype);
  for (const { entry, queries, keys } of planQueryPieces(problem)) {
    scope(() => {
      const into = { out: tokensOf(whole.out, entry, queries), lse: tokensOf(whole.lse, entry, queries) };
      const run = (own: TokenRange, first: boolean, target?: AttentionResult): AttentionResult => {
        const part = pieceCall(call, tensors, { entry, queries, keys: own, sinks: first });
        return runForward(part.call, part.tensors, { into: target });
      };
      const [only, ...more] = keys as readonly [TokenRange, ...TokenRange[]];
      if (more.length === 0) {
        run(only, true, into);
        return;
      }
      const results = keys.map((own, i) => run(own, i === 0));
      const stacked = (list: readonly Tensor[]): Tensor => packExtras(device, list).tensor as Tensor;
      const parts = { parts: stacked(results.map((r) => r.out)), partLse: stacked(results.map((r) => r.lse)) };
      runMergeParts(device, { ...parts, ...into }, keys.length);
    });
  }
  return whole;
}

/** Gradients of such a call: of q and of what rows read by its queries, of k, v and the key bias by its keys; sums in the order of ranges. */
export function backwardInPieces(call: AttentionCall, inputs: BackwardInputs, wanted: Wanted, problem: PieceProblem): AttentionGradients {
  const { device } = call;
  const { q, k, v } = inputs;
  const biasAt = call.arrays.findIndex(({ name }) => name === 'keyBias');
  const biasWanted = wanted.arrays[biasAt] ?? false;
  const rowArrays = wanted.arrays.map((want, i) => want && i !== biasAt);
  const grads: AttentionGradients = {
    q: wanted.q ? empty(device, q.shape, q.dtype) : null,
    k: wanted.k ? empty(device, k.shape, k.dtype) : null,
    v: wanted.v ? empty(device, v.shape, v.dtype) : null,
    arrays: call.arrays.map(() => null),
  };
  const piece = (
    entry: number,
    { queries, keys, sinks }: { queries: TokenRange; keys: TokenRange; sinks: boolean },
    which: Omit<Wanted, 'arrays'> & { arrays: readonly boolean[] },
  ): AttentionGradients => {
    const part = pieceCall(call, inputs, { entry, queries, keys, sinks });
    const rows = <T extends Tensor | null>(x: T): T => (x && tokensOf(x, entry, queries)) as T;
    const own = { ...part.tensors, out: rows(inputs.out), lse: rows(inputs.lse), dOut: rows(inputs.dOut), dLse: rows(inputs.dLse) };
    const names = part.call.arrays.map(({ name }) => call.arrays.findIndex((a) => a.name === name));
    const made = runBackward(part.call, own, { ...which, arrays: names.map((i) => which.arrays[i] ?? false) });
    return { ...made, arrays: call.arrays.map((_, i) => made.arrays[names.indexOf(i)] ?? null) };
  };
  if (grads.q || rowArrays.some(Boolean)) {
    for (const { entry, queries, keys } of planQueryPieces(problem)) {
      grads.arrays = scope(() => {
        const which = { q: wanted.q, k: false, v: false, arrays: rowArrays };
        const parts = keys.map((own, i) => piece(entry, { queries, keys: own, sinks: i === 0 }, which));
        const dq = sum(parts.map((part) => part.q));
        if (grads.q && dq) copyInto(tokensOf(grads.q, entry, queries), dq);
        return grads.arrays.map((before, i) => sum([before, ...parts.map((part) => part.arrays[i] ?? null)]));
      });
    }
  }
  if (!grads.k && !grads.v && !biasWanted) return grads;
  const bias = biasWanted ? (inputs.arrays[biasAt] as Tensor) : undefined;
  const dBias = bias ? zeros(device, bias.shape, { dtype: bias.dtype }) : null;
  const which = { q: false, k: wanted.k, v: wanted.v, arrays: call.arrays.map((_, i) => biasWanted && i === biasAt) };
  for (const { entry, keys, queries } of planKeyPieces(problem)) {
    scope(() => {
      const parts = queries.map((own) => piece(entry, { queries: own, keys, sinks: false }, which));
      for (const name of ['k', 'v'] as const) {
        const whole = grads[name];
        if (whole) copyInto(tokensOf(whole, entry, keys), sum(parts.map((part) => part[name])) ?? 0);
      }
      if (!dBias || parts.length === 0) return;
      // entries may share a bias
      const place = biasOf(dBias, entry, keys);
      copyInto(place, sum([place, ...parts.map((part) => part.arrays[biasAt] ?? null)]) ?? 0);
    });
  }
  if (biasAt >= 0) grads.arrays[biasAt] = dBias;
  return grads;
}

/** The sum of those that are there, in order. */
function sum(list: readonly (Tensor | null)[]): Tensor | null {
  return list.reduce((total, x) => (total && x ? accumulate(total, x) : (total ?? x)), null);
}
