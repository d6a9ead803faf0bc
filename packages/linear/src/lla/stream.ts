import { copyInto, type Device, type FloatDType, HeedError, type Tensor, zeros } from '@heed/core';
import { apply, empty } from '@heed/core/~internal';
import { HeldTensors } from '../scan/held-tensors.js';
import { runDecode } from './kernels/decode.js';
import { lla } from './forward.js';
import { dtypeOf, type LlaOptions, resolve, widestCholesky } from './options.js';
import { contiguous } from './problem.js';

/** What a stream is started with: `lla`'s options, of which a ridge a query is given with each step instead, and its sizes. */
export interface LlaStreamOptions extends Omit<LlaOptions, 'causal' | 'ridgeLambda'> {
  /** Default: given with each step. */
  ridgeLambda?: number;
  batch: number;
  heads: number;
  headDim: number;
  /** Default headDim. */
  valueDim?: number;
  /** Tokens that the state has room for. */
  capacity: number;
  /** Of the kept keys and values. Default f32. */
  dtype?: FloatDType;
}

/**
 * State of a stream: keys and values of up to `capacity` tokens, [batch, capacity, heads, ..]; size (headDim + valueDim) bytes a
 * token and head, as softmax attention keeps. Every query fits a system of its own, so there is nothing to sum up ahead.
 */
export class LlaState extends HeldTensors {
  readonly options: LlaStreamOptions;

  constructor(device: Device, options: LlaStreamOptions) {
    const { batch, heads, headDim, valueDim = headDim, capacity, dtype = 'f32' } = options;
    for (const [name, n] of Object.entries({ batch, heads, headDim, valueDim, capacity }))
      if (!Number.isInteger(n) || n < 1)
        throw new HeedError('INVALID_ARGUMENT', `lla: a stream with ${name} ${n}; it must be an integer of 1 or more`);
    super(device, 'lla', {
      k: zeros(device, [batch, capacity, heads, headDim], { dtype, label: 'lla keys' }),
      v: zeros(device, [batch, capacity, heads, valueDim], { dtype, label: 'lla values' }),
    });
    this.options = { ...options, valueDim, dtype };
  }

  override truncate(tokens: number): void {
    if (!Number.isInteger(tokens) || tokens < 0 || tokens > this.seen)
      throw new HeedError('INVALID_ARGUMENT', `lla: truncate to ${tokens} of ${this.seen} tokens; give an integer from 0 to ${this.seen}`);
    this.seen = tokens;
  }

  /** Takes in k and v, and gives the filled parts. */
  append(k: Tensor, v: Tensor): { k: Tensor; v: Tensor } {
    const tokens = k.dim(1);
    const end = this.seen + tokens;
    const part = (x: Tensor, first: number, count: number): Tensor =>
      x.view({ shape: [x.dim(0), count, x.dim(2), x.dim(3)], strides: x.strides, offset: x.offset + first * (x.strides[1] ?? 0) });
    const [keys, values] = [this.get('k'), this.get('v')];
    if (tokens > 0) {
      copyInto(part(keys, this.seen, tokens), k);
      copyInto(part(values, this.seen, tokens), v);
    }
    this.seen = end;
    return { k: part(keys, 0, end), v: part(values, 0, end) };
  }
}

/** An empty stream. The caller disposes it. @throws HeedError INVALID_ARGUMENT */
export function llaStart(device: Device, options: LlaStreamOptions): LlaState {
  return new LlaState(device, options);
}

/**
 * The next tokens of a stream: any number. Gives what `lla` with `causal` gives for the whole sequence, whatever the pieces; a single
 * token with headDim <= 64 and the whole Sigma reads keys and values once and solves by Cholesky. No gradient.
 * @param q [batch, n, heads, headDim], f32 or f16
 * @param k as q
 * @param v [batch, n, heads, valueDim]
 * @param state updated in place
 * @param ridgeLambda a number, or f32 [batch, n, heads]. Default: the state's
 * @returns [batch, n, heads, valueDim], dtype of q
 * @throws HeedError SHAPE_MISMATCH, DTYPE_MISMATCH; LIMIT_EXCEEDED beyond the capacity; UNSUPPORTED when an input is differentiated
 */
export function llaStep(q: Tensor, k: Tensor, v: Tensor, state: LlaState, ridgeLambda?: number | Tensor): Tensor {
  const { heads, headDim, valueDim, capacity, dtype, ...rest } = state.options;
  const batch = state.get('k').dim(0);
  const lambda = ridgeLambda ?? rest.ridgeLambda;
  const options = { ...rest, ridgeLambda: lambda as number | Tensor };
  const settings = resolve('llaStep', q, k, v, options);
  if (q.dim(0) !== batch || q.dim(2) !== heads || q.dim(3) !== headDim || v.dim(3) !== valueDim || k.dim(1) !== q.dim(1))
    throw new HeedError(
      'SHAPE_MISMATCH',
      `llaStep: q is ${q.describe()}, k ${k.describe()}, v ${v.describe()}; the state is of batch ${batch}, ${heads} heads, headDim ${headDim}, valueDim ${valueDim}`,
    );
  if (state.tokens + q.dim(1) > capacity)
    throw new HeedError(
      'LIMIT_EXCEEDED',
      `llaStep: ${q.dim(1)} tokens after ${state.tokens}; the state has room for ${capacity}, start it with a larger capacity`,
    );
  return apply({
    name: 'llaStep',
    inputs: typeof settings.ridgeLambda === 'number' ? [q, k, v] : [q, k, v, settings.ridgeLambda],
    forward: () => {
      const filled = state.append(k, v);
      const single = q.dim(1) === 1 && headDim <= widestCholesky && settings.block === headDim && rest.solver !== 'cg';
      if (!single) {
        const [ownK, ownV] = dtype === q.dtype ? [filled.k, filled.v] : [contiguous(filled.k), contiguous(filled.v)];
        return lla(dtype === q.dtype ? q : contiguous(q), ownK, ownV, options);
      }
      const out = empty(q.device, [batch, 1, heads, v.dim(3)], dtypeOf(q));
      const { scale, deltaEps } = settings;
      const ridge = typeof settings.ridgeLambda === 'number' ? settings.ridgeLambda : contiguous(settings.ridgeLambda);
      runDecode({ q: contiguous(q), ...filled, out }, { lambda: ridge, scale, deltaEps });
      return out;
    },
  });
}
