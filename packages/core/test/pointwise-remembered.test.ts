// Calls of small ops are remembered by what they were given: one that differs in anything is another call.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { add, cast, type Device, openDevice, slice, type Tensor, tensor, valueAndGrad, sum } from '../src/index.js';
import { HeedError } from '../src/errors.js';

const devices: Device[] = [];
beforeAll(async () => {
  for (let i = 0; i < 2; i++) devices.push(await openDevice({ tier: 'baseline' }));
});
afterAll(async () => {
  for (const device of devices) {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  }
});

const count = (n: number): Float32Array => Float32Array.from({ length: n }, (_, i) => i + 1);

/** Operands that differ in one thing each: where they start, dtype, shape, a number in place of a tensor, the device. */
function operandsOf(device: Device): { kept: Tensor[]; pairs: (readonly [Tensor, Tensor | number])[] } {
  const whole = tensor(device, count(9));
  const [x, y] = [slice(whole, 0, 0, 8), slice(whole, 0, 1, 9)];
  const half = cast(x, 'f16');
  const [square, single] = [tensor(device, count(8), [2, 4]), tensor(device, [5])];
  const whole32 = cast(x, 'i32');
  return {
    kept: [whole, x, y, half, square, single, whole32],
    pairs: [
      [x, x],
      [x, y],
      [y, x],
      [x, half],
      [half, half],
      [square, square],
      [x, single],
      [x, 3],
      [half, 3],
      [whole32, whole32],
      [whole32, 2],
    ],
  };
}

test('calls that differ in one thing from the one before', async () => {
  const sets = devices.map(operandsOf);
  for (let round = 0; round < 3; round++) {
    for (let i = 0; i < sets[0]!.pairs.length; i++) {
      for (const { pairs } of sets) {
        const [a, b] = pairs[i]!;
        const out = add(a, b);
        const left = await a.read();
        const right = typeof b === 'number' ? [b] : await b.read();
        expect(Array.from(await out.read())).toEqual(Array.from(left, (value, at) => value + right[at % right.length]!));
        const halves = a.dtype === 'f16' && (typeof b === 'number' || b.dtype === 'f16');
        expect([out.dtype, out.shape]).toEqual([halves ? 'f16' : a.dtype === 'i32' ? 'i32' : 'f32', a.shape]);
        out.dispose();
      }
    }
  }
  for (const { kept } of sets) for (const t of kept) t.dispose();
});

test('a call that is known is recorded on a tape, and refuses what is disposed', async () => {
  const [device] = devices as [Device];
  const x = tensor(device, [1, 2, 3, 4]);
  add(x, x).dispose();
  const { value, grads } = valueAndGrad((p: Tensor) => sum(add(p, p)))(x);
  expect(Array.from(await grads.read())).toEqual([2, 2, 2, 2]);
  [value, grads].forEach((t) => t.dispose());
  const gone = tensor(device, [1, 2, 3, 4]);
  gone.dispose();
  const before = device.memory();
  expect(() => add(x, gone)).toThrow(HeedError);
  expect(device.memory()).toMatchObject({ tensors: before.tensors, liveBytes: before.liveBytes });
  x.dispose();
});

test('a closed device refuses calls that are known', async () => {
  const device = await openDevice({ tier: 'baseline' });
  const x = tensor(device, [1, 2, 3, 4]);
  add(x, x).dispose();
  await device.close();
  expect(() => add(x, x)).toThrow(/closed/);
});
