import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream } from '@heed/core';
import { makeMixer } from '../src/model/mixers.js';
import { mqarBatch } from '../src/tasks/mqar.js';
import { statePlot } from '../src/tasks/plot.js';
import { describeRecord, runTask } from '../src/tasks/record.js';
import { taskNamed } from '../src/tasks/registry.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('a sequence of MQAR holds its pairs, then each key once, labelled with its value', () => {
  const options = { vocabulary: 100, tokens: 40, pairs: 5 };
  const batch = mqarBatch(options, { seed: 3, split: 'train' }, 0, 50);
  for (let row = 0; row < 50; row++) {
    const sequence = [...batch.inputs.subarray(row * 40, row * 40 + 40)];
    const pairs = new Map(Array.from({ length: 5 }, (_, i) => [sequence[2 * i] as number, sequence[2 * i + 1] as number]));
    expect(pairs.size).toBe(5);
    expect(new Set(pairs.values()).size).toBe(5);
    for (const [key, value] of pairs) expect(key >= 1 && key < 50 && value >= 50 && value < 100).toBe(true);
    const places = [...batch.positions.subarray(row * 5, row * 5 + 5)].map((at) => at - row * 40);
    expect(new Set(places.map((at) => sequence[at])).size).toBe(5);
    places.forEach((at, i) => {
      expect(at >= 10 && at < 40 && at % 2 === 0).toBe(true);
      expect(pairs.get(sequence[at] as number)).toBe(batch.labels[row * 5 + i]);
    });
  }
});

test('early slots are queried more often, and a sequence depends on seed, split and its number alone', () => {
  const options = { vocabulary: 200, tokens: 64, pairs: 4 };
  const many = mqarBatch(options, { seed: 1, split: 'train' }, 0, 400);
  const slots = Array.from(many.positions, (at) => ((at % 64) - 8) / 2);
  expect(slots.filter((slot) => slot < 7).length).toBeGreaterThan(2 * slots.filter((slot) => slot >= 21).length);
  const later = mqarBatch(options, { seed: 1, split: 'train' }, 7, 1);
  expect([...later.inputs]).toEqual([...many.inputs.subarray(7 * 64, 8 * 64)]);
  expect([...mqarBatch(options, { seed: 1, split: 'test' }, 7, 1).inputs]).not.toEqual([...later.inputs]);
  expect(() => mqarBatch({ ...options, pairs: 17 }, { seed: 1, split: 'train' }, 0, 1)).toThrow(/17 pairs in 64 tokens/);
});

test('a run gives a record with every cell, and training lowers the loss', async () => {
  const losses: number[] = [];
  const record = await runTask(taskNamed('mqar'), {
    device,
    mixers: ['linear'],
    seeds: [1],
    settings: { vocabulary: 32, tokens: 8, pairs: 1, examples: 256, epochs: 12, batch: 64, width: 16, testPairs: '1,2', testExamples: 64 },
    report: (line) => losses.push(Number(/loss ([\d.]+)/.exec(line)?.[1])),
  });
  expect(losses.at(-1)).toBeLessThan((losses[0] as number) * 0.8);
  expect(record.results.map(({ cell }) => cell)).toEqual(['pairs 1', 'pairs 2']);
  // keys x (values and the normaliser) of one head
  expect(record.results[0]?.extra?.['stateBytes']).toBe(16 * 17 * 4);
  expect(record.summary[0]).toMatchObject({ mixer: 'linear', seeds: 1, chance: 1 / 16 });
  expect(describeRecord(record)).toMatch(/linear +pairs 1 +accuracy/);
  expect(statePlot(record.results, 'pairs 2')).toMatch(/<svg[\s\S]*linear width 16: [\d.]+ at 1,088 bytes/);
  expect(() => statePlot(record.results, 'pairs 9')).toThrow(/no result of cell "pairs 9"/);
});

test('a mixer is named with options, and what it does not have is refused', () => {
  expect(makeMixer('softmax:rope=false', { dim: 8, heads: 2, layer: 0, layers: 1 }).name).toBe('softmax');
  expect(() => makeMixer('unknown', { dim: 8, heads: 2, layer: 0, layers: 1 })).toThrow(/there is no mixer "unknown"/);
  expect(() => makeMixer('linear:headDim', { dim: 8, heads: 2, layer: 0, layers: 1 })).toThrow(/"headDim" is no key=value/);
  expect(() => taskNamed('walk')).toThrow(/there is no task "walk"; there are mqar/);
});

test('the linear baseline decodes what its parallel form gives', async () => {
  const mixer = makeMixer('linear', { dim: 8, heads: 2, layer: 0, layers: 1 });
  const params = mixer.init(device, new RandomStream(1));
  const { Carry, slice, tensor } = await import('@heed/core');
  const { tensorsIn } = await import('@heed/core/~internal');
  const context = { layer: 0, layers: 1, training: false, carry: new Carry() };
  const x = tensor(device, new RandomStream(2).normal(5 * 8), [1, 5, 8]);
  const whole = mixer.apply(params, x, context).out;
  const expected = await whole.read();
  const state = mixer.start(device, { batch: 1, capacity: 5, dtype: 'f32' });
  for (let t = 0; t < 5; t++) {
    const token = slice(x, 1, t, t + 1);
    const got = mixer.step(params, token, state, context);
    const values = await got.read();
    for (let i = 0; i < 8; i++) expect(values[i]).toBeCloseTo(expected[t * 8 + i] as number, 5);
    got.dispose();
    token.dispose();
  }
  state.dispose();
  for (const t of tensorsIn([params, x, whole])) t.dispose();
});

test('gradient variance: one record a mixer, seeded, with the published figure beside it', async () => {
  const settings = { width: 8, layers: 1, tokens: 16, batch: 2, steps: 6, warmup: 2 };
  const run = (mixers: string[]) => runTask(taskNamed('gradient-variance'), { device, mixers, seeds: [1], settings, report: () => {} });
  const record = await run(['transnormer:kind=norm', 'scaled']);
  expect(record.summary[0]).toMatchObject({ mixer: 'transnormer:kind=norm', metric: 'relative std', published: 0.2 });
  for (const { value } of record.results) expect(value).toBeGreaterThan(0);
  const again = await run(['transnormer:kind=norm']);
  expect(again.results[0]?.value).toBeCloseTo(record.results[0]?.value as number, 5);
});
