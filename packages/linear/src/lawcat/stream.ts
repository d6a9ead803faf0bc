import {
  type Bytes,
  concat,
  copyInto,
  type Device,
  HeedError,
  rope,
  scope,
  slice,
  type Snapshot,
  type State,
  tensor,
  type Tensor,
  zeros,
} from '@heed/core';
import { copyContiguous, holdsTensors } from '@heed/core/~internal';
import { linearScanStep } from '../scan/linear-scan.js';
import { normalizedScanStep } from '../scan/normalized.js';
import { selectStates } from '../scan/select.js';
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

const names = ['state', 'keySum', 'tailQ', 'tailK', 'windowK', 'windowV'] as const;
type Held = Record<(typeof names)[number], Tensor | undefined>;

/**
 * State of a stream, the same bytes whatever the length: a matrix and a sum of keys a head, the last taps - 1 queries and keys in
 * front of the convolution, and the last window - 1 keys and values where there is a window. Made by `lawcatStart`.
 */
export class LawcatState implements State {
  readonly device: Device;
  private held: Held;
  private seen = 0;

  /** Takes over the tensors. */
  constructor(
    held: Held,
    readonly window: number,
  ) {
    this.held = held;
    const first = this.all()[0] as Tensor;
    this.device = first.device;
    for (const t of this.all()) t.keep();
    // scopes ask for it; a declared member with a computed name has no isolated declaration
    Object.defineProperty(this, holdsTensors, { value: () => this.all() });
  }

  get tokens(): number {
    return this.seen;
  }

  /** One of the tensors: `state` f32 [batch, heads, headDim, headDim], `keySum` [batch, heads, headDim, 1], rows [batch, rows, heads, headDim]. */
  part(name: (typeof names)[number]): Tensor {
    const t = this.held[name];
    if (!t) throw new HeedError('INVALID_ARGUMENT', `lawcat: this stream has no ${name}; start it with a window`);
    return t;
  }

  bytes(): Bytes {
    return { payload: this.all().reduce((sum, t) => sum + t.bytes, 0), metadata: 0, padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const { tokens } = this;
    const arrays: Record<string, Uint8Array> = {};
    for (const name of names) {
      const values = await this.held[name]?.read();
      if (values) arrays[name] = new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice();
    }
    return { manifest: { kind: 'lawcat', shape: this.shape(), tokens }, arrays };
  }

  restore(snapshot: Snapshot): void {
    const { kind, shape, tokens } = snapshot.manifest;
    const fits = names.every((name) => this.held[name] === undefined || snapshot.arrays[name]?.byteLength === this.part(name).bytes);
    if (kind !== 'lawcat' || String(shape) !== String(this.shape()) || typeof tokens !== 'number' || !fits)
      throw new HeedError(
        'INVALID_FILE',
        `lawcat: a snapshot of ${String(kind)} [${String(shape)}] was given; this stream takes lawcat [${this.shape().join(', ')}]: batch, heads, features, values, taps - 1, window`,
      );
    scope(() => {
      for (const name of names) {
        const own = this.held[name];
        // a copy: the bytes may lie at any offset of a file
        if (own) copyInto(own, tensor(this.device, new Float32Array((snapshot.arrays[name] as Uint8Array).slice().buffer), own.shape));
      }
    });
    this.seen = tokens;
  }

  truncate(tokens: number): void {
    if (tokens === this.seen) return;
    throw new HeedError(
      'UNSUPPORTED',
      `lawcat: truncate to ${tokens} of ${this.seen} tokens; a state keeps no tokens to go back to, take a snapshot() there and restore() it`,
    );
  }

  select(batch: Tensor): void {
    if (batch.dtype !== 'u32' || batch.rank !== 1)
      throw new HeedError('SHAPE_MISMATCH', `lawcat: select was given ${batch.describe()}; it takes batch indices, u32 [n]`);
    for (const name of names) {
      const own = this.held[name];
      if (!own) continue;
      this.held[name] = scope(() => selectStates(own, batch)).keep();
      own.dispose();
    }
  }

  dispose(): void {
    for (const t of this.all()) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  advance(tokens: number): void {
    this.seen += tokens;
  }

  private all(): Tensor[] {
    return names.flatMap((name) => this.held[name] ?? []);
  }

  private shape(): number[] {
    return [...this.part('state').shape, this.part('tailQ').dim(1), this.window];
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
    {
      state: zeros(device, [batch, heads, headDim, headDim], { label: 'lawcat state' }),
      keySum: zeros(device, [batch, heads, headDim, 1], { label: 'lawcat key sum' }),
      tailQ: rows(taps - 1),
      tailK: rows(taps - 1),
      windowK: window > 0 ? rows(window - 1) : undefined,
      windowV: window > 0 ? rows(window - 1) : undefined,
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
    const [cq, ck] = [convolved(q, branch.convQ, state.part('tailQ')), convolved(keys, branch.convK ?? branch.convQ, state.part('tailK'))];
    const { phiQ, phiK } = mapped(cq, ck, branch, options);
    const scan = {
      gate: gateOf(logits, options),
      scale: options.scale ?? 1 / Math.sqrt(phiQ.dim(3)),
      ...(chunk !== undefined && { chunk }),
    };
    const states = { state: state.part('state'), keySum: state.part('keySum') };
    if (window === 0) return normalizedScanStep(phiQ, phiK, values, states, { ...scan, eps, outDType: 'f32' }, 'lawcatStep');
    const n = linearScanStep(phiQ, phiK, values, states.state, { ...scan, outDType: 'f32' }, 'lawcatStep');
    const z = linearScanStep(phiQ, phiK, onesFor(values), states.keySum, { ...scan, outDType: 'f32' }, 'lawcatStep');
    const turned = (x: Tensor): Tensor => (options.rope ? rope(x, { base: options.rope.base ?? 10_000, offset: state.tokens }) : x);
    const past = Math.min(state.tokens, window - 1);
    const behind = (buffer: Tensor, x: Tensor): Tensor => (past > 0 ? concat([slice(buffer, 1, window - 1 - past), x], 1) : x);
    const rotated = turned(keys);
    const given = { window, windowFactor: windowFactorOf(branch), eps, ...(options.affine !== undefined && { affine: options.affine }) };
    const mixed = mixWindow(turned(q), behind(state.part('windowK'), rotated), behind(state.part('windowV'), values), n, z, given);
    keepLast(state.part('windowK'), rotated);
    keepLast(state.part('windowV'), values);
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
