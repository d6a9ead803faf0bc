// One token of a stream: the state in place, whatever decays it.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, slice, type Tensor, tensor } from '@heed/core';
import { lrpe, rotatePairs } from '../src/layer/turns.js';
import { runTokenStep, tokenStepTile } from '../src/scan/token-step.js';

test('a tile is as wide as leaves every part of the device a workgroup, and a lane holds few rows', () => {
  expect(tokenStepTile(1024, { keyDim: 128, valueDim: 128 })).toEqual({ columns: 128, rows: 16 });
  expect(tokenStepTile(1024, { keyDim: 64, valueDim: 64 })).toEqual({ columns: 64, rows: 4 });
  expect(tokenStepTile(16, { keyDim: 64, valueDim: 64 })).toEqual({ columns: 16, rows: 4 });
  expect(tokenStepTile(1024, { keyDim: 256, valueDim: 128 })).toEqual({ columns: 64, rows: 16 });
  for (const keyDim of [1, 20, 300, 1024])
    for (const valueDim of [1, 36, 128, 200]) {
      const { columns, rows } = tokenStepTile(64, { keyDim, valueDim });
      expect((columns / 4) * Math.ceil(keyDim / rows)).toBeLessThanOrEqual(256);
    }
});

const numbers = (count: number, seed: number): Float32Array<ArrayBuffer> =>
  Float32Array.from({ length: count }, (_, i) => Math.fround(Math.sin(i * 12.9898 + seed * 78.233)));

describe('a step', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  const batch = 3;
  const heads = 2;
  test.each([
    ['a constant a head', 'constant', 12, 8, false],
    ['a number a head, dimensions off four', 'head', 10, 7, false],
    ['one a row, an entry that has ended', 'rows', 20, 12, true],
  ] as const)('%s', async (_, form, keyDim, valueDim, ends) => {
    const scale = 0.5;
    const values = {
      // the step reads the middle token of three
      q: numbers(batch * 3 * heads * keyDim, 1),
      k: numbers(batch * 3 * heads * keyDim, 2),
      v: numbers(batch * 3 * heads * valueDim, 3),
      gate: numbers(form === 'constant' ? heads : batch * heads * (form === 'rows' ? keyDim : 1), 4).map((x) => -Math.abs(x)),
      state: numbers(batch * heads * keyDim * valueDim, 5),
    };
    const made: Tensor[] = [];
    const keep = (t: Tensor): Tensor => (made.push(t), t);
    const middle = (x: Float32Array<ArrayBuffer>, dim: number): Tensor =>
      keep(slice(keep(tensor(device, x, [batch, 3, heads, dim])), 1, 1, 2));
    const gateShape = form === 'constant' ? [heads] : [batch, 1, heads, ...(form === 'rows' ? [keyDim] : [])];
    const gate = keep(tensor(device, values.gate, gateShape));
    const state = keep(tensor(device, values.state, [batch, heads, keyDim, valueDim]));
    const out = keep(tensor(device, new Float32Array(batch * heads * valueDim).fill(9), [batch, 1, heads, valueDim]));
    const lengths = ends ? keep(tensor(device, Int32Array.of(8, 6, 7))) : undefined;
    const [q, k, v] = [middle(values.q, keyDim), middle(values.k, keyDim), middle(values.v, valueDim)];
    runTokenStep({ q, k, v, gate, lengths, tokensBefore: 6, queryScale: scale }, state, out);
    const [gotOut, gotState] = [await out.read(), await state.read()];
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < heads; h++) {
        const pair = b * heads + h;
        const row = (b * 3 + 1) * heads + h;
        const ended = ends && b === 1;
        const sums = new Float64Array(valueDim);
        for (let r = 0; r < keyDim; r++) {
          const gated = form === 'constant' ? values.gate[h]! : form === 'head' ? values.gate[pair]! : values.gate[pair * keyDim + r]!;
          for (let c = 0; c < valueDim; c++) {
            const at = (pair * keyDim + r) * valueDim + c;
            const before = values.state[at]!;
            const after = ended ? before : Math.exp(gated) * before + values.k[row * keyDim + r]! * values.v[row * valueDim + c]!;
            expect(gotState[at]).toBeCloseTo(after, 5);
            if (!ended) sums[c]! += scale * values.q[row * keyDim + r]! * after;
          }
        }
        sums.forEach((sum, c) => expect(gotOut[pair * valueDim + c]).toBeCloseTo(sum, 4));
      }
    for (const t of made) t.dispose();
  });

  test.each(['concat', 'rotate'] as const)('q and k turned as they are loaded are turned copies: %s', async (form) => {
    const [headDim, valueDim, offset] = [20, 12, 1_000_003];
    const keyDim = form === 'concat' ? 2 * headDim : headDim;
    const theta = tensor(
      device,
      numbers(form === 'concat' ? heads * headDim : headDim / 2, 6),
      form === 'concat' ? [heads, headDim] : [headDim / 2],
    );
    const [q, k] = [1, 2].map((seed) => tensor(device, numbers(batch * heads * headDim, seed), [batch, 1, heads, headDim])) as [
      Tensor,
      Tensor,
    ];
    const v = tensor(device, numbers(batch * heads * valueDim, 3), [batch, 1, heads, valueDim]);
    const gate = tensor(device, [-0.2, -0.01]);
    const turn = form === 'concat' ? lrpe : rotatePairs;
    const [turnedQ, turnedK] = [turn(q, theta, { offset }), turn(k, theta, { offset })];
    const results: Tensor[][] = [];
    for (const operands of [
      { q, k, turns: { form, theta, offset, of: 'keys' as const } },
      { q: turnedQ, k: turnedK },
    ]) {
      const state = tensor(device, numbers(batch * heads * keyDim * valueDim, 5), [batch, heads, keyDim, valueDim]);
      const out = tensor(device, new Float32Array(batch * heads * valueDim), [batch, 1, heads, valueDim]);
      runTokenStep({ ...operands, v, gate }, state, out);
      results.push([out, state]);
    }
    const [got, wanted] = results as [Tensor[], Tensor[]];
    for (const [i, x] of got.entries()) {
      const expected = await (wanted[i] as Tensor).read();
      (await x.read()).forEach((value, j) => expect(value).toBeCloseTo(Number(expected[j]), 5));
    }
    for (const t of [theta, q, k, v, gate, turnedQ, turnedK, ...got, ...wanted]) t.dispose();
  });
});
