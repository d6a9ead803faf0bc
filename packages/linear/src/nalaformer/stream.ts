import { type Device, HeedError, scope, type Tensor, zeros } from '@heed/core';
import { HeldTensors } from '../scan/held-tensors.js';
import { decayScanStep } from '../scan/decay-scan.js';
import { features, meanQuotient, widened } from './forward.js';
import { checkNalaformer, featureSettings, type NalaformerOptions } from './options.js';

/** What a stream is started with: sizes and the options of the causal form. */
export interface NalaformerStreamOptions extends Pick<NalaformerOptions, 'lambda' | 'tau' | 'keyPower' | 'map' | 'angleScale' | 'eps'> {
  batch: number;
  heads: number;
  headDim: number;
  /** Default headDim. */
  valueDim?: number;
}

/**
 * State of a stream of the causal form: sums of phi(k) [v, 1]^T, f32 [batch, heads, 2 headDim, valueDim + 1], and the number of tokens. Made
 * by `nalaformerStart`, updated in place by `nalaformerStep`, freed by `dispose()`.
 */
export class NalaformerState extends HeldTensors {
  /** Takes over the sums, and the last values of a mixer's local convolution, f32 [batch, taps - 1, heads valueDim]. */
  constructor(
    device: Device,
    sums: Tensor,
    readonly options: Pick<NalaformerStreamOptions, 'lambda' | 'tau' | 'keyPower' | 'map' | 'angleScale' | 'eps'>,
    pastValues?: Tensor,
  ) {
    super(device, 'nalaformer', { sums, ...(pastValues && { pastValues }) });
  }
}

/**
 * An empty stream of the causal form. The caller disposes it.
 * @param pastValues taken over by the stream, for the local convolution of `nalaformerMixer`
 * @throws HeedError INVALID_ARGUMENT for sizes that are no positive integers
 */
export function nalaformerStart(device: Device, options: NalaformerStreamOptions, pastValues?: Tensor): NalaformerState {
  const { batch, heads, headDim, valueDim = headDim, ...rest } = options;
  if ([batch, heads, headDim, valueDim].some((n) => !Number.isInteger(n) || n < 1))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `nalaformer: a stream of batch, heads, headDim, valueDim [${[batch, heads, headDim, valueDim].join(', ')}]; each is an integer of 1 or more`,
    );
  return new NalaformerState(device, zeros(device, [batch, heads, 2 * headDim, valueDim + 1]), rest, pastValues);
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `nalaformer` with `causal` gives for the whole sequence, whatever
 * the pieces. No gradient, no positions.
 * @param q [batch, n, heads, headDim], f32 or f16
 * @returns [batch, n, heads, valueDim], dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; DISPOSED after `state.dispose()`; UNSUPPORTED when an input is differentiated
 */
export function nalaformerStep(q: Tensor, k: Tensor, v: Tensor, state: NalaformerState): Tensor {
  const { options } = state;
  checkNalaformer('nalaformerStep', q, k, v, { ...options, causal: true });
  const sums = state.get('sums');
  if (sums.dim(0) !== q.dim(0) || sums.dim(1) !== q.dim(2) || sums.dim(2) !== 2 * q.dim(3) || sums.dim(3) !== v.dim(3) + 1)
    throw new HeedError('SHAPE_MISMATCH', `nalaformerStep: q is ${q.describe()}, v is ${v.describe()}; the state is ${sums.describe()}`);
  const out = scope(() => {
    const settings = featureSettings(options);
    const [queries, keys] = [features(q, { ...settings, of: 'q' }, undefined), features(k, { ...settings, of: 'k' }, undefined)];
    return meanQuotient(decayScanStep(queries.phi, keys.phi, widened(v), sums, {}, 'nalaformer'), v, state.tokens, options.eps ?? 1e-6);
  });
  state.advance(q.dim(1));
  return out;
}
