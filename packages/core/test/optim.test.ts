import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Tensor } from '../src/index.js';
import { type Device, openDevice, tensor } from '../src/index.js';
import { adamW, cosineSchedule, lion, type Optimizer, sgd, WeightAverage } from '../src/optim/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const gradients = [
  [0.1, -0.2, 0.3],
  [0.4, 0, -0.1],
  [-0.3, 0.2, 0.1],
];

// p0 = [1, -2, 0.5], learning rate 0.1; float64 values of the published update rules after 1, 2, 3 steps
test.each<[string, (p: { p: Tensor }) => Optimizer, number[][]]>([
  [
    'AdamW',
    (p) => adamW(p, { betas: [0.9, 0.999], weightDecay: 0.01, groups: [{ match: /p/, weightDecay: 0.01 }] }),
    [
      [0.89900001, -1.898000005, 0.399500003],
      [0.809663364, -1.829096184, 0.359078648],
      [0.79118287, -1.835853859, 0.309947237],
    ],
  ],
  [
    'SGD',
    (p) => sgd(p, { momentum: 0.9, groups: [{ match: /p/, weightDecay: 0.01 }] }),
    [
      [0.989, -1.978, 0.4695],
      [0.938111, -1.956222, 0.4515805],
      [0.921372789, -1.954665578, 0.42500137],
    ],
  ],
  [
    'SGD with Nesterov momentum',
    (p) => sgd(p, { momentum: 0.9, nesterov: true }),
    [
      [0.981, -1.962, 0.443],
      [0.8969, -1.9458, 0.4377],
      [0.91421, -1.96922, 0.40493],
    ],
  ],
  [
    'Lion',
    (p) => lion(p, { groups: [{ match: /p/, weightDecay: 0.01 }] }),
    [
      [0.899, -1.898, 0.3995],
      [0.798101, -1.796102, 0.4991005],
      [0.897302899, -1.894305898, 0.3986014],
    ],
  ],
])('%s takes the steps of its rule', async (_, make, expected) => {
  using p = tensor(device, [1, -2, 0.5]);
  const optimizer = make({ p });
  for (const [step, values] of gradients.entries()) {
    using g = tensor(device, values);
    optimizer.step({ p: g }, { learningRate: 0.1 });
    (await p.read()).forEach((v, i) => expect(v).toBeCloseTo(expected[step]?.[i] ?? 0, 5));
  }
  optimizer.dispose();
});

test('gradients are clipped by their global norm', async () => {
  using a = tensor(device, [0, 0]);
  using b = tensor(device, [0]);
  const optimizer = sgd({ a, b }, { clip: 1 });
  using ga = tensor(device, [3, 4]);
  using gb = tensor(device, [12]);
  optimizer.step({ a: ga, b: gb }, { learningRate: 1 });
  const [x, y] = [await a.read(), await b.read()];
  expect([-(x[0] ?? 0), -(x[1] ?? 0), -(y[0] ?? 0)].map((v) => Math.round(v * 1e6))).toEqual([230769, 307692, 923077]);
  expect((await optimizer.statistics()).gradientNorm).toBeCloseTo(13, 5);
  optimizer.dispose();
});

test('a gradient that is not finite skips the step and halves a dynamic loss scale', async () => {
  using p = tensor(device, [1, 2]);
  const optimizer = adamW({ p }, { lossScale: 'dynamic' });
  using bad = tensor(device, new Float32Array([1, Infinity]));
  optimizer.step({ p: bad }, { learningRate: 0.1 });
  expect([...(await p.read())]).toEqual([1, 2]);
  expect(await optimizer.statistics()).toMatchObject({ lossScale: 2 ** 15, skipped: 1 });
  using good = tensor(device, new Float32Array([2 ** 15, 2 ** 15]));
  optimizer.step({ p: good }, { learningRate: 0.1 });
  expect((await optimizer.statistics()).gradientNorm).toBeCloseTo(Math.SQRT2, 5);
  expect((await p.read())[0]).toBeLessThan(1);
  optimizer.dispose();
});

test('a group can climb, and an average follows its parameters', async () => {
  using p = tensor(device, [0]);
  const optimizer = sgd({ lambda: p }, { groups: [{ match: /lambda/, ascent: true }] });
  const average = new WeightAverage({ lambda: p }, 0.75);
  using g = tensor(device, [2]);
  optimizer.step({ lambda: g }, { learningRate: 0.5 });
  average.update();
  expect((await p.read())[0]).toBe(1);
  expect((await (average.tensors.get('lambda') as Tensor).read())[0]).toBe(0.25);
  average.dispose();
  optimizer.dispose();
});

test('parameters and gradients that do not fit are refused by name', () => {
  using p = tensor(device, [1, 2]);
  using half = tensor(device, [1], [1], { dtype: 'f16' });
  expect(() => adamW({ w: half })).toThrow(/"w" is \[1\] f16.*f32/);
  const optimizer = sgd({ w: p });
  using g = tensor(device, [1]);
  expect(() => optimizer.step({ w: g }, { learningRate: 1 })).toThrow(/"w" is \[2\], its gradient \[1\]/);
  optimizer.dispose();
});

test('the cosine schedule warms up, ends at a tenth and is a function of the step', () => {
  const rate = cosineSchedule({ peak: 1, warmup: 10, steps: 110 });
  expect([rate(0), rate(9), rate(10), rate(60), rate(110), rate(500)].map((v) => Math.round(v * 1e6) / 1e6)).toEqual([
    0.1, 1, 1, 0.55, 0.1, 0.1,
  ]);
});
