import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, scope, type Tensor, tensor } from '../src/index.js';
import {
  attentionWithLse,
  byHead,
  causal,
  causalDocument,
  document,
  type Mask,
  prefixLm,
  type ScoreMod,
  scoreMod,
  slidingWindow,
} from '../src/attention/index.js';
import { referenceAttention } from '../src/attention/reference.js';
import { capture, uniform, vjp } from '../src/internal.js';
import { RandomStream } from '../src/random/stream.js';
import { expectClose, f64, type F64Array, randomArray, toFloat32 } from '../src/testing/index.js';
import { type AttentionCase, checkAttention } from './attention-cases.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const causalPair = (_b: number, _h: number, q: number, kv: number): boolean => kv <= q;
const hostMask =
  (mask: Mask) =>
  (b: number, h: number, q: number, kv: number): boolean =>
    mask.visible(b, h, q, kv);
const integers = (values: number[]): Tensor => tensor(device, Int32Array.from(values));
const kept: Tensor[] = [];
const keep = (t: Tensor): Tensor => {
  kept.push(t);
  return t;
};
const release = (): void => {
  for (const t of kept.splice(0)) t.dispose();
};

describe('options, forward and backward', () => {
  const cases: Record<string, AttentionCase> = {
    'learned sinks, key biases a KV head, softcap and ALiBi together': {
      shape: { B: 2, Tq: 9, Tk: 21, H: 4, Hkv: 2 },
      options: (make, r) => ({
        causal: true,
        sinks: make(randomArray(r, [4])),
        keyBias: make(randomArray(r, [2, 2, 21])),
        softcap: 3,
        alibi: [0.5, 0.25, 0.125, 0.0625],
      }),
      reference: (r) => ({
        mask: causalPair,
        sinks: randomArray(r, [4]),
        keyBias: randomArray(r, [2, 2, 21]),
        softcap: 3,
        alibiSlopes: [0.5, 0.25, 0.125, 0.0625],
      }),
    },
    'one key bias for all': {
      shape: { B: 2, Tq: 17, H: 2 },
      options: (make, r) => ({ keyBias: make(randomArray(r, [17])) }),
      reference: (r) => ({ keyBias: randomArray(r, [17]) }),
    },
    'key biases a query head, shared by the batch': {
      shape: { B: 2, Tq: 17, H: 2, Hkv: 1 },
      options: (make, r) => ({ keyBias: make(randomArray(r, [1, 2, 17])) }),
      reference: (r) => ({ keyBias: randomArray(r, [1, 2, 17]) }),
    },
    'lengths, one of them zero: those rows see nothing': {
      shape: { B: 3, Tq: 18, H: 2 },
      options: () => ({ lengths: keep(integers([18, 0, 5])) }),
      reference: () => ({ lengths: [18, 0, 5] }),
    },
    'only the logsumexp is differentiated': {
      shape: { Tq: 17, H: 2 },
      cotangents: 'lse',
      options: () => ({ causal: true }),
      reference: () => ({ mask: causalPair }),
    },
    'large logits': {
      shape: { Tq: 17, H: 1 },
      deviation: 30,
      gradientTolerance: { atol: 2e-2, rtol: 2e-3 },
      tolerance: { atol: 1e-3, rtol: 1e-3 },
    },
  };
  for (const [name, c] of Object.entries(cases)) test(name, () => checkAttention(device, c).finally(release));

  test('query offsets that differ by batch entry stand the rows where they say', async () => {
    await checkAttention(device, {
      shape: { B: 2, Tq: 3, Tk: 20, H: 1 },
      cotangents: 'out',
      options: () => ({ causal: true, queryOffset: keep(integers([4, 11])) }),
      reference: () => ({ queryOffset: 0, mask: (b, _h, q, kv) => kv <= q + [4, 11][b]! }),
    }).finally(release);
  });
});

