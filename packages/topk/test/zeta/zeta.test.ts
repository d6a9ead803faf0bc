import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, slice, type Tensor, tensor } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { expectClose, f64 } from '@heed/core/testing';
import { zeta, type ZetaOptions, zetaWithIndices } from '../../src/zeta/index.js';
import { referenceZeta } from '../../src/zeta/reference.js';
import { checkProblem, inputsOf, onDevice, readValues, referenceOptions, type Shape } from './support.js';

// few specialisations: a software driver takes seconds for each
const small: ZetaOptions = { range: [-1, 1], topK: 5, window: 12 };
const shape: Shape = { batch: 1, tokens: 37, heads: 2, keyDim: 3, valueDim: 8 };

describe.each(['baseline', 'subgroups', 'matrix'] as const)('zeta on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('selection, output and gradients are the reference for any length, chunk, batch and bits', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(1, 2, 15, 16, 17, 31, 63, 64, 65, 97, 130),
        fc.constantFrom(1, 3, 8, 16, 24, 64, 200),
        fc.integer({ min: 1, max: 2 }),
        fc.integer({ min: 1, max: 3 }),
        fc.integer({ min: 1, max: 10 }),
        fc.nat(),
        async (tokens, chunk, batch, heads, bits, seed) => {
          await checkProblem(device, { ...shape, tokens, batch, heads }, { ...small, chunk, bits }, { seed });
        },
      ),
      { numRuns: tier === 'baseline' ? 14 : 6, seed: 3 },
    );
  });

  test('every form is the reference: bidirectional, two curves, local window, no mean, 1 to 4 dimensions, odd value rows', async () => {
    const forms: [Partial<Shape>, Partial<ZetaOptions>][] = [
      [{ keyDim: 4 }, { causal: false }],
      [
        { keyDim: 2, tokens: 75 },
        { curves: 2, localWindow: 6, chunk: 8, bits: 12 },
      ],
      [
        { keyDim: 1, valueDim: 5, tokens: 70 },
        { historyMean: false, chunk: 16 },
      ],
      [{ tokens: 300 }, { localWindow: 40, chunk: 32, historyMean: false, curves: 2, topK: 3, window: 7 }],
    ];
    for (const [sizes, options] of tier === 'baseline' ? forms : forms.slice(0, 2))
      await checkProblem(device, { ...shape, ...sizes }, { ...small, ...options }, { seed: 5 });
  });
});

