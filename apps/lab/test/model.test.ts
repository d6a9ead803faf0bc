import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, tensor } from '@heed/core';
import { namedTensors } from '@heed/core/optim';
import { type LabConfig, type MixerName, MIXERS, parseConfig } from '../src/config.js';
import { buildModel, disposeState, Reader, sample } from '../src/model/index.js';
import { evaluate } from '../src/training/evaluate.js';
import { Trainer } from '../src/training/trainer.js';

function tiny(mixer: MixerName): LabConfig {
  const options: Partial<Record<MixerName, object>> = {
    neighborhood: { window: 9 },
    zeta: { mixerOptions: { topK: 4, window: 8, chunk: 8, localWindow: 8 } },
  };
  const training = {
    steps: 8,
    batch: 2,
    context: 24,
    learningRate: 0.01,
    warmup: 1,
    schedule: 'cosine',
    finalShare: 0.1,
    weightDecay: 0.1,
    clip: 1,
    seed: 3,
  };
  return parseConfig(
    JSON.stringify({
      name: mixer,
      model: { mixer, dim: 32, layers: 1, heads: 2, mlp: 32, ...options[mixer] },
      training: { ...training, precision: 'f32', evaluateEvery: 8, evaluateTokens: 48, checkpointEvery: 8 },
      corpus: { train: 'none', book: 'none' },
    }),
    mixer,
  );
}

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test.each(MIXERS)(
  '%s: reading by pieces gives what the parallel form gives',
  async (mixer) => {
    const model = buildModel(tiny(mixer));
    const params = model.init(device, new RandomStream(5));
    const bytes = Uint8Array.from(new RandomStream(6).integers(50, 256));
    const inputs = tensor(device, Uint32Array.from(bytes), [1, 50]);
    const logits = model.apply(params, inputs);
    const all = await logits.read();
    const reader = new Reader(model, params, device, model.start(device, { batch: 1, capacity: 64 }));
    let at = 0;
    for (const piece of [20, 1, 1, 28]) {
      const next = tensor(device, Uint32Array.from(bytes.subarray(at, at + piece)), [1, piece]);
      const own = model.step(params, next, reader.state);
      (await own.read()).forEach((v, i) => expect(Math.abs(v - (all[at * 256 + i] ?? 0))).toBeLessThan(1e-3));
      own.dispose();
      next.dispose();
      at += piece;
    }
    disposeState(reader.state);
    inputs.dispose();
    logits.dispose();
    for (const t of namedTensors(params).values()) t.dispose();
  },
  240_000,
);

test.each(MIXERS)(
  '%s: a few steps bring the loss of a small text down, the same way twice',
  async (mixer) => {
    const text = new TextEncoder().encode(
      'the sea had jeeringly kept his finite body up, but drowned the infinite of his soul. '.repeat(4),
    );
    const corpus = { bytes: text, parts: [{ name: 'text', start: 0, end: text.length }] };
    const losses: number[][] = [];
    for (let run = 0; run < 2; run++) {
      const trainer = new Trainer(device, buildModel(tiny(mixer)), tiny(mixer), corpus);
      const own: number[] = [];
      for (let step = 0; step < 8; step++) {
        const loss = trainer.next();
        own.push((await loss.read())[0] ?? Number.NaN);
        loss.dispose();
      }
      losses.push(own);
      const { bitsPerByte } = await evaluate(trainer.model, trainer.params, device, text, { context: 24, tokens: 49, batch: 2 });
      expect(bitsPerByte).toBeLessThan((own[0] ?? 0) / Math.LN2);
      trainer.dispose();
    }
    expect(losses[1]).toEqual(losses[0]);
    expect(losses[0]?.at(-1)).toBeLessThan((losses[0]?.[0] ?? 0) - 0.3);
  },
  240_000,
);

test('sampling follows the cumulated probabilities', () => {
  const logits = new Float32Array(256).fill(-50);
  logits[65] = 0;
  logits[66] = Math.log(3);
  expect([0.001, 0.24, 0.26, 0.999].map((u) => sample(logits, 1, u))).toEqual([65, 65, 66, 66]);
});
