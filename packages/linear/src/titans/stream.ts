import {
  broadcastTo,
  type Bytes,
  cast,
  concat,
  copyInto,
  type Device,
  HeedError,
  indexSelect,
  permute,
  scope,
  type Snapshot,
  slice,
  type State,
  tensor,
  type Tensor,
  unsqueeze,
  zeros,
} from '@heed/core';
import { apply, copyContiguous, holdsTensors } from '@heed/core/~internal';
import { runTitans } from './forward.js';
import { memoryOf, recall, tensorsOf, type TitansMemory } from './memory.js';
import {
  checkArguments,
  checkForm,
  checkMemory,
  ordersOf,
  type TitansForm,
  type TitansMemoryState,
  type TitansOptions,
} from './options.js';

/** What a stream is started with. */
export interface TitansStreamOptions extends TitansForm {
  batch: number;
  heads: number;
  headDim: number;
  /** The learned start, tensors [heads, ...]; copied. */
  memory: TitansMemory;
  /** Orders of momentum. Default 1; 0: none. */
  orders?: number;
}

/** What drives the tokens of a step. */
export interface TitansStepRates {
  /** theta, f32 [batch, n, heads]. */
  learningRate: Tensor;
  /** eta of the chunks that this step completes, f32 [batch, chunks, heads], chunks = `state.completes(n)`; one an order. */
  momentum?: Tensor | readonly Tensor[];
  /** alpha of the chunks that this step completes. */
  forget: Tensor;
}

/**
 * State of a stream: the memory's weights, their momentum, the weights at which gradients are taken, and keys, values and steps of
 * the unfinished chunk; the same bytes whatever the length. Made by `titansStart`, updated by `titansStep`, freed by `dispose()`.
 */
export class TitansState implements State {
  readonly device: Device;
  private own: TitansMemoryState;
  private waiting: readonly [Tensor, Tensor, Tensor];
  private seen = 0;

  constructor(
    readonly form: TitansForm,
    own: TitansMemoryState,
    waiting: readonly [Tensor, Tensor, Tensor],
  ) {
    this.device = waiting[0].device;
    this.own = held(own);
    this.waiting = waiting.map((t) => t.keep()) as unknown as readonly [Tensor, Tensor, Tensor];
    // scopes ask for it; a declared member with a computed name has no isolated declaration
    Object.defineProperty(this, holdsTensors, { value: () => [...allOf(this.own), ...this.waiting] });
  }

  /** Weights, momentum and gradient point, [batch, heads, ...]; owned by the stream, replaced by later steps. */
  get values(): TitansMemoryState {
    return this.own;
  }

  /** Buffers of the unfinished chunk: keys and values [batch, chunkSize, heads, headDim], steps [batch, chunkSize, heads]. */
  get buffers(): readonly [Tensor, Tensor, Tensor] {
    return this.waiting;
  }

  get tokens(): number {
    return this.seen;
  }

  /** Tokens in the buffers. */
  get pending(): number {
    return this.seen % this.form.chunkSize;
  }

  /** Chunks that `tokens` more tokens complete. */
  completes(tokens: number): number {
    return Math.floor((this.pending + tokens) / this.form.chunkSize);
  }

