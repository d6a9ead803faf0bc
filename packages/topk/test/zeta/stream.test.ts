import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, slice, type Tensor, tensor } from '@heed/core';
import { expectClose } from '@heed/core/testing';
import { zetaStart, type ZetaState, zetaStep, zetaStepWithIndices, type ZetaStreamOptions, zetaWithIndices } from '../../src/zeta/index.js';
import { inputsOf, onDevice } from './support.js';

const tokens = 83;
const base: ZetaStreamOptions = { batch: 2, heads: 2, keyDim: 3, valueDim: 8, capacity: 96, range: [-1, 1], topK: 5, window: 12, chunk: 8 };
const other: ZetaStreamOptions = { ...base, curves: 2, localWindow: 6, historyMean: false };
type Inputs = [Tensor, Tensor, Tensor, Tensor];

describe.each(['baseline', 'subgroups'] as const)('the stream on %s', (tier) => {
  let device: Device;
  let inputs: Inputs;
  let out: Float32Array;
  let indices: Int32Array;
  beforeAll(async () => {
    device = await openDevice({ tier });
    const host = inputsOf({ ...base, tokens }, 21);
    inputs = [host.q, host.k, host.v, host.theta].map((x) => onDevice(device, x)) as Inputs;
    const made = zetaWithIndices(...inputs, base);
    [out, indices] = [(await made.out.read()) as Float32Array, (await made.indices.read()) as Int32Array];
    for (const t of Object.values(made)) t.dispose();
  });
  afterAll(async () => {
    for (const t of inputs) t.dispose();
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  const [batch, heads, valueDim, topK] = [2, 2, 8, 5];
  const piece = (x: ArrayLike<number>, width: number, from: number, to: number): Float64Array => {
    const kept: number[] = [];
    for (let b = 0; b < batch; b++) for (let i = (b * tokens + from) * width; i < (b * tokens + to) * width; i++) kept.push(x[i] as number);
    return Float64Array.from(kept);
  };
  /** Feeds tokens from .. to and holds output and kept tokens against the parallel form. */
  const feed = async (state: ZetaState, from: number, to: number): Promise<void> => {
    const [q, k, v] = inputs.slice(0, 3).map((x) => slice(x, 1, from, to)) as [Tensor, Tensor, Tensor];
    const { out: got, indices: kept } = zetaStepWithIndices(q, k, v, inputs[3], state);
    const shape = [batch, to - from, heads, valueDim];
    expectClose(
      `tokens ${from} to ${to}`,
      { shape, values: await got.read() },
      { shape, values: piece(out, heads * valueDim, from, to) },
      { atol: 1e-5, rtol: 1e-5 },
    );
    expect(Array.from(await kept.read())).toEqual(Array.from(piece(indices, heads * topK, from, to)));
    for (const t of [q, k, v, got, kept]) t.dispose();
  };

  test('every split gives the parallel form, with the same tokens kept', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1, maxLength: 8 }), async (pieces) => {
        const state = zetaStart(device, base);
        let at = 0;
        for (const n of [...pieces, tokens]) {
          const end = Math.min(tokens, at + n);
          if (end > at) await feed(state, at, end);
          at = end;
        }
        expect(state.tokens).toBe(tokens);
        state.dispose();
      }),
      { numRuns: 8, seed: 5 },
    );
    const state = zetaStart(device, base);
    for (let t = 0; t < tokens; t++) await feed(state, t, t + 1);
    state.dispose();
  });

  test('two curves, a local window and no mean go token by token, too', async () => {
    const whole = zetaWithIndices(...inputs, other);
    const expected = await whole.out.read();
    const state = zetaStart(device, other);
    for (let from = 0; from < tokens; from += 9) {
      const to = Math.min(tokens, from + 9);
      const [q, k, v] = inputs.slice(0, 3).map((x) => slice(x, 1, from, to)) as [Tensor, Tensor, Tensor];
      const got = zetaStep(q, k, v, inputs[3], state);
      expect(Array.from(await got.read())).toEqual(Array.from(piece(expected, heads * valueDim, from, to)));
      for (const t of [q, k, v, got]) t.dispose();
    }
    state.dispose();
    for (const t of Object.values(whole)) t.dispose();
  });

  test('truncate goes back exactly, a snapshot goes into another state', async () => {
    const state = zetaStart(device, base);
    await feed(state, 0, 60);
    const snapshot = await state.snapshot();
    await feed(state, 60, tokens);
    state.truncate(37);
    await feed(state, 37, 70);
    state.truncate(0);
    await feed(state, 0, 5);
    const second = zetaStart(device, base);
    second.restore(snapshot);
    expect(second.tokens).toBe(60);
    await feed(second, 60, 77);
    const shorter = zetaStart(device, { ...base, capacity: 50 });
    expect(() => shorter.restore(snapshot)).toThrow(/start one with the same options/);
    expect(() => state.truncate(6)).toThrow(/from 0 to 5/);
    for (const s of [state, second, shorter]) s.dispose();
  });

  test('select puts batch entries in another order', async () => {
    for (const options of [base, other]) {
      const whole = zetaWithIndices(...inputs, options);
      const expected = await whole.out.read();
      const state = zetaStart(device, options);
      const first = inputs.slice(0, 3).map((x) => slice(x, 1, 0, 50)) as [Tensor, Tensor, Tensor];
      zetaStep(...first, inputs[3], state).dispose();
      using order = tensor(device, Uint32Array.from([1, 1]));
      state.select(order);
      // the second entry's next token, for both
      const next = inputs.slice(0, 3).map((x) =>
        slice(x, [
          [1, 2],
          [50, 51],
        ]),
      ) as [Tensor, Tensor, Tensor];
      const twice = await Promise.all(
        next.map(async (x) => tensor(device, Float32Array.from([...(await x.read()), ...(await x.read())]), [2, 1, ...x.shape.slice(2)])),
      );
      const got = zetaStep(...(twice as [Tensor, Tensor, Tensor]), inputs[3], state);
      const values = Array.from(await got.read());
      const wanted = Array.from(expected.subarray((tokens + 50) * heads * valueDim, (tokens + 51) * heads * valueDim));
      expect(values).toEqual([...wanted, ...wanted]);
      for (const t of [...first, ...next, ...twice, got, ...Object.values(whole)]) t.dispose();
      state.dispose();
    }
  });

  test('1,000 steps leave the same live bytes, and the state says what it takes', async () => {
    const state = zetaStart(device, { ...base, capacity: 1100, localWindow: 4 });
    const random = new RandomStream(2);
    let bytes = 0;
    for (let n = 0; n < 1000; n++) {
      const [q, k, v] = [3, 3, 8].map((d) => tensor(device, random.normal(4 * d), [2, 1, 2, d])) as [Tensor, Tensor, Tensor];
      const got = zetaStep(q, k, v, inputs[3], state);
      for (const t of [q, k, v, got]) t.dispose();
      if (n % 100 === 0) await device.idle();
      if (n === 300) bytes = device.memory().liveBytes;
    }
    expect(device.memory().liveBytes).toBe(bytes);
    // keys 16, values 32 bytes a token; 8 levels of pairs of 8 bytes; sums of 48 bytes every 16 tokens
    expect(state.bytes()).toEqual({ payload: 4 * 1100 * 48, metadata: 4 * (1100 * 8 * 8 + 70 * 48), padding: 0, host: 0 });
    state.dispose();
  });

  test('what a stream cannot do is said', () => {
    const state = zetaStart(device, { ...base, capacity: 4 });
    const [q, k, v] = inputs.slice(0, 3).map((x) => slice(x, 1, 0, 5)) as [Tensor, Tensor, Tensor];
    expect(() => zetaStep(q, k, v, inputs[3], state)).toThrow(/room for 4/);
    expect(() => zetaStart(device, { ...base, causal: false })).toThrow(/cannot see later ones/);
    expect(() => zetaStart(device, { ...base, capacity: 0 })).toThrow(/capacity 0/);
    using one = tensor(device, Uint32Array.from([0]));
    expect(() => state.select(one)).toThrow(/one batch index an entry/);
    for (const t of [q, k, v]) t.dispose();
    state.dispose();
    expect(() => zetaStep(inputs[0], inputs[1], inputs[2], inputs[3], state)).toThrow(/room for 4|disposed/);
  });
});
