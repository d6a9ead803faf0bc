import { expect } from 'vitest';
import type { Tensor } from '../src/index.js';
import { type Device, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { attentionWithLse, type AttentionOptions, type AttentionResult } from '../src/attention/index.js';
import { type ReferenceAttentionOptions, referenceAttention, referenceAttentionGradients } from '../src/attention/reference.js';
import { RandomStream } from '../src/random/stream.js';
import { compare, f64, type F64Array, randomArray, type Tolerance, toFloat32 } from '../src/testing/index.js';

/** Shapes of one attention call. */
export interface Shape {
  B?: number;
  Tq: number;
  Tk?: number;
  H?: number;
  Hkv?: number;
  D?: number;
  Dv?: number;
}

/** A call with its float64 twin. */
export interface AttentionCase {
  shape: Shape;
  seed?: number;
  dtype?: 'f32' | 'f16';
  /** Factor on the random inputs. */
  deviation?: number;
  /** Options for the device; arrays that it makes are tensors of the given values. */
  options?: (make: (array: F64Array) => Tensor, random: RandomStream) => AttentionOptions;
  /** The same for the reference; positions include queryOffset (default keys - queries). */
  reference?: (random: RandomStream) => ReferenceAttentionOptions;
  /** Cotangents: `both` (default), only one of them, or none (forward only). */
  cotangents?: 'both' | 'out' | 'lse' | 'none';
  tolerance?: Tolerance;
  gradientTolerance?: Tolerance;
  call?: (q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) => AttentionResult;
}

/** What `checkAttention` drew, for further checks. */
export interface Drawn {
  q: F64Array;
  k: F64Array;
  v: F64Array;
}

const toHalf = (x: number): number => Math.fround(new Float32Array([x])[0] as number);

/** Runs a case on a device, forward and backward, and holds everything against the float64 reference. Frees what it made. */
export async function checkAttention(device: Device, c: AttentionCase): Promise<void> {
  const { B = 1, Tq, Tk = Tq, H = 1, Hkv = H, D = 16, Dv = D } = c.shape;
  const seed = c.seed ?? 1;
  const random = new RandomStream(seed);
  const round = (a: F64Array): F64Array =>
    c.dtype === 'f16' ? f64(a.shape, Array.from(a.values, roundToHalf)) : f64(a.shape, Array.from(a.values, toHalf));
  const q = round(randomArray(random, [B, Tq, H, D], c.deviation));
  const k = round(randomArray(random, [B, Tk, Hkv, D], c.deviation));
  const v = round(randomArray(random, [B, Tk, Hkv, Dv], c.deviation));
  const extra = new RandomStream(seed + 1000);
  const made: Tensor[] = [];
  const make = (array: F64Array, dtype: 'f32' | 'f16' = 'f32'): Tensor => {
    const t = tensor(device, toFloat32(array), array.shape, { dtype });
    made.push(t);
    return t;
  };
  const options = c.options?.(make, extra) ?? {};
  const reference: ReferenceAttentionOptions = {
    queryOffset: typeof options.queryOffset === 'number' ? options.queryOffset : Tk - Tq,
    ...c.reference?.(new RandomStream(seed + 1000)),
  };
  const [dq, dk, dv] = [make(q, c.dtype), make(k, c.dtype), make(v, c.dtype)];
  const expected = referenceAttention(q, k, v, reference);
  const cotangents = c.cotangents ?? 'both';
  const dOut = cotangents === 'both' || cotangents === 'out' ? round(randomArray(random, expected.out.shape)) : undefined;
  const dLse = cotangents === 'both' || cotangents === 'lse' ? randomArray(random, expected.lse.shape) : undefined;
  const inputs: [string, Tensor][] = [
    ['q', dq],
    ['k', dk],
    ['v', dv],
  ];
  if (options.sinks) inputs.push(['sinks', options.sinks]);
  if (options.keyBias) inputs.push(['keyBias', options.keyBias]);
  const run = c.call ?? attentionWithLse;
  const call = (): Tensor[] => {
    const { out, lse } = run(dq, dk, dv, options);
    return [out, lse];
  };
  const tolerance = c.tolerance ?? { atol: 3e-5, rtol: 1e-4 };
  const failures: string[] = [];
  const hold = async (name: string, got: Tensor, want: F64Array, bound: Tolerance): Promise<void> => {
    const { failure } = compare(name, { shape: got.shape, values: await got.read() }, want, 'error', bound);
    if (failure !== undefined) failures.push(failure);
    got.dispose();
  };
  if (cotangents === 'none') {
    const [out, lse] = call() as [Tensor, Tensor];
    await hold('out', out, expected.out, tolerance);
    await hold('lse', lse, expected.lse, tolerance);
  } else {
    const given = [dOut ? make(dOut, c.dtype) : null, dLse ? make(dLse) : null];
    const { outputs, grads } = vjp(
      call,
      inputs.map(([, t]) => t),
      given,
    );
    await hold('out', outputs[0] as Tensor, expected.out, tolerance);
    await hold('lse', outputs[1] as Tensor, expected.lse, tolerance);
    const wanted = referenceAttentionGradients(q, k, v, { out: dOut, lse: dLse }, reference) as unknown as Record<string, F64Array>;
    for (const [i, [name]] of inputs.entries())
      await hold(`gradient of ${name}`, grads[i] as Tensor, wanted[name] as F64Array, c.gradientTolerance ?? { atol: 1e-4, rtol: 3e-4 });
  }
  for (const t of made) t.dispose();
  expect(failures).toEqual([]);
}

/** To the nearest f16, subnormals included. */
export function roundToHalf(x: number): number {
  const size = Math.abs(x);
  if (size === 0 || !Number.isFinite(x)) return x;
  const step = 2 ** (Math.max(-14, Math.floor(Math.log2(size))) - 10);
  return Math.round(x / step) * step;
}
