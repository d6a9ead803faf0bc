import {
  type Bytes,
  copyInto,
  type Device,
  type FloatDType,
  HeedError,
  indexSelect,
  scope,
  type Snapshot,
  type State,
  type Tensor,
  writeValues,
  zeros,
} from '@heed/core';
import { apply, empty, holdsTensors } from '@heed/core/~internal';
import { attendSizes } from './forward.js';
import { attend } from './kernels/attend.js';
import { packTokens } from './kernels/codes.js';
import { extendRuns, type Runs } from './kernels/runs.js';
import { extendSums, sumTile } from './kernels/sums.js';
import { isHalf, meansOf } from './kernels/means.js';
import { columnsOf } from './kernels/values.js';
import { findWindows, windowTile } from './kernels/window.js';
import { checkArguments, resolveOptions, type ZetaOptions, type ZetaSettings } from './options.js';
import { blockOf, levelsOf, planZeta } from './plan.js';

/** What a stream is started with: `zeta`'s options and the sizes that its state needs. */
export interface ZetaStreamOptions extends ZetaOptions {
  batch: number;
  heads: number;
  keyDim: number;
  valueDim: number;
  /** Tokens that the state has room for. */
  capacity: number;
  /** Of the values. Default f32. */
  dtype?: FloatDType;
  /** Rows of `width` numbers that a caller keeps with the state: [batch, rows, width], zeros at first. */
  history?: { rows: number; width: number; dtype: FloatDType };
}

/**
 * State of a stream: keys, values, their sorted runs and running sums, for up to `capacity` tokens. A row (batch x head) takes
 * 16 + 8 curves levels + size valueDim + (1 + valueDim / 4) bytes a token, levels = log2(capacity / chunk) + 1.
 */
export class ZetaState implements State {
  readonly device: Device;
  readonly settings: ZetaSettings;
  readonly batch: number;
  readonly heads: number;
  readonly capacity: number;
  private readonly options: ZetaStreamOptions;
  private held: Record<string, Tensor>;
  private seen = 0;

  constructor(device: Device, options: ZetaStreamOptions) {
    const { batch, heads, keyDim, valueDim, capacity, dtype = 'f32', history } = options;
    for (const [name, n] of Object.entries({ batch, heads, valueDim, capacity }))
      if (!Number.isInteger(n) || n < 1)
        throw new HeedError('INVALID_ARGUMENT', `zeta: a stream with ${name} ${n}; it must be an integer of 1 or more`);
    const settings = resolveOptions('zeta', options, keyDim);
    if (!settings.causal)
      throw new HeedError('UNSUPPORTED', 'zeta: a stream with causal: false; a token that came cannot see later ones, use the function');
    this.device = device;
    this.settings = settings;
    this.options = options;
    this.batch = batch;
    this.heads = heads;
    this.capacity = capacity;
    const rows = batch * heads;
    const levels = levelsOf(capacity, blockOf(settings), true);
    this.held = {
      k: zeros(device, [batch, heads, capacity, 4], { label: 'zeta keys' }),
      v: zeros(device, [batch, capacity, heads, valueDim], { dtype, label: 'zeta values' }),
      pairs: empty(device, [settings.curves, rows, levels, capacity, 2], 'u32', 'zeta runs'),
      ...(settings.historyMean && {
        sums: zeros(device, [batch, heads, Math.ceil(capacity / sumTile) + 1, 1 + columnsOf(valueDim), 4], { label: 'zeta sums' }),
      }),
      ...(history && { history: zeros(device, [batch, history.rows, history.width], { dtype: history.dtype, label: 'zeta history' }) }),
    };
    for (const t of Object.values(this.held)) t.keep();
    Object.defineProperty(this, holdsTensors, { value: () => Object.values(this.held) });
  }

  get tokens(): number {
    return this.seen;
  }

  /** The caller's rows; see {@link ZetaStreamOptions.history}. */
  get history(): Tensor | undefined {
    return this.held['history'];
  }

