import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { referenceAttention, referenceAttentionGradients } from '../src/attention/reference.js';
import type { ReferenceAttentionOptions } from '../src/attention/reference.js';
import { fileSource } from '../src/io/bytes.js';
import { RandomStream } from '../src/random/stream.js';
import { f64, randomArray } from '../src/float64.js';
import type { F64Array } from '../src/float64.js';
import { compare, expectClose } from '../src/testing/compare.js';
import { readGoldenCase } from '../src/testing/golden-case.js';
import type { GoldenCase } from '../src/testing/golden-case.js';

interface EngineParams {
  mask: 'causal' | 'sliding-window-causal' | 'document' | 'document-causal' | 'length';
  scale: number | null;
  queryOffset?: number;
  softcap?: number;
  alibiSlopes?: number[];
  windowLeft?: number;
  sinkTokens?: number;
}

function engineOptions({ params, inputs }: GoldenCase): ReferenceAttentionOptions {
  const { mask, scale, queryOffset, softcap, alibiSlopes, windowLeft = 0, sinkTokens = 0 } = params as unknown as EngineParams;
  const ids = inputs['documentIds']?.values ?? new Float64Array();
  const sameDocument = (q: number, kv: number): boolean => ids[q] !== -1 && ids[q] === ids[kv];
  const masks: Record<EngineParams['mask'], (q: number, kv: number) => boolean> = {
    causal: (q, kv) => kv <= q,
    'sliding-window-causal': (q, kv) => kv <= q && (q - kv <= windowLeft || kv < sinkTokens),
    document: sameDocument,
    'document-causal': (q, kv) => kv <= q && sameDocument(q, kv),
    length: () => true,
  };
  return {
    scale: scale ?? undefined,
    queryOffset,
    softcap,
    alibiSlopes,
    sinks: inputs['sinks'],
    lengths: inputs['lengths']?.values,
    mask: (_b, _h, q, kv) => masks[mask](q, kv),
  };
}

for (const name of ['alibi-softcap-gqa', 'document-dead-rows', 'sinks-window']) {
  test(`the engine's golden case ${name} comes out, forward and backward`, async () => {
    const golden = await readGoldenCase(
      name,
      await fileSource(fileURLToPath(new URL(`cases/engine--${name}.safetensors`, import.meta.url))),
    );
    const { query, key, value } = golden.inputs as Record<string, F64Array>;
    if (!query || !key || !value) throw new Error('the case lacks q, k or v');
    const options = engineOptions(golden);
    const { out, lse } = referenceAttention(query, key, value, options);
    const grads = referenceAttentionGradients(query, key, value, { out: golden.cotangents['out'], lse: golden.cotangents['lse'] }, options);
    // Cases store 0 for the lse of a row that sees nothing.
    const stored = f64(
      lse.shape,
      lse.values.map((x) => (x === -Infinity ? 0 : x)),
    );
    const live = f64(
      lse.shape,
      lse.values.map((x) => (x === -Infinity ? 0 : 1)),
    );
    const got: Record<string, F64Array> = { out, lse: stored, rowIsLive: live };
    // The files hold f32 values of a float64 reference.
    const f32Rounding = { atol: 1e-6, rtol: 1e-6 };
    for (const [output, expected] of Object.entries(golden.outputs)) expectClose(output, got[output] as F64Array, expected, f32Rounding);
    const byInput: Record<string, F64Array | undefined> = { query: grads.q, key: grads.k, value: grads.v, sinks: grads.sinks };
    for (const [input, expected] of Object.entries(golden.gradients))
      expectClose(`grad_${input}`, byInput[input] as F64Array, expected, f32Rounding);
    expect(Object.keys(golden.gradients).length).toBeGreaterThanOrEqual(3);
  });
}

const tiny = (): Record<'q' | 'k' | 'v' | 'sinks' | 'keyBias' | 'dOut' | 'dLse', F64Array> => {
  const random = new RandomStream(21);
  return {
    q: randomArray(random, [2, 3, 4, 3]),
    k: randomArray(random, [2, 5, 2, 3]),
    v: randomArray(random, [2, 5, 2, 2]),
    sinks: randomArray(random, [4]),
    keyBias: randomArray(random, [2, 2, 5]),
    dOut: randomArray(random, [2, 3, 4, 2]),
    dLse: randomArray(random, [2, 3, 4]),
  };
};

