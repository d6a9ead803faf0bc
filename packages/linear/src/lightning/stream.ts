import { type Device, HeedError, scope, type Tensor, zeros } from '@heed/core';
import { copyContiguous } from '@heed/core/~internal';
import { checkDecay, checkState, decayTensor, isTensorDecay } from '../scan/options.js';
import { decayScanStep } from '../scan/decay-scan.js';
import { HeldTensors } from '../scan/held-tensors.js';
import type { LightningOptions } from './forward.js';

/** What a stream is started with. */
export interface LightningStreamOptions extends Omit<LightningOptions, 'causal' | 'lengths'> {
  batch: number;
  heads: number;
  keyDim: number;
  /** Default `keyDim`. */
  valueDim?: number;
}

/** State of a stream: one matrix a head, f32 [batch, heads, keyDim, valueDim], whatever the length. */
export class LightningState extends HeldTensors {
  /** Takes over both tensors. */
  constructor(
    matrix: Tensor,
    /** Log-decay a head, f32 [heads]. */
    readonly decay: Tensor,
    readonly options: { scale: number; chunk: number | undefined },
  ) {
    super(matrix.device, 'lightning', { state: matrix }, [decay]);
  }

  /** The state's values, f32 [batch, heads, keyDim, valueDim]; owned by the stream. */
  get values(): Tensor {
    return this.get('state');
  }
}

/**
 * An empty stream, or one that goes on from `initialState`. The caller disposes it.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function lightningStart(device: Device, options: LightningStreamOptions): LightningState {
  const { batch, heads, keyDim, valueDim = keyDim, decay, scale = 1, initialState, chunk } = options;
  const shape = [batch, heads, keyDim, valueDim];
  if (shape.some((n) => !Number.isInteger(n) || n < 1))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `lightning: a stream of batch, heads, keyDim, valueDim [${shape.join(', ')}]; each is an integer of 1 or more`,
    );
  if (decay !== undefined) checkDecay('lightningStart', decay, heads);
  if (initialState) checkState('lightningStart', initialState, shape);
  const matrix = initialState ? copyContiguous(initialState) : zeros(device, shape, { label: 'lightning state' });
  const own = decay === undefined ? zeros(device, [heads]) : isTensorDecay(decay) ? copyContiguous(decay) : decayTensor(device, decay);
  return new LightningState(matrix, own, { scale, chunk });
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `lightning` gives for the whole sequence, whatever the
 * pieces. No gradient.
 * @param q [batch, n, heads, keyDim], f32 or f16
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @returns [batch, n, heads, valueDim], dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; DISPOSED after `state.dispose()`; UNSUPPORTED when an input is differentiated
 */
export function lightningStep(q: Tensor, k: Tensor, v: Tensor, state: LightningState): Tensor {
  const { scale, chunk } = state.options;
  const options = { decay: state.decay, scale, ...(chunk !== undefined && { chunk }) };
  const out = scope(() => decayScanStep(q, k, v, state.values, options, 'lightningStep'));
  state.advance(q.dim(1));
  return out;
}
