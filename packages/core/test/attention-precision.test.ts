import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, tensor } from '../src/index.js';
import { attention } from '../src/attention/index.js';
import { vjp } from '../src/internal.js';
import { referenceAttentionGradients } from '../src/attention/reference.js';
import { RandomStream } from '../src/random/stream.js';
import { type F64Array, f64, randomArray, toFloat32 } from '../src/testing/index.js';
import { roundToHalf } from './attention-cases.js';

// Backward sweeps on fragments round weights and score gradients to f16: both are scaled first, so that small ones keep their digits.
let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'matrix' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const [tokens, dim, faint] = [32, 16, 5];
const half = (a: F64Array): F64Array => f64(a.shape, Array.from(a.values, roundToHalf));

/** |got - want| over |want| of one key. */
function keyError(got: ArrayLike<number | bigint>, want: F64Array, key: number): number {
  const at = Array.from({ length: dim }, (_, d) => key * dim + d);
  const apart = Math.hypot(...at.map((i) => Number(got[i]) - (want.values[i] as number)));
  return apart / Math.hypot(...at.map((i) => want.values[i] as number));
}

/** Gradients of k and v for queries that all turn away from key `faint`, in f16 and in float64. */
async function gradients(valueScale: number, lossScale: number): Promise<{ name: string; key: number; error: number }[]> {
  const random = new RandomStream(3);
  const q = half(
    f64(
      [1, tokens, 1, dim],
      Array.from(randomArray(random, [tokens * dim]).values, (x, i) => (i % dim === 0 ? 6 : x)),
    ),
  );
  const k = half(
    f64(
      [1, tokens, 1, dim],
      Array.from(randomArray(random, [tokens * dim]).values, (x, i) => (i === faint * dim ? -8 : 0.25 * x)),
    ),
  );
  const v = half(randomArray(random, [1, tokens, 1, dim], valueScale));
  const dOut = half(randomArray(random, [1, tokens, 1, dim], lossScale));
  const made = [q, k, v, dOut].map((a) => tensor(device, toFloat32(a), a.shape, { dtype: 'f16' }));
  const [tq, tk, tv, tOut] = made as [(typeof made)[0], (typeof made)[0], (typeof made)[0], (typeof made)[0]];
  const { outputs, grads } = vjp(() => attention(tq, tk, tv), [tk, tv], [tOut]);
  const wanted = referenceAttentionGradients(q, k, v, { out: dOut });
  const found: { name: string; key: number; error: number }[] = [];
  for (const [i, name] of (['k', 'v'] as const).entries()) {
    const values = await (grads[i] as (typeof made)[0]).read();
    for (const key of [0, faint]) found.push({ name, key, error: keyError(values, wanted[name], key) });
  }
  for (const t of [...made, ...outputs, ...grads]) t?.dispose();
  return found;
}

test.each([
  ['of ordinary size', 1, 1024],
  ['large', 300, 16],
  ['small', 0.01, 8192],
])('gradients of a key that every query nearly ignores are as exact as those of others, values %s', async (_, valueScale, lossScale) => {
  for (const { name, key, error } of await gradients(valueScale, lossScale)) expect(error, `d${name} of key ${key}`).toBeLessThan(3e-3);
});
