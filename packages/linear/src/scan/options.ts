import { type Device, type FloatDType, HeedError, tensor, type Tensor } from '@heed/core';
import { currentTape } from '@heed/core/~internal';
import { checkChunk, checkLengths, checkOperands } from './operands.js';
import { noteDecays } from './ranges.js';

/** Options of `lightning2`. */
export interface Lightning2Options {
  /** Factor on q.k. Default 1: linear attention has no 1/sqrt(headDim). */
  scale?: number;
  /**
   * Log-decay a head, [heads], <= 0; a constant, not trained. Numbers, or an f32 tensor (whose values are not read back, so not
   * checked; long sequences of heads that forget then take a tenth more time). `decayFromSlopes(lightning2Slopes({ heads }))` gives the paper's. 0: no decay.
   */
  decay: Tensor | ArrayLike<number>;
  /** State before the first token, f32 [batch, heads, keyDim, valueDim]. Default zeros. Differentiable. */
  initialState?: Tensor;
  /** Tokens that one workgroup sweeps before the state crosses to the next. Default: as many segments as fill the device. Any value gives the same result. */
  chunk?: number;
  /** Valid tokens a batch entry, i32 [batch]; later ones leave the state as it is and give zeros. Default: all. */
  lengths?: Tensor;
  /**
   * Dtype of the output. Default: that of v. Nothing divides the sum by the number of tokens: where heads hardly decay, outputs of
   * f16 operands pass 65,504 after some ten thousand tokens, and `f32` keeps them.
   */
  outDType?: FloatDType;
}

/**
 * @param keyDim width of keys as the scan sees them
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, UNSUPPORTED: what is wrong with the arguments
 */
export function checkArguments(who: string, q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options, keyDim?: number): void {
  checkOperands(who, q, k, v);
  const heads = q.dim(2);
  const { decay, initialState, lengths, chunk, scale = 1 } = options;
  checkDecay(who, decay, heads);
  if (initialState) checkState(who, initialState, [q.dim(0), heads, keyDim ?? q.dim(3), v.dim(3)]);
  checkLengths(who, lengths, q.dim(0));
  checkChunk(who, chunk);
  checkOutDType(who, options.outDType);
  if (!Number.isFinite(scale)) throw new HeedError('INVALID_ARGUMENT', `${who}: scale is ${scale}; it must be finite`);
}

/** @throws HeedError INVALID_ARGUMENT for what is no float dtype */
export function checkOutDType(who: string, outDType: FloatDType | undefined): void {
  if (outDType !== undefined && outDType !== 'f32' && outDType !== 'f16')
    throw new HeedError('INVALID_ARGUMENT', `${who}: outDType is "${String(outDType)}"; it must be f32 or f16`);
}

/** @throws HeedError for a decay that does not fit `heads`, is positive, or is being differentiated */
export function checkDecay(who: string, decay: Lightning2Options['decay'], heads: number): void {
  if (decay === undefined || decay === null)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: no decay was given; pass decay: decayFromSlopes(lightning2Slopes({ heads: ${heads} })), or zeros for none`,
    );
  if (isTensorDecay(decay)) {
    if (decay.dtype !== 'f32') throw new HeedError('DTYPE_MISMATCH', `${who}: decay is ${decay.describe()}; it must be f32`);
    if (decay.rank !== 1 || decay.size !== heads)
      throw new HeedError('SHAPE_MISMATCH', `${who}: decay is ${decay.describe()}; it must be [${heads}], one a head`);
    if (currentTape()?.isTracked(decay))
      throw new HeedError(
        'UNSUPPORTED',
        `${who}: decay is being differentiated, and it is a constant here (a learned decay diverges, Qin et al. 2024); wrap it in stopGradient(), or keep it out of the parameters`,
      );
    return;
  }
  if (decay.length !== heads)
    throw new HeedError('SHAPE_MISMATCH', `${who}: decay has ${decay.length} values, q has ${heads} heads; give one a head`);
  for (let h = 0; h < heads; h++) {
    const value = decay[h] as number;
    if (!(value <= 0))
      throw new HeedError(
        'INVALID_ARGUMENT',
        `${who}: decay of head ${h} is ${value}; it is a log-decay, at most 0, and slopes (>= 0) become one by decayFromSlopes()`,
      );
  }
}

/** @throws HeedError unless `state` is f32 of this shape */
export function checkState(who: string, state: Tensor, shape: readonly number[]): void {
  if (state.dtype !== 'f32')
    throw new HeedError('DTYPE_MISMATCH', `${who}: initialState is ${state.describe()}; states are f32, cast it first`);
  if (state.shape.join() !== shape.join())
    throw new HeedError(
      'SHAPE_MISMATCH',
      `${who}: initialState is ${state.describe()}; it must be [${shape.join(', ')}]: batch, heads, key dimension, value dimension`,
    );
}

/** The decay on the device: a tensor is handed on, numbers make one in the current scope. */
export function decayTensor(device: Device, decay: Lightning2Options['decay']): Tensor {
  // far below any f32 that still counts: exp(-1e4) is 0
  return isTensorDecay(decay)
    ? decay
    : noteDecays(
        tensor(
          device,
          Float32Array.from(decay, (x) => Math.max(x, -1e4)),
          [decay.length],
        ),
        Array.from(decay),
      );
}

export function isTensorDecay(decay: Lightning2Options['decay']): decay is Tensor {
  return 'storage' in decay;
}
