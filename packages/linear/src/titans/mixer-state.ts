import {
  type Bytes,
  concat,
  copyInto,
  type Device,
  div,
  HeedError,
  indexSelect,
  scope,
  slice,
  type Snapshot,
  type State,
  sum,
  tensor,
  type Tensor,
  unsqueeze,
  zeros,
} from '@heed/core';
import { copyContiguous, holdsTensors } from '@heed/core/~internal';
import { chunkMeans, titansDrive, titansFinish, titansGates, type TitansLayerOptions, type TitansLayerParams } from './layer.js';
import { type TitansState, titansStart, titansStep } from './stream.js';

/** Rows that a stream carries besides its memory, such as the last keys of an attention: f32 [batch, rows, ...]. */
export type CarriedRows = Record<string, Tensor>;

/**
 * State of a mixer's stream: the memory's own (`memory`), the sum of what the unfinished chunk stores, and rows that attention
 * looks back at.
 */
export class TitansMixerState implements State {
  readonly device: Device;
  /** Made at the first step, when the memory's learned start is known. */
  private inner: TitansState | undefined;
  /** Of the memory, restored before it was made. */
  private waiting: Snapshot | undefined;
  private sums: Tensor;
  private carried: CarriedRows = {};
  private read = 0;

  constructor(device: Device, batch: number, dim: number) {
    this.device = device;
    this.sums = zeros(device, [batch, dim], { label: 'titans sums' }).keep();
    // scopes ask for it; a declared member with a computed name has no isolated declaration
    Object.defineProperty(this, holdsTensors, { value: () => [this.sums, ...Object.values(this.carried)] });
  }

  get tokens(): number {
    return this.read;
  }

  get sum(): Tensor {
    return this.sums;
  }

  get rows(): Readonly<CarriedRows> {
    return this.carried;
  }

  /** The stream of the memory; `memory` is copied by the first call. */
  memory(params: TitansLayerParams, options: TitansLayerOptions, orders: number): TitansState {
    const { heads, maxRate: _, rmsEpsilon: __, qkNorm: ___, projectionActivation: ____, ...form } = options;
    if (!this.inner) {
      const shape = { batch: this.sums.dim(0), heads, headDim: params.wq.dim(0) / heads };
      this.inner = titansStart(this.device, { ...form, ...shape, memory: params.memory, orders });
      if (this.waiting) this.inner.restore(this.waiting);
      this.waiting = undefined;
    }
    return this.inner;
  }

  advance(tokens: number): void {
    this.read += tokens;
  }

  /** Takes the place of the carried rows; contiguous copies are kept of those that are not carried already. */
  carry(rows: CarriedRows): void {
    const before = new Set(Object.values(this.carried));
    this.carried = Object.fromEntries(Object.entries(rows).map(([name, t]) => [name, before.delete(t) ? t : copyContiguous(t).keep()]));
    for (const t of before) t.dispose();
  }

  bytes(): Bytes {
    const own = [this.sums, ...Object.values(this.carried)].reduce((total, t) => total + t.bytes, 0);
    const inner = this.inner?.bytes() ?? { payload: 0, metadata: 0, padding: 0, host: 0 };
    return { ...inner, payload: inner.payload + own };
  }

  async snapshot(): Promise<Snapshot> {
    const { tokens } = this;
    const inner = await this.inner?.snapshot();
    const arrays: Record<string, Uint8Array> = {};
    for (const [name, t] of Object.entries({ sum: this.sums, ...this.carried })) {
      const values = await t.read();
      arrays[name] = new Uint8Array(values.buffer, values.byteOffset, values.byteLength).slice();
    }
    for (const [name, bytes] of Object.entries(inner?.arrays ?? {})) arrays[`memory/${name}`] = bytes;
    const shapes = Object.fromEntries(Object.entries(this.carried).map(([name, t]) => [`rows/${name}`, [...t.shape]]));
    const below = Object.fromEntries(Object.entries(inner?.manifest ?? {}).map(([name, value]) => [`memory/${name}`, value]));
    return { manifest: { kind: 'titans mixer', shape: [...this.sums.shape], tokens, ...shapes, ...below }, arrays };
  }

