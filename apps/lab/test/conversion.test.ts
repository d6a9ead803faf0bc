import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, tensor } from '@heed/core';
import { namedTensors } from '@heed/core/optim';
import { parseConfig } from '../src/config.js';
import { convertToLawcat, studentConfig } from '../src/distill/index.js';
import { buildModel } from '../src/model/mixers.js';
import type { LoadedModel } from '../src/model/shipped.js';
import { memory } from '../src/tasks/memory-task.js';
import { passkeyBatch, passkeyTokens } from '../src/tasks/passkey.js';
import { passkey } from '../src/tasks/passkey-task.js';
import { runTask } from '../src/tasks/record.js';
import type { Corpus } from '../src/text/corpus.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const training = {
  steps: 1,
  batch: 1,
  context: 16,
  learningRate: 0.001,
  warmup: 0,
  schedule: 'cosine',
  finalShare: 0,
  weightDecay: 0,
  clip: 1,
  seed: 1,
  precision: 'f32',
  evaluateEvery: 1,
  evaluateTokens: 16,
  checkpointEvery: 1,
};
const config = parseConfig(
  JSON.stringify({
    name: 'tiny',
    model: { mixer: 'softmax', dim: 16, layers: 2, heads: 2, mlp: 16, ropeBase: 10_000 },
    training,
    corpus: { train: 'none', book: 'none' },
  }),
  'test',
);
const text = Buffer.from('it is a mild, mild wind, and a mild looking sky. '.repeat(40));
const corpus: Corpus = { bytes: text, parts: [{ name: 'text', start: 0, end: text.length }] };

function teacher(): LoadedModel {
  const model = buildModel(config);
  return { config, model, params: model.init(device, new RandomStream(4)) };
}

test('conversion lowers both losses, leaves the teacher as it was and gives a model of mixer lawcat', async () => {
  for (const rank of [4, 0]) {
    const given = teacher();
    const weight = given.params.blocks[1] as unknown as { mixer: { qkv: { weight: { read(): Promise<ArrayLike<number>> } } } };
    const before = Array.from(await weight.mixer.qkv.weight.read());
    const stage = { steps: 12, batch: 4, context: 32, warmup: 0 };
    const made = await convertToLawcat(
      given,
      { transfer: { ...stage, learningRate: 0.02 }, tuning: { ...stage, learningRate: 0.01, rank } },
      { device, corpus, seed: 1 },
    );
    expect(Array.from(await weight.mixer.qkv.weight.read())).toEqual(before);
    expect(made.config.model).toMatchObject({ mixer: 'lawcat', dim: 16, heads: 2 });
    expect(made.transferLosses.at(-1)).toBeLessThan(made.transferLosses[0] as number);
    expect(made.tuningBits.at(-1)).toBeLessThan(made.tuningBits[0] as number);
    // the parameters fit a model built of the configuration alone, so that a weights file loads
    const fresh = buildModel(made.config).init(device, new RandomStream(1));
    expect([...namedTensors(made.params).keys()].sort()).toEqual([...namedTensors(fresh).keys()].sort());
    const tokens = tensor(device, Uint32Array.from(text.subarray(0, 8)), [1, 8]);
    const logits = made.model.apply(made.params, tokens);
    expect((await logits.read()).every(Number.isFinite)).toBe(true);
    for (const t of [logits, tokens, ...[given.params, made.params, fresh].flatMap((p) => [...namedTensors(p).values()])]) t.dispose();
  }
});

test('conversion refuses another teacher', () => {
  expect(() => studentConfig({ ...config, model: { ...config.model, mixer: 'lightning2' } })).toThrow(/starts from a softmax model/);
});

test('a passkey sequence holds its key once, asks for it last and labels its digits', () => {
  const batch = passkeyBatch(40, { seed: 1, split: 'train' }, 0, 30);
  const places = new Set<number>();
  for (let row = 0; row < 30; row++) {
    const sequence = [...batch.inputs.subarray(row * 40, row * 40 + 40)];
    const at = sequence.indexOf(passkeyTokens.key);
    places.add(at);
    const code = sequence.slice(at + 1, at + 6);
    expect(sequence[at + 6]).toBe(passkeyTokens.end);
    expect(code).toEqual([...batch.labels.subarray(row * 5, row * 5 + 5)]);
    expect(sequence.slice(35)).toEqual([passkeyTokens.ask, ...code.slice(0, 4)]);
    expect([...batch.positions.subarray(row * 5, row * 5 + 5)]).toEqual([35, 36, 37, 38, 39].map((p) => row * 40 + p));
  }
  expect(places.size).toBeGreaterThan(8);
  const first = passkeyBatch(40, { seed: 1, split: 'train' }, 0, 1, 0);
  expect([...first.inputs].indexOf(passkeyTokens.key)).toBe(1);
  expect(() => passkeyBatch(12, { seed: 1, split: 'train' }, 0, 1)).toThrow(/12 tokens; the key and the question take 13/);
});

test('a deep memory stores more pairs than a matrix of the same width, which stores more than additive writes', async () => {
  const record = await runTask(memory, {
    device,
    mixers: ['linear', 'titans:depth=1', 'titans'],
    seeds: [1],
    settings: { width: 4, pairs: '8', passes: 12, linearRate: 1, deepRate: 1, expansion: 8 },
    report: () => undefined,
  });
  const [linear, delta, deep] = record.results.map(({ value }) => value) as [number, number, number];
  expect(deep).toBeLessThan(delta);
  expect(delta).toBeLessThan(linear);
  await expect(runTask(memory, { device, mixers: ['softmax'], seeds: [1], settings: {}, report: () => undefined })).rejects.toThrow(
    /"softmax" is no operator of this task/,
  );
});

test('the passkey task gives a record with every length', async () => {
  const losses: number[] = [];
  const record = await runTask(passkey, {
    device,
    mixers: ['lawcat'],
    seeds: [1],
    settings: {
      tokens: 20,
      shortest: 20,
      steps: 16,
      batch: 16,
      width: 16,
      heads: 2,
      learningRate: 0.01,
      warmup: 0,
      testTokens: '20,40',
      testExamples: 8,
    },
    report: (line) => losses.push(Number(/loss ([\d.]+)/.exec(line)?.[1])),
  });
  expect(record.results.map(({ cell }) => cell)).toEqual(['tokens 20', 'tokens 40']);
  expect(losses.at(-1)).toBeLessThan(losses[0] as number);
});