  bytes(): Bytes {
    const of = (...names: string[]): number => names.reduce((sum, name) => sum + (this.held[name]?.bytes ?? 0), 0);
    return { payload: of('k', 'v', 'history'), metadata: of('pairs', 'sums'), padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const { seen: tokens } = this;
    const arrays: Record<string, Uint8Array> = {};
    const read = Object.entries(this.held).map(async ([name, t]) => {
      const values = await t.read();
      arrays[name] = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    });
    await Promise.all(read);
    return { manifest: { ...this.manifest(), tokens }, arrays };
  }

  restore(snapshot: Snapshot): void {
    const own = this.manifest();
    const { tokens, ...given } = snapshot.manifest;
    const same = Object.keys({ ...own, ...given }).every((name) => String(own[name]) === String(given[name]));
    const arrays = Object.keys(this.held).map((name) => snapshot.arrays[name]);
    if (!same || typeof tokens !== 'number' || arrays.some((bytes, i) => bytes?.byteLength !== Object.values(this.held)[i]!.size * 4))
      throw new HeedError(
        'INVALID_FILE',
        `zeta: a snapshot of ${JSON.stringify(given)} was given; this stream is ${JSON.stringify(own)}, start one with the same options`,
      );
    Object.values(this.held).forEach((t, i) => {
      // a copy: the bytes may lie at any offset of a file
      const { buffer } = (arrays[i] as Uint8Array).slice();
      writeValues(t, t.dtype === 'u32' ? new Uint32Array(buffer) : new Float32Array(buffer));
    });
    this.seen = tokens;
  }

  truncate(tokens: number): void {
    if (!Number.isInteger(tokens) || tokens < 0 || tokens > this.seen)
      throw new HeedError('INVALID_ARGUMENT', `zeta: truncate to ${tokens} of ${this.seen} tokens; give an integer from 0 to ${this.seen}`);
    if (tokens === this.seen) return;
    if (this.history)
      throw new HeedError(
        'UNSUPPORTED',
        `zeta: truncate to ${tokens} of ${this.seen} tokens; the short convolution keeps only its last inputs, take a snapshot() there and restore() it`,
      );
    // runs of all levels and the sums of whole tiles are still there: what lies behind is written again
    this.seen = tokens;
  }

  select(batch: Tensor): void {
    if (batch.dtype !== 'u32' || batch.rank !== 1 || batch.size !== this.batch)
      throw new HeedError(
        'SHAPE_MISMATCH',
        `zeta: select was given ${batch.describe()}; it takes one batch index an entry of the state, u32 [${this.batch}]`,
      );
    const chosen: Record<string, Tensor> = {};
    for (const [name, t] of Object.entries(this.held)) {
      chosen[name] = scope(() => {
        if (name !== 'pairs') return indexSelect(t, batch);
        const { curves } = this.settings;
        const out = empty(this.device, t.shape, 'u32', t.label);
        const size = t.size / curves;
        for (let curve = 0; curve < curves; curve++) {
          const part = (x: Tensor): Tensor =>
            x.view({ shape: [this.batch, size / this.batch], strides: [size / this.batch, 1], offset: x.offset + curve * size });
          copyInto(part(out), indexSelect(part(t), batch));
        }
        return out;
      }).keep();
    }
    this.dispose();
    this.held = chosen;
  }

  dispose(): void {
    for (const t of Object.values(this.held)) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Takes in k and v of the next tokens and attends from q, see `zetaStep`; `list`: the kept tokens follow the output. */
  attend(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, list: boolean): readonly Tensor[] {
    const { settings, heads, batch, capacity, device, seen } = this;
    const queries = q.dim(1);
    const values = this.tensor('v');
    const keys = this.tensor('k');
    if (q.dim(0) !== batch || q.dim(2) !== heads || q.dim(3) !== settings.keyDim || v.dim(3) !== values.dim(3))
      throw new HeedError(
        'SHAPE_MISMATCH',
        `zetaStep: q is ${q.describe()}, v ${v.describe()}; the state is of batch ${batch}, ${heads} heads, keyDim ${settings.keyDim}, valueDim ${values.dim(3)}`,
      );
    if (seen + queries > capacity)
      throw new HeedError(
        'LIMIT_EXCEEDED',
        `zetaStep: ${queries} tokens after ${seen}; the state has room for ${capacity}, start it with a larger capacity`,
      );
    const rows = batch * heads;
    const end = seen + queries;
    const valueDim = values.dim(3);
    const out = empty(device, v.shape, values.dtype);
    const indices = list ? empty(device, [batch, queries, heads, settings.topK], 'i32') : undefined;
    const made = indices ? [out, indices] : [out];
    if (queries === 0) return made;
    const plan = planZeta(settings, { rows, tokens: capacity, valueDim, half: isHalf(values) }, device.capabilities);
    const { block, levels } = plan;
    packTokens(k, keys, { rows, firstRow: 0, heads, tokens: queries, firstToken: seen, capacity });
    copyInto(values.view({ shape: v.shape, strides: values.strides, offset: values.offset + seen * heads * valueDim }), v);
    const runs: Runs = { pairs: this.tensor('pairs'), curves: settings.curves, rows, levels, capacity, block };
    extendRuns(runs, keys, settings, settings.keyDim, seen, end, false);
    const sums = this.held['sums'];
    const entries = Math.ceil(capacity / sumTile) + 1;
    const firstTile = Math.floor(seen / sumTile);
    const tiles = Math.floor(end / sumTile) - firstTile;
    if (sums && tiles > 0) extendSums(keys, values, sums, { rows, firstRow: 0, heads, capacity, firstTile, tiles, entries, tokens: end });
    const packedQ = empty(device, [rows, queries, 4]);
    packTokens(q, packedQ, { rows, firstRow: 0, heads, tokens: queries, firstToken: 0, capacity: queries });
    const { window, chunk, keyDim } = settings;
    const windows = empty(device, [rows, Math.ceil(queries / windowTile), window, windowTile], 'u32');
    findWindows(runs, packedQ, windows, {
      range: settings,
      keyDim,
      chunk,
      causal: true,
      window,
      queries,
      firstQuery: seen,
      keys: end,
      runs: plan.runs,
      sweep: false,
    });
    const place = { rows, firstRow: 0, heads, capacity, queries, firstQuery: seen };
    const own = { q: packedQ, k: keys, v: values, theta };
    const means = sums ? meansOf({ sums, ...own }, { entries, tokens: end, causal: true, ...place }) : undefined;
    attend({ windows, means, out, indices, ...own, ...place }, attendSizes(settings, plan));
    this.seen = end;
    return made;
  }

  private tensor(name: string): Tensor {
    return this.held[name] as Tensor;
  }

  private manifest(): Record<string, string | number | boolean | readonly number[]> {
    const { batch, heads, capacity, settings } = this;
    const { dtype = 'f32', valueDim, history } = this.options;
    return { kind: 'zeta', batch, heads, capacity, valueDim, dtype, history: history ? [history.rows, history.width] : [], ...settings };
  }
}

/**
 * An empty stream. The caller disposes it.
 * @throws HeedError INVALID_ARGUMENT, LIMIT_EXCEEDED, UNSUPPORTED when not causal
 */
export function zetaStart(device: Device, options: ZetaStreamOptions): ZetaState {
  return new ZetaState(device, options);
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `zeta` gives for the whole sequence, with the same
 * selection, whatever the pieces. No gradient.
 * @param q [batch, n, heads, keyDim], f32; k as q; v [batch, n, heads, valueDim]
 * @param state updated in place
 * @returns [batch, n, heads, valueDim], dtype of the state
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; LIMIT_EXCEEDED beyond the capacity; UNSUPPORTED when an input is differentiated
 */
export function zetaStep(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, state: ZetaState): Tensor {
  checkArguments('zetaStep', q, k, v, theta);
  const [out] = apply({ name: 'zetaStep', inputs: [q, k, v, theta], forward: () => state.attend(q, k, v, theta, false) });
  return out as Tensor;
}

/**
 * As `zetaStep`, with the tokens found by the search and kept, i32 [batch, n, heads, topK], as `zetaWithIndices` lists them.
 * @returns out as `zetaStep`, and the indices
 * @throws HeedError what `zetaStep` throws
 */
export function zetaStepWithIndices(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, state: ZetaState): { out: Tensor; indices: Tensor } {
  checkArguments('zetaStepWithIndices', q, k, v, theta);
  const [out, indices] = apply({
    name: 'zetaStepWithIndices',
    inputs: [q, k, v, theta],
    forward: () => state.attend(q, k, v, theta, true),
  });
  return { out: out as Tensor, indices: indices as Tensor };
}
