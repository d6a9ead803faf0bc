import { concat, copyInto, type Device, HeedError, rope, scope, slice, type Tensor, zeros } from '@heed/core';
import { copyContiguous } from '@heed/core/~internal';
import { HeldTensors } from '../scan/held-tensors.js';
import { linearScanStep } from '../scan/linear-scan.js';
import { normalizedScanStep } from '../scan/normalized.js';
import { gateOf } from './forward.js';
import { convTokens, type LawcatBranch, type LawcatBranchOptions, mapped, repeatHeads, windowFactorOf } from './layer.js';
import { mixWindow, onesFor } from './window.js';

/** What a stream of the branch is started with. */
export interface LawcatStreamOptions {
  batch: number;
  heads: number;
  headDim: number;
  /** Taps of the convolutions. Default 4. */
  taps?: number;
  /** Keys of the softmax window. Default 0: none. */
  window?: number;
}

/**
 * State of a stream, the same bytes whatever the length: `state` f32 [batch, heads, headDim, headDim] and `keySum` [batch, heads, headDim, 1],
 * `tailQ` and `tailK`, the last taps - 1 queries and keys in front of the convolution, and `windowK` and `windowV`, the last window - 1 keys
 * and values where there is a window, [batch, rows, heads, headDim]. Made by `lawcatStart`.
 */
export class LawcatState extends HeldTensors {
  /** Takes over the tensors. */
  constructor(
    device: Device,
    tensors: Readonly<Record<string, Tensor>>,
    readonly window: number,
  ) {
    super(device, 'lawcat', tensors);
  }
}

/**
 * An empty stream. The caller disposes it.
 * @throws HeedError INVALID_ARGUMENT
 */
export function lawcatStart(device: Device, options: LawcatStreamOptions): LawcatState {
  const { batch, heads, headDim, taps = 4, window = 0 } = options;
  if ([batch, heads, headDim, taps].some((n) => !Number.isInteger(n) || n < 1) || !Number.isInteger(window) || window < 0)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `lawcat: a stream of batch, heads, headDim, taps [${[batch, heads, headDim, taps].join(', ')}] and window ${window}; each is an integer of 1 or more, window of 0 or more`,
    );
  const rows = (count: number): Tensor => zeros(device, [batch, count, heads, headDim], { label: 'lawcat rows' });
  return new LawcatState(
    device,
    {
      state: zeros(device, [batch, heads, headDim, headDim], { label: 'lawcat state' }),
      keySum: zeros(device, [batch, heads, headDim, 1], { label: 'lawcat key sum' }),
      tailQ: rows(taps - 1),
      tailK: rows(taps - 1),
      ...(window > 0 && { windowK: rows(window - 1), windowV: rows(window - 1) }),
    },
    window,
  );
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `lawcatMix` gives for the whole sequence, whatever the pieces.
 * No gradient.
 * @param q [batch, n, heads, headDim]; k, v and gate logits [batch, n, kvHeads, headDim]
 * @param options as `lawcatMix`; its window is that of the state
 * @param state updated in place
 * @returns o, f32 [batch, n, heads, headDim]
 * @throws HeedError SHAPE_MISMATCH; DISPOSED after `state.dispose()`; UNSUPPORTED when an input is differentiated
 */
export function lawcatStep(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  gate: Tensor,
  branch: LawcatBranch,
  state: LawcatState,
  options: LawcatBranchOptions = {},
): Tensor {
  const { activation = 'none', eps = 1e-10, chunk } = options;
  const { window } = state;
  if ((options.window ?? 0) !== window)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `lawcatStep: window ${options.window ?? 0} was given, the stream has ${window}; start it with that window`,
    );
  const out = scope(() => {
    const heads = q.dim(2);
    const [keys, values, logits] = [k, v, gate].map((x) => repeatHeads(x, heads)) as [Tensor, Tensor, Tensor];
    const convolved = (x: Tensor, weight: Tensor, tail: Tensor): Tensor => {
      const out = convTokens(x, weight, { activation, before: tail });
      keepLast(tail, x);
      return out;
    };
    const [cq, ck] = [convolved(q, branch.convQ, state.get('tailQ')), convolved(keys, branch.convK ?? branch.convQ, state.get('tailK'))];
    const { phiQ, phiK } = mapped(cq, ck, branch, options);
    const scan = {
      gate: gateOf(logits, options),
      scale: options.scale ?? 1 / Math.sqrt(phiQ.dim(3)),
      ...(chunk !== undefined && { chunk }),
    };
    const states = { state: state.get('state'), keySum: state.get('keySum') };
    if (window === 0) return normalizedScanStep(phiQ, phiK, values, states, { ...scan, eps, outDType: 'f32' }, 'lawcatStep');
    const n = linearScanStep(phiQ, phiK, values, states.state, { ...scan, outDType: 'f32' }, 'lawcatStep');
    const z = linearScanStep(phiQ, phiK, onesFor(values), states.keySum, { ...scan, outDType: 'f32' }, 'lawcatStep');
    const turned = (x: Tensor): Tensor => (options.rope ? rope(x, { base: options.rope.base ?? 10_000, offset: state.tokens }) : x);
    const past = Math.min(state.tokens, window - 1);
    const behind = (buffer: Tensor, x: Tensor): Tensor => (past > 0 ? concat([slice(buffer, 1, window - 1 - past), x], 1) : x);
    const rotated = turned(keys);
    const given = { window, windowFactor: windowFactorOf(branch), eps, ...(options.affine !== undefined && { affine: options.affine }) };
    const mixed = mixWindow(turned(q), behind(state.get('windowK'), rotated), behind(state.get('windowV'), values), n, z, given);
    keepLast(state.get('windowK'), rotated);
    keepLast(state.get('windowV'), values);
    return mixed;
  });
  state.advance(q.dim(1));
  return out;
}

/** The rows of a buffer, shifted by the new ones. */
function keepLast(buffer: Tensor, x: Tensor): void {
  const [rows, tokens] = [buffer.dim(1), x.dim(1)];
  if (rows === 0 || tokens === 0) return;
  if (tokens >= rows) {
    copyInto(buffer, slice(x, 1, tokens - rows));
    return;
  }
  const rest = copyContiguous(slice(buffer, 1, tokens));
  copyInto(slice(buffer, 1, 0, rows - tokens), rest);
  copyInto(slice(buffer, 1, rows - tokens), x);
}
