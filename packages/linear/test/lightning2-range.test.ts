import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, type FloatDType, openDevice, RandomStream, slice, tensor, type Tensor, type Tier } from '@heed/core';
import { vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { decayFromSlopes, lightning2, lightning2Start, lightning2Step, lightning2WithState } from '../src/lightning2/index.js';
import { referenceLightning2, referenceLightning2Gradients } from '../src/lightning2/reference.js';

// Nothing divides a state by the number of its tokens: these operands fit f16, their sums and scores do not.
for (const tier of ['baseline', 'matrix'] as const satisfies readonly Tier[]) {
  describe(`f16 operands on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    const [tokens, keyDim, valueDim] = [150, 16, 32];
    const slopes = [0, 0.3];
    const decay = decayFromSlopes(slopes);

    /** Normal numbers of a size, around a mean: with one of the same sign sums grow with the tokens. */
    async function drawn(
      name: string,
      dim: number,
      size: number,
      mean = 0,
      dtype: FloatDType = 'f16',
    ): Promise<{ x: Tensor; values: F64Array }> {
      const shape = [1, tokens, slopes.length, dim];
      const numbers = new RandomStream(3, name).normal(tokens * slopes.length * dim).map((n) => size * (n + mean));
      const x = tensor(device, numbers, shape, { dtype });
      return { x, values: f64(shape, await x.read()) };
    }

    async function expectClose(name: string, got: Tensor | undefined, wanted: F64Array): Promise<void> {
      expect(got?.shape).toEqual(wanted.shape);
      if (got) expectErrorRatio(name, { shape: got.shape, values: await got.read() }, wanted, 2e-3);
    }

    test('outputs and gradients are right where the state and the scores pass 65,504', async () => {
      // states to 2e7, scores to 3e5, outputs to 1e7
      const [q, k, v] = [await drawn('q', keyDim, 30), await drawn('k', keyDim, 400, 1), await drawn('v', valueDim, 400, 1)];
      const dOut = await drawn('dOut', valueDim, 1e-6, 0, 'f32');
      const stateShape = [1, slopes.length, keyDim, valueDim];
      const stateSize = slopes.length * keyDim * valueDim;
      const initial = tensor(
        device,
        new RandomStream(3, 'initial').normal(stateSize).map((n) => 1e6 * n),
        stateShape,
      );
      const dState = tensor(
        device,
        new RandomStream(3, 'dState').normal(stateSize).map((n) => 1e-6 * n),
        stateShape,
      );
      const { outputs, grads } = vjp(
        () => {
          const { out, state } = lightning2WithState(q.x, k.x, v.x, { decay, initialState: initial, outDType: 'f32' });
          return [out, state];
        },
        [q.x, k.x, v.x, initial],
        [dOut.x, dState],
      );
      const [first, last] = [f64(stateShape, await initial.read()), f64(stateShape, await dState.read())];
      const forward = referenceLightning2(q.values, k.values, v.values, slopes, { initialState: first });
      const cotangents = { out: dOut.values, finalState: last };
      const backward = referenceLightning2Gradients(q.values, k.values, v.values, slopes, cotangents, { initialState: first });
      expect(Math.max(...forward.out.values.map(Math.abs))).toBeGreaterThan(1e7);
      expect(outputs[0]?.dtype).toBe('f32');
      await expectClose('out', outputs[0], forward.out);
      await expectClose('state', outputs[1], forward.finalState);
      await expectClose('dq', grads[0], backward.q);
      await expectClose('dk', grads[1], backward.k);
      await expectClose('dv', grads[2], backward.v);
      await expectClose('dInitial', grads[3], backward.initialState);
      for (const x of [q.x, k.x, v.x, dOut.x, initial, dState, ...outputs, ...grads]) x.dispose();
    });

    test('outputs that f16 holds are right where the state passes 65,504', async () => {
      const [q, k, v] = [await drawn('q', keyDim, 2e-4), await drawn('k', keyDim, 300, 1), await drawn('v', valueDim, 300, 1)];
      const out = lightning2(q.x, k.x, v.x, { decay });
      const wanted = referenceLightning2(q.values, k.values, v.values, slopes, {});
      expect(Math.max(...wanted.finalState.values.map(Math.abs))).toBeGreaterThan(1e6);
      expect(out.dtype).toBe('f16');
      await expectClose('out', out, wanted.out);
      for (const x of [q.x, k.x, v.x, out]) x.dispose();
    });

    test('a factor over 1 does not take keys out of range in the backward', async () => {
      const [q, k, v] = [await drawn('q', keyDim, 2000), await drawn('k', keyDim, 1e-2), await drawn('v', valueDim, 1e-3)];
      const dOut = await drawn('dOut', valueDim, 1e-4);
      const { outputs, grads } = vjp(() => lightning2(q.x, k.x, v.x, { decay, scale: 200 }), [q.x, k.x, v.x], [dOut.x]);
      const backward = referenceLightning2Gradients(q.values, k.values, v.values, slopes, { out: dOut.values }, { scale: 200 });
      await expectClose('dk', grads[1], backward.k);
      await expectClose('dv', grads[2], backward.v);
      for (const x of [q.x, k.x, v.x, dOut.x, ...outputs, ...grads]) x.dispose();
    });

    test('a stream gives f32 outputs of f16 operands, by steps and by pieces', async () => {
      const [q, k, v] = [await drawn('q', keyDim, 30), await drawn('k', keyDim, 400, 1), await drawn('v', valueDim, 400, 1)];
      const wanted = referenceLightning2(q.values, k.values, v.values, slopes, {});
      const stream = lightning2Start(device, { batch: 1, heads: slopes.length, keyDim, valueDim, decay, outDType: 'f32' });
      let first = 0;
      for (const count of [100, 1, 49]) {
        const [a, b, c] = [q.x, k.x, v.x].map((x) => slice(x, 1, first, first + count)) as [Tensor, Tensor, Tensor];
        const out = lightning2Step(a, b, c, stream);
        expect(out.dtype).toBe('f32');
        const perToken = slopes.length * valueDim;
        const part = wanted.out.values.slice(first * perToken, (first + count) * perToken);
        await expectClose(`tokens ${first} to ${first + count}`, out, f64([1, count, slopes.length, valueDim], part));
        for (const x of [a, b, c, out]) x.dispose();
        first += count;
      }
      stream.dispose();
      for (const x of [q.x, k.x, v.x]) x.dispose();
    });
  });
}
