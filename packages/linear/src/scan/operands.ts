import { HeedError, type Tensor } from '@heed/core';

/**
 * Operands of linear attention: q and k [batch, tokens, heads, keyDim] of one shape, v [batch, tokens, heads, valueDim], all f32 or all f16.
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH: what does not fit, in the name of `who`
 */
export function checkOperands(who: string, q: Tensor, k: Tensor, v: Tensor): void {
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
}

/** @throws HeedError unless `lengths`, where given, are i32 [batch] */
export function checkLengths(who: string, lengths: Tensor | undefined, batch: number): void {
  if (!lengths) return;
  if (lengths.dtype !== 'i32') throw new HeedError('DTYPE_MISMATCH', `${who}: lengths is ${lengths.describe()}; it must be i32`);
  if (lengths.rank !== 1 || lengths.size !== batch)
    throw new HeedError('SHAPE_MISMATCH', `${who}: lengths is ${lengths.describe()}; it must be [${batch}], one a batch entry`);
}

/** @throws HeedError INVALID_ARGUMENT unless `chunk`, where given, is a positive integer */
export function checkChunk(who: string, chunk: number | undefined): void {
  if (chunk !== undefined && !(Number.isInteger(chunk) && chunk > 0))
    throw new HeedError('INVALID_ARGUMENT', `${who}: chunk is ${chunk}; it must be an integer of 1 or more`);
}