  restore(snapshot: Snapshot): void {
    const { manifest, arrays } = snapshot;
    const { kind, shape, tokens } = manifest;
    const values = (name: string): Float32Array<ArrayBuffer> => new Float32Array((arrays[name] as Uint8Array).slice().buffer);
    if (kind !== 'titans mixer' || String(shape) !== String(this.sums.shape) || typeof tokens !== 'number' || !arrays['sum'])
      throw new HeedError(
        'INVALID_FILE',
        `titans: a snapshot of ${String(kind)} [${String(shape)}] was given; this stream takes titans mixer [${this.sums.shape.join(', ')}]`,
      );
    const below = (from: Readonly<Record<string, unknown>>): [string, unknown][] =>
      Object.entries(from).flatMap(([name, value]) => (name.startsWith('memory/') ? [[name.slice(7), value] as [string, unknown]] : []));
    const inner = {
      manifest: Object.fromEntries(below(manifest)) as Snapshot['manifest'],
      arrays: Object.fromEntries(below(arrays)) as Snapshot['arrays'],
    };
    if (this.inner && tokens > 0) this.inner.restore(inner);
    else this.waiting = tokens > 0 ? inner : undefined;
    scope(() => {
      copyInto(this.sums, tensor(this.device, values('sum'), this.sums.shape));
      const rows: CarriedRows = {};
      for (const [name, lengths] of Object.entries(manifest))
        if (name.startsWith('rows/')) rows[name.slice(5)] = tensor(this.device, values(name.slice(5)), lengths as readonly number[]);
      this.carry(rows);
    });
    this.read = tokens;
  }

  truncate(tokens: number): void {
    if (tokens === this.read) return;
    throw new HeedError(
      'UNSUPPORTED',
      `titans: truncate to ${tokens} of ${this.read} tokens; a memory keeps no tokens to go back to, take a snapshot() there and restore() it`,
    );
  }

  select(batch: Tensor): void {
    this.inner?.select(batch);
    scope(() => {
      const { sums } = this;
      this.sums = indexSelect(sums, batch).keep();
      sums.dispose();
      this.carry(Object.fromEntries(Object.entries(this.carried).map(([name, t]) => [name, indexSelect(t, batch)])));
    });
  }

  dispose(): void {
    this.inner?.dispose();
    this.sums.dispose();
    for (const t of Object.values(this.carried)) t.dispose();
    this.carried = {};
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A memory layer's step: as `titansLayer` on the whole sequence, [batch, n, dim]. */
export function memoryStep(
  params: TitansLayerParams,
  x: Tensor,
  state: TitansMixerState,
  options: TitansLayerOptions,
  orders: number,
): Tensor {
  const stream = state.memory(params, options, orders);
  const { q, k, v, rate, stored, asking, past } = titansDrive(params, x, options, pastOf(params, state));
  const { means, left } = pendingMeans(stored, state.sum, stream.pending, options.chunkSize);
  const { momentum, forget } = titansGates(params, means, options.heads);
  const out = titansStep(q, k, v, { learningRate: rate, forget, ...(momentum.length > 0 && { momentum }) }, stream);
  copyInto(state.sum, left);
  if (past) state.carry({ ...state.rows, past });
  return titansFinish(params, out, asking, options);
}

/** What the convolution reads before these tokens: zeros at the start. */
function pastOf({ taps, wq }: TitansLayerParams, state: TitansMixerState): Tensor | undefined {
  if (!taps) return undefined;
  return state.rows['past'] ?? zeros(state.device, [state.sum.dim(0), taps.dim(0) - 1, 3 * wq.dim(0)]);
}

/** Means of the chunks that `stored` completes, [batch, chunks, dim], and the sum of what is behind them. */
function pendingMeans(stored: Tensor, before: Tensor, pending: number, chunkSize: number): { means: Tensor; left: Tensor } {
  const tokens = stored.dim(1);
  const total = (from: number, end: number): Tensor => sum(slice(stored, 1, from, end), 1);
  const added = (a: Tensor, b: Tensor): Tensor => sum(concat([unsqueeze(a, 1), unsqueeze(b, 1)], 1), 1);
  if (pending + tokens < chunkSize)
    return { means: slice(stored, 1, 0, 0), left: tokens > 0 ? added(before, total(0, tokens)) : copyContiguous(before) };
  if (pending === 0) {
    const whole = Math.floor(tokens / chunkSize) * chunkSize;
    return { means: chunkMeans(stored, chunkSize), left: whole < tokens ? total(whole, tokens) : zeros(stored.device, before.shape) };
  }
  const first = chunkSize - pending;
  const head = unsqueeze(div(added(before, total(0, first)), chunkSize), 1);
  const rest = pendingMeans(slice(stored, 1, first), before, 0, chunkSize);
  if (first + chunkSize > tokens) return { means: head, left: first < tokens ? total(first, tokens) : zeros(stored.device, before.shape) };
  return { means: concat([head, rest.means], 1), left: rest.left };
}
