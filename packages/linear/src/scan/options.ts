import { type Device, type FloatDType, HeedError, tensor, type Tensor } from '@heed/core';
import { currentTape } from '@heed/core/~internal';

/** Options of `lightning2`. */
export interface Lightning2Options {
  /** Factor on q.k. Default 1: linear attention has no 1/sqrt(headDim). */
  scale?: number;
  /**
   * Log-decay a head, [heads], <= 0; a constant, not trained. Numbers, or an f32 tensor (whose values are not read back, so not
   * checked). `decayFromSlopes(lightning2Slopes({ heads }))` gives the paper's. 0: no decay.
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

/** @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT, UNSUPPORTED: what is wrong with the arguments */
export function checkArguments(who: string, q: Tensor, k: Tensor, v: Tensor, options: Lightning2Options): void {
  const wrong = (message: string): never => {
    throw new HeedError('SHAPE_MISMATCH', `${who}: ${message}`);
  };
  for (const [name, x] of [
    ['q', q],
    ['k', k],
    ['v', v],
  ] as const) {
    if (x.rank !== 4) wrong(`${name} is ${x.describe()}; it must be [batch, tokens, heads, headDim]`);
    if (x.dtype !== 'f32' && x.dtype !== 'f16')
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be f32 or f16, cast it first`);
    if (x.dtype !== q.dtype)
      throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.describe()}, q is ${q.describe()}; cast them to one dtype`);
  }
  if (k.shape.join() !== q.shape.join()) wrong(`k is ${k.describe()}, q is ${q.describe()}; they must have one shape`);
  if (v.dim(2) !== q.dim(2))
    wrong(`v has ${v.dim(2)} heads, q and k have ${q.dim(2)}; v must have as many heads as q (grouped heads are for softmax attention)`);
  if (v.dim(0) !== q.dim(0) || v.dim(1) !== q.dim(1)) wrong(`v is ${v.describe()}, q is ${q.describe()}; batch and tokens must agree`);
  if (q.dim(3) === 0 || v.dim(3) === 0) wrong(`q is ${q.describe()}, v is ${v.describe()}; head dimensions must be 1 or more`);
  const heads = q.dim(2);
  const { decay, initialState, lengths, chunk, scale = 1 } = options;
  checkDecay(who, decay, heads);
  if (initialState) checkState(who, initialState, [q.dim(0), heads, q.dim(3), v.dim(3)]);
  if (lengths) {
    if (lengths.dtype !== 'i32') throw new HeedError('DTYPE_MISMATCH', `${who}: lengths is ${lengths.describe()}; it must be i32`);
    if (lengths.rank !== 1 || lengths.size !== q.dim(0))
      wrong(`lengths is ${lengths.describe()}; it must be [${q.dim(0)}], one a batch entry`);
  }
  if (chunk !== undefined && !(Number.isInteger(chunk) && chunk > 0))
    throw new HeedError('INVALID_ARGUMENT', `${who}: chunk is ${chunk}; it must be an integer of 1 or more`);
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
    : tensor(
        device,
        Float32Array.from(decay, (x) => Math.max(x, -1e4)),
        [decay.length],
      );
}

export function isTensorDecay(decay: Lightning2Options['decay']): decay is Tensor {
  return 'storage' in decay;
}
