import {
  add,
  concat,
  copyInto,
  type Device,
  HeedError,
  matmul,
  mul,
  reshape,
  scope,
  slice,
  type Snapshot,
  type Tensor,
  zeros,
} from '@heed/core';
import { apply, copyContiguous } from '@heed/core/~internal';
import { HeldTensors } from '../scan/held-tensors.js';
import { clippedTable } from './clip.js';
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
  /** Tokens that the state has room for; with `clip` none is needed, and tokens may come without end. */
  capacity?: number;
  /** W, f32 [heads, m, headDim]; copied. */
  features: Tensor;
  /** b, f32 [heads, 2 capacity - 1], or [heads, 2 clip + 1], as `nprf` takes it; entries of later keys are not read. Copied. */
  rpeBias: Tensor;
}

/** Tokens that a state with a clipped bias has room for: those of the window, and as many before the oldest are summed up. */
const roomOf = (clip: number): number => clip + Math.max(clip, 64);

/**
 * State of a stream: phi(k) and v of up to `capacity` tokens. A bias of any shape leaves no smaller state: 4 (m + valueDim + 1) bytes a
 * token and head (twice m for trf). With `clip` what lies farther back is one sum of phi(k) [v, 1]^T, and room for 2 clip tokens is enough
 * at any length.
 */
export class NprfState extends HeldTensors {
  readonly settings: NprfSettings;
  readonly sizes: Readonly<Record<'heads' | 'headDim' | 'valueDim' | 'capacity', number>>;
  readonly features: Tensor;
  /** Entries of the offsets -(capacity - 1) .. 0. */
  private readonly bias: Tensor;
  /** Tokens that are summed up in `far`. */
  private folded = 0;

  constructor(device: Device, options: NprfStreamOptions) {
    const { batch, heads, headDim, valueDim = headDim, features, rpeBias } = options;
    const settings = { ...resolveOptions('nprfStart', options), causal: true };
    const { clip, trf } = settings;
    const capacity = clip === undefined ? (options.capacity ?? 0) : roomOf(clip);
    for (const [name, n] of Object.entries({ batch, heads, headDim, valueDim, capacity }))
      if (!Number.isInteger(n) || n < 1)
        throw new HeedError('INVALID_ARGUMENT', `nprf: a stream with ${name} ${n}; it must be an integer of 1 or more`);
    if (features.rank !== 3 || features.dim(0) !== heads || features.dim(2) !== headDim)
      throw new HeedError('SHAPE_MISMATCH', `nprfStart: features is ${features.describe()}; it must be [${heads}, m, ${headDim}]`);
    const columns = features.dim(1) * (trf ? 2 : 1);
    const sizes = { heads, headDim, valueDim, capacity };
    const constants = [tableOf(rpeBias, sizes, clip), copyContiguous(features)] as const;
    super(
      device,
      'nprf',
      {
        phi: zeros(device, [batch, heads, capacity, columns], { label: 'nprf features of keys' }),
        values: zeros(device, [batch, heads, capacity, valueDim + 1], { label: 'nprf values' }),
        ...(clip !== undefined && { far: zeros(device, [batch, heads, columns, valueDim + 1], { label: 'nprf sum before the window' }) }),
      },
      constants,
    );
    this.settings = settings;
    this.sizes = sizes;
    [this.bias, this.features] = constants;
  }

  /** Another table, f32 [heads, 2 capacity - 1] or [heads, 2 clip + 1]; copied. */
  setBias(rpeBias: Tensor): void {
    scope(() => copyInto(this.bias, tableOf(rpeBias, this.sizes, this.settings.clip)));
  }

  override async snapshot(): Promise<Snapshot> {
    const own = this.manifest();
    const { manifest, arrays } = await super.snapshot();
    return { manifest: { ...manifest, ...own }, arrays };
  }

  override restore(snapshot: Snapshot): void {
    const { folded, ...own } = this.manifest();
    const given = snapshot.manifest;
    if (Object.entries(own).some(([name, value]) => given[name] !== value) || typeof given['folded'] !== typeof folded)
      throw new HeedError(
        'INVALID_FILE',
        `nprf: a snapshot of ${JSON.stringify(given)} was given; this stream is of ${JSON.stringify(own)}, start one with the same options`,
      );
    super.restore(snapshot);
    this.folded = given['folded'] as number;
  }

  override truncate(tokens: number): void {
    if (!Number.isInteger(tokens) || tokens < 0 || tokens > this.seen)
      throw new HeedError('INVALID_ARGUMENT', `nprf: truncate to ${tokens} of ${this.seen} tokens; give an integer from 0 to ${this.seen}`);
    // tokens of the window that lie before the cut must all be there
    if (this.folded > 0 && tokens < this.folded + (this.settings.clip ?? 0))
      throw new HeedError(
        'UNSUPPORTED',
        `nprf: truncate to ${tokens} of ${this.seen} tokens; the first ${this.folded} are summed up, take a snapshot() there and restore() it`,
      );
    this.seen = tokens;
  }

