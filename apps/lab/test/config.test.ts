import { readdirSync, readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { headDimension, type LabConfig, MIXERS, parseConfig, readConfig, type TrainingConfig } from '../src/config.js';
import { LAB } from '../src/paths.js';

const folder = `${LAB}configs/`;
const softmax = JSON.parse(readFileSync(`${folder}softmax.json`, 'utf8')) as Record<string, Record<string, unknown>>;

/** The softmax configuration with one field changed; undefined removes it. */
function changed(section: string, field: string, value: unknown): string {
  return JSON.stringify({ ...softmax, [section]: { ...softmax[section], [field]: value } });
}

test('each configuration is of the mixer that it is named after, all with the same budget', async () => {
  const files = readdirSync(folder).map((file) => file.replace(/\.json$/, ''));
  const configs = await Promise.all(files.map((name) => readConfig(`${folder}${name}.json`)));
  expect(configs.map(({ name, model }) => [name, model.mixer])).toEqual(files.map((name) => [name, name]));
  // a mixer whose cost grows with the square of the context reads as many tokens in shorter sequences
  const budget = ({ batch, context, ...rest }: TrainingConfig): unknown => ({ tokens: batch * context, ...rest });
  const [first] = configs as [LabConfig, ...LabConfig[]];
  for (const { training, corpus } of configs) {
    expect(budget(training)).toEqual(budget(first.training));
    expect(corpus).toEqual(first.corpus);
  }
  // a baseline of the tasks, and variants that an option of their mixer names
  const without = MIXERS.filter((mixer) => !files.includes(mixer));
  expect(without).toEqual(['linear', 'titans-mag', 'titans-mal', 'titans-mac']);
});

test('the head dimension is dim / heads unless it is given', () => {
  expect(headDimension(parseConfig(JSON.stringify(softmax), 'x').model)).toBe(64);
  expect(headDimension(parseConfig(changed('model', 'headDim', 32), 'x').model)).toBe(32);
});

test.each([
  ['training', 'batch', 0, 'a.json: training.batch is 0: Too small: expected number to be >=1'],
  ['training', 'steps', undefined, 'a.json: training.steps is missing: Invalid input: expected number, received undefined'],
  ['training', 'precision', 'bf16', 'a.json: training.precision is "bf16": Invalid option: expected one of "f16"|"f32"'],
  ['training', 'warmup', 2000, 'a.json: training.warmup: 2000 steps of warm-up leave none of 2000 steps'],
  [
    'model',
    'mixer',
    'mamba',
    `a.json: model.mixer is "mamba": Invalid option: expected one of ${MIXERS.map((mixer) => `"${mixer}"`).join('|')}`,
  ],
  ['model', 'heads', 3, 'a.json: model.heads: 3 heads do not divide dim 256; choose a divisor or give headDim'],
  ['model', 'kvHeads', 3, 'a.json: model.kvHeads: 3 must divide the 4 heads'],
  ['model', 'window', 64, 'a.json: model.window: the softmax mixer has no window; remove it'],
  ['model', 'depth', 4, 'a.json: model: Unrecognized key: "depth"'],
  ['corpus', 'shares', { a: 0.7, b: 0.6 }, 'a.json: corpus.shares: they sum to 1.2999999999999998; at most 1'],
])('a wrong %s.%s (%s) is named with what was expected', (section, field, value, message) => {
  expect(() => parseConfig(changed(section, field, value), 'a.json')).toThrow(new Error(message));
});

test('the neighborhood mixer needs a window, the others without rotary positions refuse ropeBase', () => {
  const { ropeBase: _, ...model } = softmax['model'] ?? {};
  const withMixer = (mixer: string, more: object): string => JSON.stringify({ ...softmax, model: { ...model, mixer, ...more } });
  expect(() => parseConfig(withMixer('neighborhood', {}), 'a.json')).toThrow('a.json: model.window: the neighborhood mixer needs it');
  expect(() => parseConfig(withMixer('zeta', { ropeBase: 500 }), 'a.json')).toThrow(
    'model.ropeBase: the zeta mixer has no rotary positions; remove it',
  );
});

test('every wrong field gets a line', () => {
  const text = JSON.stringify({ ...softmax, name: 'A B', training: { ...softmax['training'], batch: 1.5, clip: -1 } });
  expect(() => parseConfig(text, 'a.json')).toThrow(/a\.json: name .*\n.*training\.batch is 1\.5.*\n.*training\.clip is -1/);
});

test('a file that is no JSON is named', () => {
  expect(() => parseConfig('{', 'a.json')).toThrow(/^a\.json: not JSON: /);
});