describe('masks by their runs, forward and backward', () => {
  const ids = Int32Array.from({ length: 40 }, (_, i) => (i > 36 ? -1 : Math.floor(i / 11)));
  const masks: Record<string, Mask> = {
    'documents with padding': document(ids),
    'causal documents': causalDocument(ids),
    'a prefix that all see': prefixLm(7),
    'heads with masks of their own': byHead([0, 1, 1, 0], [causal(), slidingWindow({ window: 5, causal: true })]),
  };
  for (const [name, mask] of Object.entries(masks)) {
    test(name, () =>
      checkAttention(device, {
        shape: { Tq: 40, H: 4, Hkv: 2, D: 8 },
        options: () => ({ mask }),
        reference: () => ({ mask: hostMask(mask) }),
      }),
    );
  }

  test('a mask with causal and lengths on top', () =>
    checkAttention(device, {
      shape: { B: 2, Tq: 40, H: 1, D: 8 },
      cotangents: 'out',
      options: () => ({ mask: document(ids), causal: true, lengths: keep(integers([40, 13])) }),
      reference: () => ({ mask: (b, h, q, kv) => kv <= q && document(ids).visible(b, h, q, kv), lengths: [40, 13] }),
    }).finally(release));

  test('a mask that is a band in disguise uses no list', async () => {
    using q = tensor(device, new Float32Array(32 * 8), [1, 32, 1, 8]);
    const stop = device.trace();
    scope(() => void attentionWithLse(q, q, q, { mask: causal() }));
    stop();
    const withList = [...device.pipelines.values()].filter((p) => p.key.includes('arena=true') && p.key.includes('mask=|'));
    expect(withList).toEqual([]);
    await device.idle();
  });
});

describe('score functions', () => {
  const table = capture('table', 'f32', { differentiable: true });
  /** Relative biases of a table [heads, 2 reach + 1], and a factor on the score. */
  const relative = (values: Tensor, reach: number): ScoreMod =>
    scoreMod(
      (s, { h, q, kv }) =>
        s.mul(uniform('factor', 'f32')).add(
          table.at(
            h
              .mul(2 * reach + 1)
              .add(kv.sub(q))
              .add(reach),
          ),
        ),
      { captures: { table: values }, uniforms: { factor: 0.7 } },
    );

  test('a captured table gets the gradient that finite differences give, the same in every run', async () => {
    const random = new RandomStream(5);
    const [T, H, D, reach] = [18, 2, 8, 17];
    const [q, k, v, cotangent] = [1, 2, 3, 4].map(() => randomArray(random, [1, T, H, D])) as [F64Array, F64Array, F64Array, F64Array];
    const values = randomArray(random, [H, 2 * reach + 1]);
    const loss = (biases: F64Array): number => {
      const bias = (h: number, i: number, j: number): number => biases.values[h * (2 * reach + 1) + j - i + reach] as number;
      const scoreModTwin = {
        value: (s: number, _b: number, h: number, i: number, j: number) => s * 0.7 + bias(h, i, j),
        derivative: () => 0.7,
      };
      const { out } = referenceAttention(q, k, v, { scoreMod: scoreModTwin });
      return out.values.reduce((sum, x, n) => sum + x * (cotangent.values[n] as number), 0);
    };
    const expected = f64(
      values.shape,
      Array.from(values.values, (_, n) => {
        const moved = (by: number): F64Array =>
          f64(
            values.shape,
            values.values.map((x, m) => (m === n ? x + by : x)),
          );
        return (loss(moved(1e-5)) - loss(moved(-1e-5))) / 2e-5;
      }),
    );
    const inputs = [q, k, v, cotangent, values].map((a) => tensor(device, toFloat32(a), a.shape)) as [
      Tensor,
      Tensor,
      Tensor,
      Tensor,
      Tensor,
    ];
    const gradients: Float32Array[] = [];
    for (let run = 0; run < 2; run++) {
      const { outputs, grads } = vjp(
        () => attentionWithLse(inputs[0], inputs[1], inputs[2], { scoreMod: relative(inputs[4], reach) }).out,
        [inputs[4]],
        [inputs[3]],
      );
      gradients.push((await (grads[0] as Tensor).read()) as Float32Array);
      for (const t of [...outputs, ...grads]) t.dispose();
    }
    expectClose('gradient of the table', { shape: values.shape, values: gradients[0] as Float32Array }, expected, {
      atol: 2e-5,
      rtol: 2e-4,
    });
    expect(gradients[1]).toEqual(gradients[0]);
    for (const t of inputs) t.dispose();
  });

  test('the factor of a score function reaches the gradients of q and k', async () => {
    using values = tensor(device, new Float32Array(2 * 35), [2, 35]);
    await checkAttention(device, {
      shape: { Tq: 18, H: 2, D: 8 },
      options: () => ({ scoreMod: relative(values, 17) }),
      reference: () => ({ scoreMod: { value: (s) => 0.7 * s, derivative: () => 0.7 } }),
    });
  });
});
