import { expect, test } from 'vitest';
import { parseOptions, suites } from '../src/options.js';
import { UsageError } from '../src/usage.js';

test('without arguments the quick suite runs, and nothing is written', () => {
  expect(parseOptions([])).toEqual({ suite: 'quick', only: [], unchecked: false, peers: [], merge: [] });
});

test('a suite with sizes, filters and files', () => {
  const args = ['kernels', '--sizes', '4096,16384', '--only', 'zeta,fna2d', '--json', 'a.json', '--html', 'a.html', '--tier', 'baseline'];
  expect(parseOptions(args)).toMatchObject({
    suite: 'kernels',
    sizes: [4096, 16384],
    only: ['zeta', 'fna2d'],
    json: 'a.json',
    html: 'a.html',
    tier: 'baseline',
  });
});

test('help names every suite', () => {
  const asked = parseOptions(['--help']);
  expect('help' in asked && suites.every((suite) => asked.help.includes(suite))).toBe(true);
});

test.each([
  [['everything'], /there is no suite "everything"; use one of quick, kernels/],
  [['quick', '--sizes', '100,-1'], /whole numbers from 1 on/],
  [['quick', '--tier', 'fast'], /There is no tier "fast"/],
  [['quick', 'masks'], /too many arguments/],
  [['--color'], /unknown option '--color'/],
] as const)('%j gets a sentence, not a stack', (args, sentence) => {
  expect(() => parseOptions(args)).toThrow(UsageError);
  expect(() => parseOptions(args)).toThrow(sentence);
});
