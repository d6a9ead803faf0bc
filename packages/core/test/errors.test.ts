import { HeedError, formatBytes } from '../src/errors.js';
import { expect, test } from 'vitest';

test('an error carries its code, its message and its cause', () => {
  const cause = new Error('below');
  const error = new HeedError('SHAPE_MISMATCH', 'core: q has 3 axes; expected 4', { cause });
  expect(error).toBeInstanceOf(Error);
  expect({ name: error.name, code: error.code, message: error.message, cause: error.cause }).toEqual({
    name: 'HeedError',
    code: 'SHAPE_MISMATCH',
    message: 'core: q has 3 axes; expected 4',
    cause,
  });
});

test('bytes are printed with the largest unit that keeps the number at 1 or above', () => {
  expect([0, 48, 1023, 1024, 16_384, 3.2 * 1024 ** 3, 2048 * 1024 ** 4].map(formatBytes)).toEqual([
    '0 B',
    '48 B',
    '1023 B',
    '1 KiB',
    '16 KiB',
    '3.20 GiB',
    '2048 TiB',
  ]);
});

test('using is compiled down, so that sources and tests may use it on Node 20', () => {
  const order: string[] = [];
  {
    using _resource = { [Symbol.dispose]: (): void => void order.push('disposed') };
    order.push('body');
  }
  expect(order).toEqual(['body', 'disposed']);
});
