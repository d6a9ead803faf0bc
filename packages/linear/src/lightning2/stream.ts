import { type Device, type FloatDType, HeedError, type Tensor, zeros } from '@heed/core';
import { apply, copyContiguous } from '@heed/core/~internal';
import { HeldTensors } from '../scan/held-tensors.js';
import { stepScan } from '../scan/scan.js';
import { lightning2Forward } from './forward.js';
import {
  checkArguments,
  checkDecay,
  checkOutDType,
  checkState,
  decayTensor,
  isTensorDecay,
  type Lightning2Options,
} from '../scan/options.js';

/** What a stream is started with. */
export interface Lightning2StreamOptions {
  batch: number;
  heads: number;
  keyDim: number;
  /** Default `keyDim`. */
  valueDim?: number;
  /** Log-decay a head, [heads], <= 0, as `lightning2` takes it. */
  decay: Lightning2Options['decay'];
  /** Factor on q.k. Default 1. */
  scale?: number;
  /** State to go on from, f32 [batch, heads, keyDim, valueDim], copied. Default zeros. */
  initialState?: Tensor;
  /** Tokens a segment when many tokens come at once; see `lightning2`. */
  chunk?: number;
  /** Dtype of the outputs; see `lightning2`. Default: that of v. */
  outDType?: FloatDType;
}

/** Pieces of up to this many tokens are swept in place, one workgroup a head and column tile; longer ones go by the plan of `lightning2`. */
const inPlaceTokens = 64;

/**
 * State of a stream: one matrix a head, f32 [batch, heads, keyDim, valueDim], whatever the length. Made by
 * `lightning2Start`, updated in place by `lightning2Step`, freed by `dispose()`.
 */
export class Lightning2State extends HeldTensors {
  readonly scale: number;
  readonly chunk: number | undefined;
  readonly outDType: FloatDType | undefined;

  /** Takes over both tensors. */
  constructor(
    matrix: Tensor,
    /** Log-decay a head, f32 [heads]. */
    readonly decay: Tensor,
    options: { scale: number; chunk: number | undefined; outDType: FloatDType | undefined },
  ) {
    super(matrix.device, 'lightning2', { state: matrix }, [decay]);
    this.scale = options.scale;
    this.chunk = options.chunk;
    this.outDType = options.outDType;
  }

  /** The state's values, f32 [batch, heads, keyDim, valueDim]; owned by the stream, replaced by later steps. */
  get values(): Tensor {
    return this.get('state');
  }
}

/**
 * An empty stream, or one that goes on from `initialState`. The caller disposes it.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT
 */
export function lightning2Start(device: Device, options: Lightning2StreamOptions): Lightning2State {
  const { batch, heads, keyDim, valueDim = keyDim, decay, scale = 1, initialState, chunk, outDType } = options;
  const shape = [batch, heads, keyDim, valueDim];
  if (shape.some((n) => !Number.isInteger(n) || n < 1))
    throw new HeedError(
      'INVALID_ARGUMENT',
      `lightning2: a stream of batch, heads, keyDim, valueDim [${shape.join(', ')}]; each is an integer of 1 or more`,
    );
  checkDecay('lightning2Start', decay, heads);
  checkOutDType('lightning2Start', outDType);
  if (initialState) checkState('lightning2Start', initialState, shape);
  const matrix = initialState ? copyContiguous(initialState) : zeros(device, shape, { label: 'lightning2 state' });
  const own = isTensorDecay(decay) ? copyContiguous(decay) : decayTensor(device, decay);
  return new Lightning2State(matrix, own, { scale, chunk, outDType });
}

/**
 * The next tokens of a stream: any number, one in decoding. Gives what `lightning2` gives for the whole sequence, whatever the
 * pieces. No gradient.
 * @param q [batch, n, heads, keyDim], f32 or f16
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @returns [batch, n, heads, valueDim], `outDType` of the stream, else the dtype of v
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; DISPOSED after `state.dispose()`; UNSUPPORTED when an input is differentiated
 */
export function lightning2Step(q: Tensor, k: Tensor, v: Tensor, state: Lightning2State): Tensor {
  const { decay, scale, chunk, outDType, values } = state;
  checkArguments('lightning2Step', q, k, v, { decay, initialState: values });
  const tokens = q.dim(1);
  const inPlace = tokens <= inPlaceTokens;
  const made = apply<readonly Tensor[]>({
    name: 'lightning2Step',
    inputs: [q, k, v],
    forward: () => {
      if (inPlace) return [stepScan({ q, k, v, decay, queryScale: scale }, values, outDType)];
      const { out, final } = lightning2Forward({ q, k, v, decay, scale, chunk, outDType }, values, true);
      return final ? [out, final] : [out];
    },
  });
  state.advance(tokens, made[1] && { state: made[1] });
  return made[0] as Tensor;
}
