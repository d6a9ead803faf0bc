// The part of a large buffer that a kernel binds.
import { expect, test } from 'vitest';
import type { Storage } from '../src/device/pool.js';
import { windowOf } from '../src/kernel/bind.js';
import type { Operand, ResolvedBinding } from '../src/kernel/bindings.js';

const halves = (offset: number, extent: number): Operand => ({ storage: { bytes: 2 ** 20 } as Storage, dtype: 'f16', offset, extent });
const binding = (raw: string | undefined, width: number, itemBytes: number): ResolvedBinding => ({
  name: 'x',
  index: 0,
  offsetName: 'x_first',
  access: 'read',
  dtype: 'f16',
  width,
  raw,
  packed: false,
  itemBytes,
});

test('a window begins at a multiple of 256 bytes and holds all of the operand', () => {
  expect(windowOf(halves(1000, 500), binding(undefined, 1, 2), 'kernel', 65_536)).toEqual({ offset: 1792, size: 1280 });
});

test('items of 16 bytes end within the binding, or the operand is refused', () => {
  const words = binding('vec4u', 1, 16);
  expect(windowOf(halves(0, 2040), words, 'kernel', 4092)).toEqual({ offset: 0, size: 4080 });
  expect(() => windowOf(halves(0, 2041), words, 'kernel', 4092)).toThrow(/needs a binding of/);
  expect(windowOf(halves(0, 2041), binding(undefined, 1, 2), 'kernel', 4092)).toEqual({ offset: 0, size: 4092 });
});