  /** Takes in phi and values of the next tokens, [batch, heads, n, ..]; gives the sums of queries with features phiQ. */
  attend(phiQ: Tensor, phiK: Tensor, values: Tensor): Tensor {
    const { heads, capacity } = this.sizes;
    const { clip } = this.settings;
    const [batch, tokens] = [phiK.dim(0), phiK.dim(2)];
    if (tokens === 0) return zeros(this.device, [batch * heads, 0, values.dim(3)]);
    const most = clip === undefined ? tokens : capacity - clip;
    if (tokens <= most) return this.piece(phiQ, phiK, values);
    const parts = Array.from({ length: Math.ceil(tokens / most) }, (_, i) => {
      const [a, b, w] = [phiQ, phiK, values].map((x) => slice(x, 2, i * most, Math.min(tokens, (i + 1) * most)));
      return this.piece(a as Tensor, b as Tensor, w as Tensor);
    });
    return concat(parts, 1);
  }

  private piece(phiQ: Tensor, phiK: Tensor, values: Tensor): Tensor {
    const { heads, capacity } = this.sizes;
    const { clip } = this.settings;
    const [batch, n] = [phiK.dim(0), phiK.dim(2)];
    if (clip !== undefined && this.seen - this.folded + n > capacity) this.fold(this.seen - this.folded - clip);
    const begin = this.seen - this.folded;
    const end = begin + n;
    const filled = (x: Tensor): Tensor =>
      x.view({ shape: [batch * heads, end, x.dim(3)], strides: [capacity * x.dim(3), x.dim(3), 1], offset: x.offset });
    this.seen += n;
    copyInto(this.rows('phi', begin, n), phiK);
    copyInto(this.rows('values', begin, n), values);
    // offsets -(end - 1) .. 0 of the table
    const c = factorsOf(slice(this.bias, 1, capacity - end), this.settings.denominatorEps);
    const near = directProduct(
      { a: copyContiguous(asEntries(phiQ)), b: filled(this.get('phi')), w: filled(this.get('values')), c: copyContiguous(c) },
      { ...sequencePositions(n, end, true), heads, transposed: false },
    );
    if (this.folded === 0) return near;
    // all that is summed up lies beyond the window, as the first entry does
    return add(near, asEntries(mul(matmul(phiQ, this.get('far')), reshape(slice(c, 1, 0, 1), [1, heads, 1, 1]))));
  }

  /** Rows first .. first + count of each entry. */
  private rows(name: 'phi' | 'values', first: number, count: number): Tensor {
    const x = this.get(name);
    return x.view({ shape: [x.dim(0), x.dim(1), count, x.dim(3)], strides: x.strides, offset: x.offset + first * x.dim(3) });
  }

  /** Sums up the oldest `count` tokens, and moves the rest to the front. */
  private fold(count: number): void {
    const far = this.get('far');
    const left = this.seen - this.folded - count;
    copyInto(far, add(far, matmul(this.rows('phi', 0, count), this.rows('values', 0, count), { transposeA: true })));
    for (const name of ['phi', 'values'] as const) copyInto(this.rows(name, 0, left), copyContiguous(this.rows(name, count, left)));
    this.folded += count;
  }

  private manifest(): { folded: number; clip: number; trf: boolean; normalize: boolean } {
    const { clip = 0, trf, normalize } = this.settings;
    return { folded: this.folded, clip, trf, normalize };
  }
}

/** The offsets -(capacity - 1) .. 0 of a table, a copy. */
function tableOf(rpeBias: Tensor, { heads, capacity }: { heads: number; capacity: number }, clip: number | undefined): Tensor {
  if (clip === undefined) checkBias('nprfStart', rpeBias, [heads, 2 * capacity - 1], 'heads, 2 capacity - 1');
  else checkBias('nprfStart', rpeBias, [heads, 2 * clip + 1], 'heads, 2 clip + 1');
  return scope(() => copyContiguous(slice(clip === undefined ? rpeBias : clippedTable(rpeBias, clip, capacity - 1, 0), 1, 0, capacity)));
}

/** An empty stream; with `clip` its state does not grow. The caller disposes it. @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT */
export function nprfStart(device: Device, options: NprfStreamOptions): NprfState {
  return new NprfState(device, options);
}

/**
 * The next tokens of a stream: any number. Gives what `nprf` with `causal` gives for the whole sequence, whatever the pieces, in time
 * proportional to the tokens so far, or, with a clipped bias, to `clip`. No gradient.
 * @param q [batch, n, heads, headDim], f32 or f16
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @returns [batch, n, heads, valueDim], dtype of q
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; LIMIT_EXCEEDED beyond the capacity; UNSUPPORTED when an input is differentiated
 */
export function nprfStep(q: Tensor, k: Tensor, v: Tensor, state: NprfState): Tensor {
  const { heads, headDim, valueDim, capacity } = state.sizes;
  const batch = state.get('phi').dim(0);
  checkArguments('nprfStep', { q, k, v, features: state.features, lengths: undefined });
  if (q.dim(0) !== batch || q.dim(3) !== headDim || v.dim(3) !== valueDim || k.dim(1) !== q.dim(1))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `nprfStep: q is ${q.describe()}, k ${k.describe()}, v ${v.describe()}; the state is of batch ${batch}, ${heads} heads, headDim ${headDim}, valueDim ${valueDim}`,
    );
  if (state.settings.clip === undefined && state.tokens + q.dim(1) > capacity)
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
