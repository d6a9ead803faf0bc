import {
  type Bytes,
  copyInto,
  type Device,
  HeedError,
  indexSelect,
  reshape,
  slice,
  type Snapshot,
  type State,
  type Tensor,
  writeValues,
  zeros,
} from '@heed/core';
import { apply, copyContiguous, holdsTensors } from '@heed/core/~internal';
import { factorsOf, nprfFeatures, outputOf, asEntries, withOnes } from './function.js';
import { directProduct } from './kernels/direct.js';
import { checkArguments, checkBias, type NprfOptions, type NprfSettings, resolveOptions } from './options.js';
import { sequencePositions } from './positions.js';

/** What a stream is started with: `nprf`'s options, its tables and sizes. */
export interface NprfStreamOptions extends Omit<NprfOptions, 'causal' | 'lengths' | 'path'> {
  batch: number;
  heads: number;
  headDim: number;
  /** Default headDim. */
  valueDim?: number;
  /** Tokens that the state has room for. */
  capacity: number;
  /** W, f32 [heads, m, headDim]; copied. */
  features: Tensor;
  /** b, f32 [heads, 2 capacity - 1], as `nprf` takes it for `capacity` tokens; entries of later keys are not read. Copied. */
  rpeBias: Tensor;
}

/**
 * State of a stream: phi(k) and v of up to `capacity` tokens. A bias of any shape leaves no smaller state: 4 (m + valueDim + 1) bytes a
 * token and head (twice m for trf).
 */
export class NprfState implements State {
  readonly device: Device;
  readonly settings: NprfSettings;
  readonly sizes: Readonly<Record<'batch' | 'heads' | 'headDim' | 'valueDim' | 'capacity', number>>;
  private held: { phi: Tensor; values: Tensor; features: Tensor; bias: Tensor };
  private seen = 0;

  constructor(device: Device, options: NprfStreamOptions) {
    const { batch, heads, headDim, valueDim = headDim, capacity, features, rpeBias } = options;
    const sizes = { batch, heads, headDim, valueDim, capacity };
    for (const [name, n] of Object.entries(sizes))
      if (!Number.isInteger(n) || n < 1)
        throw new HeedError('INVALID_ARGUMENT', `nprf: a stream with ${name} ${n}; it must be an integer of 1 or more`);
    this.settings = { ...resolveOptions('nprfStart', options), causal: true };
    if (features.rank !== 3 || features.dim(0) !== heads || features.dim(2) !== headDim)
      throw new HeedError('SHAPE_MISMATCH', `nprfStart: features is ${features.describe()}; it must be [${heads}, m, ${headDim}]`);
    checkBias('nprfStart', rpeBias, [heads, 2 * capacity - 1], 'heads, 2 capacity - 1');
    this.device = device;
    this.sizes = sizes;
    const columns = features.dim(1) * (this.settings.trf ? 2 : 1);
    this.held = {
      phi: zeros(device, [batch, heads, capacity, columns], { label: 'nprf features of keys' }).keep(),
      values: zeros(device, [batch, heads, capacity, valueDim + 1], { label: 'nprf values' }).keep(),
      features: copyContiguous(features).keep(),
      bias: copyContiguous(rpeBias).keep(),
    };
    Object.defineProperty(this, holdsTensors, { value: () => Object.values(this.held) });
  }

  get tokens(): number {
    return this.seen;
  }

  get features(): Tensor {
    return this.held.features;
  }

  /** Another table, f32 [heads, 2 capacity - 1]; copied. */
  setBias(rpeBias: Tensor): void {
    checkBias('nprf', rpeBias, this.held.bias.shape, 'heads, 2 capacity - 1');
    copyInto(this.held.bias, rpeBias);
  }

  bytes(): Bytes {
    const { phi, values, features, bias } = this.held;
    return { payload: phi.bytes + values.bytes, metadata: features.bytes + bias.bytes, padding: 0, host: 0 };
  }

  async snapshot(): Promise<Snapshot> {
    const { seen: tokens } = this;
    const [phi, values] = await Promise.all([this.held.phi.read(), this.held.values.read()]);
    const bytesOf = (x: { buffer: ArrayBufferLike; byteOffset: number; byteLength: number }): Uint8Array =>
      new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
    return { manifest: { ...this.manifest(), tokens }, arrays: { phi: bytesOf(phi), values: bytesOf(values) } };
  }

  restore(snapshot: Snapshot): void {
    const own = this.manifest();
    const { tokens, ...given } = snapshot.manifest;
    const same = Object.keys({ ...own, ...given }).every((name) => String(own[name]) === String(given[name]));
    const arrays = (['phi', 'values'] as const).map((name) => [this.held[name], snapshot.arrays[name]] as const);
    if (!same || typeof tokens !== 'number' || arrays.some(([t, bytes]) => bytes?.byteLength !== t.bytes))
      throw new HeedError(
        'INVALID_FILE',
        `nprf: a snapshot of ${JSON.stringify(given)} was given; this stream is ${JSON.stringify(own)}, start one with the same options`,
      );
    // a copy: the bytes may lie at any offset of a file
    for (const [t, bytes] of arrays) writeValues(t, new Float32Array((bytes as Uint8Array).slice().buffer));
    this.seen = tokens;
  }