  bytes(): Bytes {
    const storages = new Map(allOf(this.own).map((t) => [t.storage, t.bytes]));
    const payload = [...storages.values()].reduce((sum, n) => sum + n, 0);
    return { payload: payload + this.waiting.reduce((sum, t) => sum + t.bytes, 0), metadata: 0, padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const { tokens } = this;
    const names = this.names();
    const values = await Promise.all([...allOf(this.own), ...this.waiting].map((t) => t.read()));
    const arrays = Object.fromEntries(
      values.map((x, i) => [names[i] as string, new Uint8Array(x.buffer, x.byteOffset, x.byteLength).slice()]),
    );
    return { manifest: { kind: 'titans', shape: this.shape(), tokens, chunks: this.own.chunks }, arrays };
  }

  restore(snapshot: Snapshot): void {
    const { kind, shape, tokens, chunks } = snapshot.manifest;
    const list = [...allOf(this.own), ...this.waiting];
    const names = this.names();
    const fits = list.every((t, i) => snapshot.arrays[names[i] as string]?.byteLength === t.size * 4);
    if (kind !== 'titans' || String(shape) !== String(this.shape()) || typeof tokens !== 'number' || typeof chunks !== 'number' || !fits)
      throw new HeedError(
        'INVALID_FILE',
        `titans: a snapshot of ${String(kind)} [${String(shape)}] was given; this stream takes titans [${this.shape().join(', ')}]: chunk, orders of momentum, and the shapes of its memory`,
      );
    scope(() => {
      // copies: the bytes may lie at any offset of a file
      const made = list.map((t, i) =>
        tensor(this.device, new Float32Array((snapshot.arrays[names[i] as string] as Uint8Array).slice().buffer), t.shape),
      );
      const waiting = made.splice(-3) as [Tensor, Tensor, Tensor];
      this.replace(rebuilt(this.own, made, chunks), waiting);
    });
    this.seen = tokens;
  }

  truncate(tokens: number): void {
    if (tokens === this.seen) return;
    throw new HeedError(
      'UNSUPPORTED',
      `titans: truncate to ${tokens} of ${this.seen} tokens; a memory keeps no tokens to go back to, take a snapshot() there and restore() it`,
    );
  }

  select(batch: Tensor): void {
    if (batch.dtype !== 'u32' || batch.rank !== 1)
      throw new HeedError('SHAPE_MISMATCH', `titans: select was given ${batch.describe()}; it takes batch indices, u32 [n]`);
    scope(() => {
      const made = [...allOf(this.own), ...this.waiting].map((t) => indexSelect(copyContiguous(t), batch));
      const waiting = made.splice(-3) as [Tensor, Tensor, Tensor];
      this.replace(rebuilt(this.own, made, this.own.chunks), waiting);
    });
  }

  dispose(): void {
    for (const t of [...allOf(this.own), ...this.waiting]) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Notes what a step did: `next` takes the place of the weights where chunks were completed. */
  advance(tokens: number, next?: TitansMemoryState): void {
    this.seen += tokens;
    if (next) this.replace(next);
  }

  private replace(next: TitansMemoryState, waiting?: readonly [Tensor, Tensor, Tensor]): void {
    const before = [...allOf(this.own), ...(waiting ? this.waiting : [])];
    this.own = held(next);
    if (waiting) this.waiting = waiting.map((t) => t.keep()) as unknown as readonly [Tensor, Tensor, Tensor];
    for (const t of before) t.dispose();
  }

  private names(): string[] {
    const count = tensorsOf(this.own.memory).length;
    const list = (name: string): string[] => Array.from({ length: count }, (_, i) => `${name}.${i}`);
    return [...list('memory'), ...this.own.momentum.flatMap((_, o) => list(`momentum${o}`)), ...list('point'), 'k', 'v', 'rate'];
  }

  private shape(): number[] {
    return [this.form.chunkSize, this.own.momentum.length, ...tensorsOf(this.own.memory).flatMap((t) => [...t.shape])];
  }
}

function allOf({ memory, momentum, point }: TitansMemoryState): Tensor[] {
  return [...tensorsOf(memory), ...momentum.flat(), ...tensorsOf(point)];
}

/** The same state with handles of its own. */
function held(state: TitansMemoryState): TitansMemoryState {
  return rebuilt(
    state,
    allOf(state).map((t) => t.alias().keep()),
    state.chunks,
  );
}

/** The state of a list of tensors in the order of `allOf`. */
function rebuilt(like: TitansMemoryState, list: readonly Tensor[], chunks: number): TitansMemoryState {
  const count = tensorsOf(like.memory).length;
  const residual = like.memory.gamma !== undefined;
  const part = (i: number): Tensor[] => list.slice(i * count, (i + 1) * count);
  return {
    memory: memoryOf(part(0), residual),
    momentum: like.momentum.map((_, o) => part(o + 1)),
    point: memoryOf(part(like.momentum.length + 1), residual),
    chunks,
  };
}

/**
 * An empty stream. The caller disposes it.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function titansStart(device: Device, options: TitansStreamOptions): TitansState {
  const { batch, heads, headDim, memory, orders = 1, ...form } = options;
  if ([batch, heads, headDim].some((n) => !Number.isInteger(n) || n < 1) || !Number.isInteger(orders) || orders < 0)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `titans: a stream of batch, heads, headDim [${[batch, heads, headDim].join(', ')}] with ${orders} orders of momentum; each is an integer of 1 or more, orders of 0 or more`,
    );
  checkForm('titansStart', form);
  checkMemory('titansStart', memory, heads, headDim);
  return scope(() => {
    const own = memoryOf(
      tensorsOf(memory).map((w) => copyContiguous(broadcastTo(unsqueeze(w, 0), [batch, ...w.shape]))),
      memory.gamma !== undefined,
    );
    const momentum = Array.from({ length: orders }, () => tensorsOf(own).map((w) => zeros(device, w.shape)));
    const buffer = (shape: readonly number[]): Tensor => zeros(device, shape, { label: 'titans buffer' });
    const rows = [batch, form.chunkSize, heads];
    return new TitansState(form, { memory: own, momentum, point: own, chunks: 0 }, [
      buffer([...rows, headDim]),
      buffer([...rows, headDim]),
      buffer(rows),
    ]);
  });
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `titans` gives for the whole sequence, whatever the pieces.
 * No gradient.
 * @param q [batch, n, heads, headDim], f32 or f16; k and v as q
 * @param rates the steps of these tokens, and momentum and forgetting of the chunks that they complete
 * @param state updated in place
 * @returns [batch, n, heads, headDim], dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; DISPOSED after `state.dispose()`; UNSUPPORTED when an input is differentiated
 */
export function titansStep(q: Tensor, k: Tensor, v: Tensor, rates: TitansStepRates, state: TitansState): Tensor {
  const { form, values, pending, buffers } = state;
  const { activation = 'gelu', lnEpsilon = 1e-5, precision = 'f32' } = form;
  const heads = q.shape[2] ?? 0;
  const options: TitansOptions = { ...form, ...rates, memory: values.memory, initialState: values };
  scope(() => {
    // the checks know a start by its heads; the state has a batch axis in front
    const first = tensorsOf(values.memory).map((w) => w.view({ shape: [heads, ...w.shape.slice(2)], strides: w.strides.slice(1) }));
    checkArguments('titansStep', q, k, v, { ...options, memory: memoryOf(first, values.memory.gamma !== undefined) }, pending);
  });
  if (q.dim(0) !== buffers[0].dim(0))
    throw new HeedError('SHAPE_MISMATCH', `titansStep: q is ${q.describe()}; this stream has a batch of ${buffers[0].dim(0)}`);
  const tokens = q.dim(1);
  const completes = state.completes(tokens) > 0;
  const [out] = apply<readonly Tensor[]>({
    name: 'titansStep',
    inputs: [q, k, v, rates.learningRate, rates.forget, ...ordersOf(rates.momentum)],
    forward: () => {
      const given = [k, v, rates.learningRate].map((x) => cast(x, 'f32'));
      const joined = given.map((x, i) => (pending > 0 && completes ? concat([slice(buffers[i] as Tensor, 1, 0, pending), x], 1) : x));
      const [allK, allV, rate] = joined as [Tensor, Tensor, Tensor];
      const put = (from: readonly Tensor[], first: number, at: number): void =>
        from.forEach((x, i) => {
          const rows = x.dim(1) - first;
          if (rows > 0) copyInto(slice(buffers[i] as Tensor, 1, at, at + rows), slice(x, 1, first));
        });
      if (!completes) {
        const asked = permute(q, [0, 2, 1, 3]);
        const answer = permute(recall(values.memory, asked, { activation, lnEpsilon, precision }), [0, 2, 1, 3]);
        put(given, 0, pending);
        return [cast(answer, v.dtype)];
      }
      const made = runTitans(q, allK, allV, { ...options, learningRate: rate }, pending);
      put(joined, state.completes(tokens) * form.chunkSize, 0);
      state.advance(0, made.state);
      return [cast(made.out, v.dtype)];
    },
  });
  state.advance(tokens);
  return out as Tensor;
}
