import { expect, test } from 'vitest';
import { kernels } from '../src/kernels.js';
import { readOptions, UsageError } from '../src/options.js';

test('without options everything is measured, small on a software device and large on a real one', () => {
  const choose = readOptions([]);
  expect(choose({ isSoftware: true })).toMatchObject({ kernels: Object.keys(kernels), tokens: [512, 2048], heads: 2, dtype: 'f32' });
  expect(choose({ isSoftware: false })).toMatchObject({ tokens: [4096, 16384, 65536], heads: 16, dtype: 'f16' });
});

test('what is given counts on every device', () => {
  const choose = readOptions(['--kernels', 'lightning2', '--tokens', '100,7', '--dtype', 'f16', '--tier', 'baseline', '--repeats', '3']);
  for (const isSoftware of [true, false]) {
    expect(choose({ isSoftware })).toMatchObject({ kernels: ['lightning2'], tokens: [100, 7], dtype: 'f16', tier: 'baseline', repeats: 3 });
  }
});

test.each([
  [['--kernels', 'nothing'], /there is no kernel "nothing"/],
  [['--tokens', '100,-1'], /--tokens is "-1"/],
  [['--dtype', 'bf16'], /--dtype is "bf16"/],
  [['--tier', 'fast'], /--tier is "fast"/],
  [['--color'], /Unknown option/],
] as const)('%j gets a sentence, not a stack', (args, sentence) => {
  expect(() => readOptions(args)).toThrow(UsageError);
  expect(() => readOptions(args)).toThrow(sentence);
});
