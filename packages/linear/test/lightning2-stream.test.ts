import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, slice, tensor, type Tensor, type Tier } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import type { Lightning2State } from '../src/lightning2/index.js';
import { decayFromSlopes, lightning2Slopes, lightning2Start, lightning2Step } from '../src/lightning2/index.js';
import { referenceAlibiSlopes, referenceLayerFactor, referenceLightning2, referencePaperSlopes } from '../src/lightning2/reference.js';
import { draw } from './lightning2/check.js';

for (const tier of ['baseline', 'matrix'] as const satisfies readonly Tier[]) {
  describe(`a stream on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    const dtype = tier === 'matrix' ? 'f16' : 'f32';
    const bound = tier === 'matrix' ? 1.5e-3 : 3e-6;
    const [batch, heads, keyDim, valueDim] = [2, 2, 20, 36];
    const slopes = [0.3, 0.01];
    const start = (): Lightning2State => lightning2Start(device, { batch, heads, keyDim, valueDim, decay: decayFromSlopes(slopes) });
    const operands = async (
      tokens: number,
    ): Promise<[Awaited<ReturnType<typeof draw>>, Awaited<ReturnType<typeof draw>>, Awaited<ReturnType<typeof draw>>]> => [
      await draw(device, 'q', [batch, tokens, heads, keyDim], dtype),
      await draw(device, 'k', [batch, tokens, heads, keyDim], dtype),
      await draw(device, 'v', [batch, tokens, heads, valueDim], dtype),
    ];
    const step = (x: readonly Tensor[], from: number, to: number, state: Lightning2State): Tensor => {
      const [q, k, v] = x.map((t) => slice(t, 1, from, to)) as [Tensor, Tensor, Tensor];
      const out = lightning2Step(q, k, v, state);
      for (const t of [q, k, v]) t.dispose();
      return out;
    };

    test('prefill in pieces then decode gives the parallel result for every split', async () => {
      const tokens = 80;
      const given = await operands(tokens);
      const expected = referenceLightning2(given[0].values, given[1].values, given[2].values, slopes);
      const x = given.map((one) => one.x);
      for (const cut of [0, 1, 2, 40, 64, 65, 79, 80]) {
        const state = start();
        const bounds = [0, cut, Math.min(tokens, cut + 1), tokens];
        for (let i = 0; i + 1 < bounds.length; i++) {
          const [from, to] = [bounds[i] as number, bounds[i + 1] as number];
          const out = step(x, from, to, state);
          const rows = Array.from({ length: batch }, (_, b) => {
            const size = heads * valueDim;
            return [...expected.out.values.subarray((b * tokens + from) * size, (b * tokens + to) * size)];
          }).flat();
          if (to > from)
            expectErrorRatio(`tokens ${from} to ${to}`, { shape: out.shape, values: await out.read() }, f64(out.shape, rows), bound);
          else expect(out.shape).toEqual([batch, 0, heads, valueDim]);
          out.dispose();
        }
        expect(state.tokens).toBe(tokens);
        expectErrorRatio('state', { shape: state.values.shape, values: await state.values.read() }, expected.finalState, bound);
        state.dispose();
      }
      for (const t of x) t.dispose();
    });

    test('1,000 decode steps leave the same live bytes and make no buffer', async () => {
      const x = (await operands(1)).map((one) => one.x);
      const state = start();
      step(x, 0, 1, state).dispose();
      await device.idle();
      const before = device.memory();
      for (let i = 0; i < 1000; i++) step(x, 0, 1, state).dispose();
      await device.idle();
      expect(device.memory()).toMatchObject({ liveBytes: before.liveBytes, tensors: before.tensors });
      expect(state.tokens).toBe(1001);
      state.dispose();
      for (const t of x) t.dispose();
    });
  });
}

describe('a state', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const shape = { batch: 3, heads: 1, keyDim: 4, valueDim: 8 };
  const decay = [-0.25];
  const started = async (seed: number): Promise<{ state: Lightning2State; x: Tensor[] }> => {
    const state = lightning2Start(device, { ...shape, decay });
    const x = [
      (await draw(device, 'q', [3, 2, 1, 4], 'f32', seed)).x,
      (await draw(device, 'k', [3, 2, 1, 4], 'f32', seed)).x,
      (await draw(device, 'v', [3, 2, 1, 8], 'f32', seed)).x,
    ];
    lightning2Step(x[0]!, x[1]!, x[2]!, state).dispose();
    return { state, x };
  };

  test('counts its bytes and tokens', async () => {
    const { state, x } = await started(1);
    expect(state.bytes()).toEqual({ payload: 3 * 4 * 8 * 4, metadata: 4, padding: 0, host: 0 });
    expect(state.tokens).toBe(2);
    for (const t of x) t.dispose();
    state.dispose();
  });

  test('decodes bit for bit on from a snapshot', async () => {
    const { state, x } = await started(1);
    const snapshot = await state.snapshot();
    const next = async (s: Lightning2State): Promise<number[]> => {
      const out = lightning2Step(x[0]!, x[1]!, x[2]!, s);
      const values = [...(await out.read())];
      out.dispose();
      return values;
    };
    const first = await next(state);
    const other = lightning2Start(device, { ...shape, decay });
    other.restore(snapshot);
    expect(other.tokens).toBe(2);
    expect(await next(other)).toEqual(first);
    state.restore(snapshot);
    expect(await next(state)).toEqual(first);
    const wrong = lightning2Start(device, { ...shape, keyDim: 8, decay });
    expect(() => wrong.restore(snapshot)).toThrow(expect.objectContaining({ code: 'INVALID_FILE' }));
    for (const t of x) t.dispose();
    for (const s of [state, other, wrong]) s.dispose();
  });

  test('keeps the batch entries that are selected, in their order', async () => {
    const { state, x } = await started(2);
    const before = await state.values.read();
    const batch = tensor(device, Uint32Array.of(2, 0, 2, 1));
    state.select(batch);
    expect(state.values.shape).toEqual([4, 1, 4, 8]);
    const after = await state.values.read();
    for (const [i, from] of [2, 0, 2, 1].entries())
      expect([...after.subarray(i * 32, i * 32 + 32)]).toEqual([...before.subarray(from * 32, from * 32 + 32)]);
    for (const t of tensorsIn([x, batch])) t.dispose();
    state.dispose();
  });

  test('is cut back to where it stands, and nowhere else', async () => {
    const { state, x } = await started(1);
    state.truncate(2);
    expect(() => state.truncate(1)).toThrow(/truncate to 1 of 2 tokens; a state keeps no tokens to go back to, take a snapshot/);
    for (const t of x) t.dispose();
    state.dispose();
  });

  test('refuses steps after dispose, other shapes and gradients', async () => {
    const { state, x } = await started(1);
    const [q, k, v] = x as [Tensor, Tensor, Tensor];
    const narrow = slice(q, 0, 0, 2);
    const narrowV = slice(v, 0, 0, 2);
    expect(() => lightning2Step(narrow, narrow, narrowV, state)).toThrow(/it must be \[2, 1, 4, 8\]/);
    expect(() => vjp(() => lightning2Step(q, k, v, state), [q], [v])).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }));
    state.dispose();
    expect(() => lightning2Step(q, k, v, state)).toThrow(expect.objectContaining({ code: 'DISPOSED' }));
    for (const t of [...x, narrow, narrowV]) t.dispose();
  });

  test("goes on from an initial state, which stays the caller's", async () => {
    const initialState = await draw(device, 'state', [3, 1, 4, 8]);
    const state = lightning2Start(device, { ...shape, decay, initialState: initialState.x });
    const x = [
      await draw(device, 'q', [3, 1, 1, 4]),
      await draw(device, 'k', [3, 1, 1, 4]),
      await draw(device, 'v', [3, 1, 1, 8]),
    ] as const;
    const out = lightning2Step(x[0].x, x[1].x, x[2].x, state);
    const expected = referenceLightning2(x[0].values, x[1].values, x[2].values, [0.25], { initialState: initialState.values });
    expectErrorRatio('out', { shape: out.shape, values: await out.read() }, expected.out, 3e-6);
    expect([...(await initialState.x.read())]).toEqual([...initialState.values.values]);
    for (const t of tensorsIn([initialState.x, out, x.map((one) => one.x)])) t.dispose();
    state.dispose();
  });
});

describe('slopes', () => {
  test("are those of ALiBi with the factor of the layer, or the paper's", () => {
    for (const heads of [1, 2, 3, 8, 12, 16, 20]) {
      expect(lightning2Slopes({ heads })).toEqual([...referenceAlibiSlopes(heads)]);
      for (const [layer, layers] of [
        [0, 1],
        [0, 6],
        [5, 6],
      ] as const) {
        expect(lightning2Slopes({ heads, layer, layers })).toEqual(
          [...referenceAlibiSlopes(heads)].map((s) => s * referenceLayerFactor(layer, layers)),
        );
        expect(lightning2Slopes({ heads, layer, layers, scheme: 'paper' })).toEqual([...referencePaperSlopes(heads, layer, layers)]);
      }
    }
  });

  test('become log-decays in one place, which refuses what is none', () => {
    expect(decayFromSlopes([0.5, 0])).toEqual([-0.5, 0]);
    expect(() => decayFromSlopes([-0.5])).toThrow(/the slope of head 0 is -0\.5; slopes are >= 0/);
    expect(() => lightning2Slopes({ heads: 0 })).toThrow(/heads is an integer of 1 or more/);
    expect(() => lightning2Slopes({ heads: 2, layer: 3, layers: 3 })).toThrow(/slopes of layer 3 of 3; layer counts from 0 to layers - 1/);
    expect(() => lightning2Slopes({ heads: 2, layer: 0 })).toThrow(/only one of layer and layers/);
  });
});
