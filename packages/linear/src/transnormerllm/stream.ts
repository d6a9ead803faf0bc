import { type Device, HeedError, scope, type Tensor, zeros } from '@heed/core';
import { copyContiguous } from '@heed/core/~internal';
import { checkDecay, checkState, decayTensor, isTensorDecay } from '../scan/options.js';
import { decayScanStep } from '../scan/decay-scan.js';
import { HeldTensors } from '../scan/held-tensors.js';
import { scanOptions, type TransnormerllmOptions } from './forward.js';

/** What a stream is started with. */
export interface TransnormerllmStreamOptions extends Pick<TransnormerllmOptions, 'scale' | 'decay' | 'initialState' | 'chunk'> {
  batch: number;
  heads: number;
  headDim: number;
  /** Default `headDim`. */
  valueDim?: number;
  /** Queries and keys carry LRPE: a state has 2 headDim rows. Default false. */
  lrpe?: boolean;
  /** Tokens that `initialState` has seen: the position of the first new one. Default 0. */
  position?: number;
}

/**
 * State of a stream: one matrix a head, f32 [batch, heads, keyDim, valueDim], and the position, which is the stream's own: two
 * generations side by side do not disturb each other.
 */
export class TransnormerllmState extends HeldTensors {
  /** Takes over both tensors. */
  constructor(
    matrix: Tensor,
    /** Log-decay a head, f32 [heads]. */
    readonly decay: Tensor,
    readonly options: { scale: number; chunk: number | undefined; lrpe: boolean; position: number },
  ) {
    super(matrix.device, 'transnormerllm', { state: matrix }, [decay]);
    this.advance(options.position);
  }

  /** The state's values, f32 [batch, heads, keyDim, valueDim]; owned by the stream. */
  get values(): Tensor {
    return this.get('state');
  }
}

/**
 * An empty stream, or one that goes on from `initialState` at `position`. The caller disposes it.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function transnormerllmStart(device: Device, options: TransnormerllmStreamOptions): TransnormerllmState {
  const { batch, heads, headDim, valueDim = headDim, decay, scale = 1, initialState, chunk, position = 0 } = options;
  const shape = [batch, heads, options.lrpe ? 2 * headDim : headDim, valueDim];
  if (shape.some((n) => !Number.isInteger(n) || n < 1) || !(Number.isInteger(position) && position >= 0))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `transnormerllm: a stream of batch, heads, keyDim, valueDim [${shape.join(', ')}] at position ${position}; integers of 1 or more, position of 0 or more`,
    );
  if (decay !== undefined) checkDecay('transnormerllmStart', decay, heads);
  if (initialState) checkState('transnormerllmStart', initialState, shape);
  const matrix = initialState ? copyContiguous(initialState) : zeros(device, shape, { label: 'transnormerllm state' });
  const own = decay === undefined ? zeros(device, [heads]) : isTensorDecay(decay) ? copyContiguous(decay) : decayTensor(device, decay);
  return new TransnormerllmState(matrix, own, { scale, chunk, lrpe: options.lrpe ?? false, position });
}

/**
 * The next tokens of a stream: any number ("robust inference", section 3.4): S_t = lambda S_(t-1) + k_t v_t^T, o_t = q_t S_t, which no
 * power of the decay can overflow. Gives what `transnormerllm` gives for the whole sequence, whatever the pieces. No gradient.
 * @param q [batch, n, heads, headDim], before LRPE
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @param theta angles of LRPE, f32 [heads, headDim], where the stream was started with it
 * @returns [batch, n, heads, valueDim], dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT; UNSUPPORTED when an input is differentiated
 */
export function transnormerllmStep(q: Tensor, k: Tensor, v: Tensor, state: TransnormerllmState, theta?: Tensor): Tensor {
  const { scale, chunk, lrpe: turned } = state.options;
  if (turned !== (theta !== undefined))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `transnormerllmStep: the stream was started ${turned ? 'with lrpe and no theta was given' : 'without lrpe and theta was given'}; both or none`,
    );
  const options = { decay: state.decay, scale, ...(chunk !== undefined && { chunk }) };
  const out = scope(() => {
    const placed = scanOptions('transnormerllmStep', q, { ...options, ...(theta && { theta, offset: state.tokens }) });
    return decayScanStep(q, k, v, state.values, placed, 'transnormerllmStep');
  });
  state.advance(q.dim(1));
  return out;
}
