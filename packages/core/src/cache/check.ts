import { currentTape } from '../autodiff/tape.js';
import type { Device } from '../device/device.js';
import { isFloat } from '../dtype.js';
import { HeedError } from '../errors.js';
import type { AttendOptions, KvCacheOptions } from '../seams/kv.js';
import type { Tensor } from '../tensor/tensor.js';

/** @throws HeedError INVALID_ARGUMENT, SHAPE_MISMATCH or DTYPE_MISMATCH */
export function checkCacheOptions({
  batch,
  kvHeads,
  headDim,
  valueDim,
  capacity,
  pageTokens,
  dtype,
}: Required<Omit<KvCacheOptions, 'stages'>>): void {
  for (const [name, value] of Object.entries({ batch, kvHeads, headDim, valueDim, capacity, pageTokens })) {
    if (!Number.isInteger(value) || value < 1)
      throw new HeedError('INVALID_ARGUMENT', `createKvCache: ${name} is ${value}; it must be an integer of 1 or more`);
  }
  for (const [name, value] of Object.entries({ headDim, valueDim })) {
    if (value > 256) throw new HeedError('SHAPE_MISMATCH', `createKvCache: ${name} is ${value}; it must be 1 to 256`);
  }
  if (!isFloat(dtype)) throw new HeedError('DTYPE_MISMATCH', `createKvCache: dtype is ${dtype}; store f32 or f16, or give a codes stage`);
}

/** What a tensor handed to a cache must be. @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH, INVALID_ARGUMENT */
export function checkTokens(
  who: string,
  name: string,
  x: Tensor,
  device: Device,
  shape: readonly [number, number | 'n', number | 'heads', number],
): void {
  const [batch, n, heads, dim] = shape;
  const fits =
    x.rank === 4 &&
    x.dim(0) === batch &&
    (n === 'n' || x.dim(1) === n) &&
    (heads === 'heads' ? x.dim(2) > 0 : x.dim(2) === heads) &&
    x.dim(3) === dim;
  if (!fits) throw new HeedError('SHAPE_MISMATCH', `${who}: ${name} is ${x.describe()}; it must be [${shape.join(', ')}]`);
  if (!isFloat(x.dtype)) throw new HeedError('DTYPE_MISMATCH', `${who}: ${name} is ${x.dtype}; it must be f32 or f16`);
  if (x.device !== device)
    throw new HeedError(
      'INVALID_ARGUMENT',
      `${who}: ${name} is on "${x.device.report.name}", the cache on "${device.report.name}"; move it over by read() and tensor()`,
    );
  if (currentTape()?.isTracked(x))
    throw new HeedError(
      'UNSUPPORTED',
      `${who}: ${name} is being differentiated, and a cache has no gradient; train with attention(), or wrap it in stopGradient()`,
    );
}

/** @throws HeedError INVALID_ARGUMENT */
export function checkAttendOptions({ scale, window, sinkTokens, softcap, causal }: AttendOptions): void {
  const wrong = (what: string): HeedError => new HeedError('INVALID_ARGUMENT', `kvCache.attend: ${what}`);
  if (scale !== undefined && !Number.isFinite(scale)) throw wrong(`scale is ${scale}; it must be a finite number`);
  if (window !== undefined && (!Number.isInteger(window) || window < 1))
    throw wrong(`window is ${window}; it counts the keys seen, the own one included, so it is an integer of 1 or more`);
  if (window !== undefined && causal === false)
    throw wrong('window is given with causal: false; a window counts back from the query, leave causal out');
  if (sinkTokens !== undefined && (!Number.isInteger(sinkTokens) || sinkTokens < 0))
    throw wrong(`sinkTokens is ${sinkTokens}; it must be an integer of 0 or more`);
  if (softcap !== undefined && !(softcap > 0 && Number.isFinite(softcap)))
    throw wrong(`softcap is ${softcap}; it must be a finite number above 0`);
}