test('gradients are those of finite differences, with every option on', () => {
  const { q, k, v, sinks, keyBias, dOut, dLse } = tiny();
  const options: ReferenceAttentionOptions = {
    sinks,
    keyBias,
    softcap: 2,
    alibiSlopes: [0.5, 0.25, 0.1, 0.05],
    lengths: [5, 4],
    queryOffset: 1,
    mask: (_b, h, i, j) => j <= i || h === 3,
    scoreMod: { value: (s, _b, h) => s + 0.1 * (h + 1) * s * s, derivative: (s, _b, h) => 1 + 0.2 * (h + 1) * s },
  };
  const loss = (): number => {
    const { out, lse } = referenceAttention(q, k, v, options);
    const dot = (a: F64Array, b: F64Array): number => a.values.reduce((sum, x, i) => sum + x * (b.values[i] as number), 0);
    return dot(out, dOut) + dot(lse, dLse);
  };
  const grads = referenceAttentionGradients(q, k, v, { out: dOut, lse: dLse }, options);
  for (const [name, input] of Object.entries({ q, k, v, sinks, keyBias })) {
    const numeric = f64(input.shape);
    for (let i = 0; i < input.values.length; i++) {
      const kept = input.values[i] as number;
      input.values[i] = kept + 1e-5;
      const above = loss();
      input.values[i] = kept - 1e-5;
      numeric.values[i] = (above - loss()) / 2e-5;
      input.values[i] = kept;
    }
    expectClose(name, grads[name as 'q'], numeric, { atol: 1e-8, rtol: 1e-7 });
  }
});

test('column sums add up to the rows that see something, less what a sink takes', () => {
  const { q, k, v, sinks } = tiny();
  const options: ReferenceAttentionOptions = { mask: (_b, _h, i, j) => j < i };
  const total = (o: ReferenceAttentionOptions): number => referenceAttention(q, k, v, o).columnSums.values.reduce((a, b) => a + b, 0);
  expect(total(options)).toBeCloseTo(2 * 2 * 4, 10);
  expect(total({ ...options, sinks })).toBeLessThan(2 * 2 * 4);
});

test('rows that see nothing are zero and their lse is minus infinity; a sink alone gives its logit', () => {
  const { q, k, v, sinks, dOut, dLse } = tiny();
  const nothing = { mask: () => false };
  const { out, lse } = referenceAttention(q, k, v, nothing);
  expect(out.values.every((x) => x === 0)).toBe(true);
  expect(lse.values.every((x) => x === -Infinity)).toBe(true);
  const grads = referenceAttentionGradients(q, k, v, { out: dOut, lse: dLse }, nothing);
  expect([...grads.q.values, ...grads.k.values, ...grads.v.values].every((x) => x === 0)).toBe(true);
  const withSink = referenceAttention(q, k, v, { ...nothing, sinks });
  expect(withSink.lse.values.slice(0, 4)).toEqual(sinks.values);
});

test('a key bias of ln 2 counts a key twice, large logits stay finite', () => {
  const { q, k, v } = tiny();
  const keyBias = f64([5], [0, 0, 0, 0, Math.log(2)]);
  const twice = (x: F64Array): F64Array => {
    const [batch, keys, heads, dim] = x.shape as [number, number, number, number];
    const entry = keys * heads * dim;
    const parts = Array.from({ length: batch }, (_, b) => [
      ...x.values.slice(b * entry, (b + 1) * entry),
      ...x.values.slice((b + 1) * entry - heads * dim, (b + 1) * entry),
    ]);
    return f64([batch, keys + 1, heads, dim], parts.flat());
  };
  expectClose('out', referenceAttention(q, k, v, { keyBias }).out, referenceAttention(q, twice(k), twice(v)).out, { atol: 1e-12, rtol: 0 });
  const { out } = referenceAttention(q, k, v, { scale: 1e4 });
  expect(compare('out', out, out, 'error', { atol: 0, rtol: 0 }).pass).toBe(true);
});
