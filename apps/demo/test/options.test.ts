import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type DemoOptions, expectWritable, parseOptions, tokensToRead } from '../src/options.js';

const MODELS = ['softmax', 'lightning2', 'neighborhood', 'zeta'];
const parse = (...args: string[]): DemoOptions => parseOptions(args, MODELS) as DemoOptions;

test('without arguments all models read the shipped text', () => {
  expect(parse()).toEqual({ models: MODELS, report: 'report.html', seed: 1, continuation: 200 });
});

test('a few models run by default, and `all` stands for every one that is shipped', () => {
  const shipped = [...MODELS, 'based', 'titans'];
  expect(parseOptions([], shipped, MODELS)).toMatchObject({ models: MODELS });
  expect(parseOptions(['--models', 'all'], shipped, MODELS)).toMatchObject({ models: shipped });
  expect(parseOptions(['--models', 'titans', 'all'], shipped, MODELS)).toMatchObject({
    models: ['titans', 'softmax', 'lightning2', 'neighborhood', 'zeta', 'based'],
  });
});

test('every option reaches its place', () => {
  const args = [
    '--tokens',
    '65536',
    '--models',
    'zeta,softmax',
    '--text',
    'a.txt',
    '--json',
    'a.json',
    '--report',
    'r.html',
    '--seed',
    '7',
    '--continue',
    '0',
  ];
  expect(parse(...args)).toEqual({
    tokens: 65_536,
    models: ['zeta', 'softmax'],
    text: 'a.txt',
    json: 'a.json',
    report: 'r.html',
    seed: 7,
    continuation: 0,
  });
});

test('models are separated by commas or spaces, keep their order and run once', () => {
  expect(parse('--models', 'zeta', 'softmax,zeta', '--seed', '3').models).toEqual(['zeta', 'softmax']);
});

test('--json without a file means standard output', () => {
  expect(parse('--json').json).toBe('-');
  expect(parse('--json', '--tokens', '5')).toMatchObject({ json: '-', tokens: 5 });
});

test('--help gives the text of help, with every option', () => {
  const asked = parseOptions(['--help'], MODELS);
  expect(asked).toHaveProperty('help', expect.stringContaining('npm run demo -- [options]'));
  for (const option of ['--tokens', '--models', '--text', '--json', '--report', '--seed', '--continue'])
    expect(asked).toHaveProperty('help', expect.stringContaining(option));
});

test.each([
  ['--tokens', '0', 'Expected tokens as a whole number of at least 1'],
  ['--tokens', '-5', 'Expected tokens as a whole number of at least 1'],
  ['--tokens', '1.5', 'Expected tokens as a whole number of at least 1'],
  ['--tokens', '1e3', 'Expected tokens as a whole number of at least 1'],
  ['--tokens', 'many', 'Expected tokens as a whole number of at least 1'],
  ['--tokens', '99999999999999999999', 'Expected tokens as a whole number of at least 1'],
  ['--models', 'mamba', 'There is no model "mamba"; expected names among softmax, lightning2, neighborhood, zeta'],
  ['--models', 'zeta,mamba', 'There is no model "mamba"'],
  ['--models', ',', 'Expected names among softmax'],
  ['--seed', '4294967296', 'Expected a seed as a whole number from 0 to 4294967295'],
  ['--continue', '100001', 'Expected bytes as a whole number from 0 to 100000'],
])('%s %s is refused with what was expected', (option, value, expected) => {
  let message = '';
  try {
    parse(option, value);
  } catch (error) {
    message = (error as Error).message;
  }
  expect(message).toContain(expected);
  expect(message).toContain(`'${value}'`);
  expect(message).toContain(option);
});

test.each([
  [['--token', '5'], "unknown option '--token'"],
  [['--text'], "option '--text <file>' argument missing"],
  [['novel.txt'], 'too many arguments'],
])('%j is refused', (args, expected) => {
  expect(() => parseOptions(args, MODELS)).toThrow(expected);
});

test('the default length depends on the device and never exceeds the text', () => {
  const text = { name: 'a.txt', bytes: 74_131 };
  expect(tokensToRead(parse(), text, true)).toBe(2048);
  expect(tokensToRead(parse(), text, false)).toBe(16_384);
  expect(tokensToRead(parse(), { ...text, bytes: 100 }, true)).toBe(100);
  expect(tokensToRead(parse('--tokens', '74131'), text, true)).toBe(74_131);
  expect(() => tokensToRead(parse('--tokens', '74132'), text, true)).toThrow('--tokens 74132 is more than a.txt has: 74131 bytes');
});

let folder = '';
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'heed-demo-'));
  await mkdir(join(folder, 'sub'));
  await writeFile(join(folder, 'old.html'), 'x');
});
afterAll(() => rm(folder, { recursive: true }));

test('a report may be new or replace a file', async () => {
  await expectWritable('--report', join(folder, 'new.html'));
  await expectWritable('--report', join(folder, 'old.html'));
});

test('a report in a missing folder, or in the place of a folder, is refused before the work', async () => {
  await expect(expectWritable('--report', join(folder, 'none/r.html'))).rejects.toThrow(
    /--report .*none\/r\.html cannot be written: there is no folder/,
  );
  await expect(expectWritable('--json', join(folder, 'sub'))).rejects.toThrow(/--json .*sub is a folder; name a file/);
});