  truncate(tokens: number): void {
    if (!Number.isInteger(tokens) || tokens < 0 || tokens > this.seen)
      throw new HeedError('INVALID_ARGUMENT', `nprf: truncate to ${tokens} of ${this.seen} tokens; give an integer from 0 to ${this.seen}`);
    this.seen = tokens;
  }

  select(batch: Tensor): void {
    if (batch.dtype !== 'u32' || batch.rank !== 1 || batch.size !== this.sizes.batch)
      throw new HeedError(
        'SHAPE_MISMATCH',
        `nprf: select was given ${batch.describe()}; it takes one batch index an entry of the state, u32 [${this.sizes.batch}]`,
      );
    for (const name of ['phi', 'values'] as const) {
      const chosen = indexSelect(this.held[name], batch).keep();
      this.held[name].dispose();
      this.held[name] = chosen;
    }
  }

  dispose(): void {
    for (const t of Object.values(this.held)) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Takes in phi and values of the next tokens, [batch, heads, n, ..]; gives the sums of queries with features phiQ. */
  attend(phiQ: Tensor, phiK: Tensor, values: Tensor): Tensor {
    const { heads, batch, capacity } = this.sizes;
    const n = phiK.dim(2);
    const { seen } = this;
    const end = seen + n;
    // rows first .. first + count of each entry
    const part = (x: Tensor, first: number, count: number): Tensor =>
      x.view({ shape: [batch, heads, count, x.dim(3)], strides: x.strides, offset: x.offset + first * x.dim(3) });
    const filled = (x: Tensor): Tensor =>
      x.view({ shape: [batch * heads, end, x.dim(3)], strides: [capacity * x.dim(3), x.dim(3), 1], offset: x.offset });
    this.seen = end;
    if (n === 0) return zeros(this.device, [batch * heads, 0, values.dim(3)]);
    copyInto(part(this.held.phi, seen, n), phiK);
    copyInto(part(this.held.values, seen, n), values);
    // offsets -(end - 1) .. 0 of the table
    const bias = slice(this.held.bias, 1, capacity - end, capacity);
    const c = factorsOf(bias, this.settings.denominatorEps);
    return directProduct(
      { a: copyContiguous(asEntries(phiQ)), b: filled(this.held.phi), w: filled(this.held.values), c: copyContiguous(c) },
      { ...sequencePositions(n, end, true), heads, transposed: false },
    );
  }

  private manifest(): Record<string, string | number | boolean> {
    return { kind: 'nprf', ...this.sizes, columns: this.held.phi.dim(3), trf: this.settings.trf, normalize: this.settings.normalize };
  }
}

/** An empty stream. The caller disposes it. @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT */
export function nprfStart(device: Device, options: NprfStreamOptions): NprfState {
  return new NprfState(device, options);
}

/**
 * The next tokens of a stream: any number. Gives what `nprf` with `causal` gives for the whole sequence, whatever the pieces, in time
 * proportional to the tokens so far. No gradient.
 * @param q [batch, n, heads, headDim], f32 or f16
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @returns [batch, n, heads, valueDim], dtype of q
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; LIMIT_EXCEEDED beyond the capacity; UNSUPPORTED when an input is differentiated
 */
export function nprfStep(q: Tensor, k: Tensor, v: Tensor, state: NprfState): Tensor {
  const { batch, heads, headDim, valueDim, capacity } = state.sizes;
  checkArguments('nprfStep', { q, k, v, features: state.features, lengths: undefined });
  if (q.dim(0) !== batch || q.dim(3) !== headDim || v.dim(3) !== valueDim || k.dim(1) !== q.dim(1))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `nprfStep: q is ${q.describe()}, k ${k.describe()}, v ${v.describe()}; the state is of batch ${batch}, ${heads} heads, headDim ${headDim}, valueDim ${valueDim}`,
    );
  if (state.tokens + q.dim(1) > capacity)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `nprfStep: ${q.dim(1)} tokens after ${state.tokens}; the state has room for ${capacity}, start it with a larger capacity and table`,
    );
  return apply({
    name: 'nprfStep',
    inputs: [q, k, v],
    forward: () => {
      if (q.dim(1) === 0) return reshape(v, v.shape);
      const phiQ = nprfFeatures(q, state.features, state.settings);
      const phiK = nprfFeatures(k, state.features, state.settings);
      return outputOf(state.attend(phiQ, phiK, withOnes(v)), batch, heads, state.settings.denominatorEps, q.dtype);
    },
  });
}