describe('zeta', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('equal codes are kept in order of position, whatever runs they lie in', async () => {
    const inputs = inputsOf({ ...shape, tokens: 90 }, 7);
    inputs.k.values.fill(0.5);
    inputs.q.values.fill(0.5);
    await checkProblem(device, { ...shape, tokens: 90 }, { ...small, chunk: 8 }, { inputs });
    // points outside of the range fall into the corner cells
    const outside = inputsOf({ ...shape, tokens: 90 }, 8);
    for (let i = 0; i < outside.k.values.length; i++) outside.k.values[i] = (outside.k.values[i] as number) * 8;
    await checkProblem(device, { ...shape, tokens: 90 }, { ...small, chunk: 8 }, { inputs: outside });
  });

  test('a window and topK as large as the sequence are dense Cauchy attention', async () => {
    const sizes = { ...shape, tokens: 24, heads: 1 };
    const { q, k, v, theta } = inputsOf(sizes, 4);
    const [tq, tk, tv, tt] = [q, k, v, theta].map((x) => onDevice(device, x)) as [Tensor, Tensor, Tensor, Tensor];
    const out = zeta(tq, tk, tv, tt, { range: [-1, 1], topK: 24, window: 24, causal: false, historyMean: false });
    const gamma2 = (1 / (1 + Math.exp(-(theta.values[0] as number)))) ** 2;
    const expected = f64([1, 24, 1, 8]);
    for (let i = 0; i < 24; i++) {
      const w = Array.from(
        { length: 24 },
        (_, j) =>
          1 / ([0, 1, 2].reduce((sum, d) => sum + ((q.values[i * 3 + d] as number) - (k.values[j * 3 + d] as number)) ** 2, 0) + gamma2),
      );
      const total = w.reduce((a, b) => a + b);
      for (let d = 0; d < 8; d++)
        expected.values[i * 8 + d] = w.reduce((sum, x, j) => sum + (x / total) * (v.values[j * 8 + d] as number), 0);
    }
    expectClose('out', await readValues(out), expected, { atol: 1e-5, rtol: 1e-5 });
    for (const t of [tq, tk, tv, tt, out]) t.dispose();
  });

  test('one dimension and a window of 2 topK find at least 99 in 100 of the nearest keys', async () => {
    const sizes = { ...shape, tokens: 256, heads: 1, keyDim: 1, valueDim: 4 };
    const { q, k, v, theta } = inputsOf(sizes, 6);
    const inputs = [q, k, v, theta].map((x) => onDevice(device, x)) as [Tensor, Tensor, Tensor, Tensor];
    const made = zetaWithIndices(...inputs, { range: [-1, 1], topK: 8, window: 16, causal: false });
    const exact = referenceZeta(q, k, v, theta, referenceOptions({ range: [-1, 1], topK: 8, window: 256, causal: false }, 1));
    const indices = await made.indices.read();
    // by distance: of equally distant keys any may be found
    let found = 0;
    for (let t = 0; t < 256; t++) {
      const distance = (j: number): number => Math.abs((q.values[t] as number) - (k.values[j] as number));
      const limit = distance(exact.indices.values[t * 8 + 7] as number);
      for (let s = 0; s < 8; s++) if (distance(indices[t * 8 + s] as number) <= limit) found++;
    }
    expect(found / (256 * 8)).toBeGreaterThanOrEqual(0.99);
    for (const t of [...inputs, ...Object.values(made)]) t.dispose();
  });

  test('with localWindow >= chunk and a window over all, every token up to the query is attended to', async () => {
    const sizes = { ...shape, tokens: 40, heads: 1 };
    const options: ZetaOptions = { range: [-1, 1], topK: 40, window: 40, chunk: 8, localWindow: 8, historyMean: false };
    const { q, k, v, theta } = inputsOf(sizes, 9);
    v.values.fill(0);
    // the value of token j is j-th of a one-hot code over 8 groups: what is unseen leaves no trace
    const counts = f64(
      v.shape,
      Float64Array.from(v.values, (_, i) => (Math.floor(i / 8) % 8 === i % 8 ? 1 : 0)),
    );
    const inputs = [q, k, counts, theta].map((x) => onDevice(device, x)) as [Tensor, Tensor, Tensor, Tensor];
    const out = zeta(...inputs, options);
    const values = await out.read();
    for (let t = 7; t < 40; t++) for (let d = 0; d < 8; d++) expect(values[t * 8 + d]).toBeGreaterThan(0);
    for (const t of [...inputs, out]) t.dispose();
  });

  test('values in f16 and strided views of one projection are read in place', async () => {
    const sizes = { ...shape, tokens: 50 };
    const inputs = inputsOf(sizes, 2);
    const options = { ...small, chunk: 16 };
    const [q, k, v, theta] = [inputs.q, inputs.k, inputs.v, inputs.theta].map((x) => onDevice(device, x)) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const expected = referenceZeta(inputs.q, inputs.k, inputs.v, inputs.theta, referenceOptions(options, 3));
    const half = onDevice(device, inputs.v, 'f16');
    const out = zeta(q, k, half, theta, options);
    expect(out.dtype).toBe('f16');
    expectClose('f16', await readValues(out), expected.out, { atol: 2e-3, rtol: 2e-3 });
    // two heads of four: views with strides
    const wide = tensor(device, new Float32Array(50 * 4 * 8), [1, 50, 4, 8]);
    const both = [wide];
    const host = new Float32Array(50 * 4 * 8);
    for (let t = 0; t < 50; t++) host.set(Float32Array.from(inputs.v.values.subarray(t * 16, t * 16 + 16)), t * 32 + 16);
    both.push(tensor(device, host, [1, 50, 4, 8]));
    const view = slice(both[1] as Tensor, 2, 2, 4);
    expect(view.contiguous).toBe(false);
    const fromView = zeta(q, k, view, theta, options);
    expectClose('view', await readValues(fromView), expected.out, { atol: 1e-5, rtol: 1e-5 });
    for (const t of [q, k, v, theta, half, out, ...both, view, fromView]) t.dispose();
  });

  test('what lies behind a sequence in its buffer is not read, be it NaN', async () => {
    const sizes = { ...shape, tokens: 45 };
    const inputs = inputsOf(sizes, 12);
    const options = { ...small, chunk: 8, localWindow: 4 };
    const expected = referenceZeta(inputs.q, inputs.k, inputs.v, inputs.theta, referenceOptions(options, 3));
    const padded = (x: { shape: readonly number[]; values: ArrayLike<number> }): Tensor => {
      const [, tokens = 0, heads = 0, dim = 0] = x.shape;
      const values = new Float32Array((tokens + 20) * heads * dim).fill(NaN);
      values.set(Float32Array.from(x.values), 0);
      return tensor(device, values, [1, tokens + 20, heads, dim]);
    };
    const longer = [inputs.q, inputs.k, inputs.v].map(padded) as [Tensor, Tensor, Tensor];
    const cut = longer.map((t) => slice(t, 1, 0, 45)) as [Tensor, Tensor, Tensor];
    const theta = onDevice(device, inputs.theta);
    const out = zeta(...cut, theta, options);
    expectClose('out', await readValues(out), expected.out, { atol: 1e-5, rtol: 1e-5 });
    for (const t of [...longer, ...cut, theta, out]) t.dispose();
  });

  test('two runs agree bit for bit, gradients included', async () => {
    const inputs = inputsOf({ ...shape, tokens: 100 }, 3);
    const given = [inputs.q, inputs.k, inputs.v, inputs.theta].map((x) => onDevice(device, x)) as [Tensor, Tensor, Tensor, Tensor];
    const cotangent = onDevice(device, inputs.dOut);
    const run = async (): Promise<number[][]> => {
      const { outputs, grads } = vjp(() => zeta(...given, { ...small, chunk: 16 }), given, [cotangent]);
      const values = await Promise.all([...outputs, ...grads].map(async (t) => Array.from(await t.read())));
      for (const t of [...outputs, ...grads]) t.dispose();
      return values;
    };
    expect(await run()).toEqual(await run());
    for (const t of [...given, cotangent]) t.dispose();
  });

  test('a hundred lengths need no more pipelines than one of each kind, and a sequence without tokens gives none', async () => {
    const run = async (tokens: number): Promise<void> => {
      const inputs = inputsOf({ ...shape, tokens, heads: 1 }, tokens);
      const given = [inputs.q, inputs.k, inputs.v, inputs.theta].map((x) => onDevice(device, x)) as [Tensor, Tensor, Tensor, Tensor];
      const cotangent = onDevice(device, inputs.dOut);
      const { outputs, grads } = vjp(() => zeta(...given, { ...small, chunk: 16 }), given, [cotangent]);
      await device.idle();
      for (const t of [...given, cotangent, ...outputs, ...grads]) t.dispose();
    };
    await run(100);
    await run(0);
    const pipelines = device.pipelines.size;
    for (let n = 0; n < 100; n++) await run((n * 7) % 101);
    expect(device.pipelines.size).toBe(pipelines);
  });

  test('what does not fit is said', () => {
    const inputs = inputsOf(shape, 1);
    const [q, k, v, theta] = [inputs.q, inputs.k, inputs.v, inputs.theta].map((x) => onDevice(device, x)) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const half = onDevice(device, inputs.q, 'f16');
    const short = slice(k, 1, 0, 5);
    expect(() => zeta(half, k, v, theta, small)).toThrow(/it must be f32, since f16 is coarser than the cells/);
    expect(() => zeta(q, short, v, theta, small)).toThrow(/they must have one shape/);
    expect(() => zeta(q, k, v, short, small)).toThrow(/theta is .* it must be \[2\]/);
    // a call without theta, as other functions have it
    expect(() => zeta(q, k, v, small as never, small)).toThrow(/theta is no tensor; call zeta\(q, k, v, theta, options\)/);
    expect(() => zeta(q, k, v, theta, { ...small, window: 3 })).toThrow(/must hold at least topK/);
    expect(() => zeta(q, k, v, theta, { ...small, bits: 11 })).toThrow(/at most 32 in all/);
    expect(() => zeta(q, k, v, theta, { ...small, range: [1, 1] })).toThrow(/the lower one first/);
    expect(() => zeta(q, k, v, theta, { ...small, causal: false, localWindow: 2 })).toThrow(/localWindow is 2 with causal: false/);
    expect(() => zeta(q, k, v, theta, { ...small, chunk: 1025 })).toThrow(/multiple of 1024/);
    expect(() => zeta(q, k, v, theta, { ...small, topK: 2000, window: 4000 })).toThrow(/bytes of workgroup memory a query/);
    for (const t of [q, k, v, theta, half, short]) t.dispose();
  });
});
