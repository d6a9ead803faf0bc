import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, type FloatDType, openDevice, scope, tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { planFor, runScan } from '../src/scan/scan.js';
import { draw } from './lightning2/check.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'matrix' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('a segment whose state is made in parts gives what it gives in one, in both directions', async () => {
  const [tokens, keyDim, valueDim, heads] = [300, 16, 32, 3];
  const made = async (name: string, dim: number) => (await draw(device, name, [1, tokens, heads, dim], 'f16')).x;
  const [q, k, v] = [await made('q', keyDim), await made('k', keyDim), await made('v', valueDim)];
  // all of a segment is alive, some parts of it, a few tokens
  const decay = tensor(device, Float32Array.of(0, -0.3, -5));
  // the last part is cut short
  const lengths = tensor(device, Int32Array.of(271));
  const run = async (reverse: boolean, parts: number, dtype: FloatDType = 'f32'): Promise<F64Array> => {
    const plan = { ...planFor(k, v, 128), parts };
    expect(plan).toMatchObject({ kernel: 'matrix', segments: 3 });
    const out = empty(device, v.shape, dtype);
    scope(() => runScan({ q, k, v, decay, lengths, reverse, plan }, { out }));
    const values = f64(v.shape, await out.read());
    out.dispose();
    return values;
  };
  for (const reverse of [false, true]) {
    const whole = await run(reverse, 1);
    for (const parts of [2, 5]) expectErrorRatio(`${parts} parts`, await run(reverse, parts), whole, 1e-3);
  }
  // halves leave by eights, zeros behind the length, too
  const halves = await run(false, 2, 'f16');
  expectErrorRatio('halves', halves, await run(false, 1), 1e-3);
  expect(halves.values.slice(271 * heads * valueDim).every((x) => x === 0)).toBe(true);
  for (const x of [q, k, v, decay, lengths]) x.dispose();
});
