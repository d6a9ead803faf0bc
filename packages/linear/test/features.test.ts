import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Capabilities, type Device, openDevice, RandomStream, slice, tensor, type Tensor, zeros } from '@heed/core';
import { tensorsIn, vjp, workgroupBytes } from '@heed/core/~internal';
import { expectErrorRatio, type F64Array, f64 } from '@heed/core/testing';
import { based, basedWithState } from '../src/based/index.js';
import { referenceBased } from '../src/based/reference.js';
import { taylorMap } from '../src/based/taylor-map.js';
import { paddedFeatures } from '../src/scan/features/map.js';
import { featureLayout, featureTile, segmentTokensOf } from '../src/scan/features/tile.js';
import { nalaformer } from '../src/nalaformer/index.js';
import { normAwareMap } from '../src/nalaformer/feature-map.js';
import { referenceNalaformer } from '../src/nalaformer/reference.js';

type Drawn = { x: Tensor; values: F64Array };

// The kernels of feature maps on fragments; what specialises them is fixed, so that few are compiled.
describe('feature maps on fragments', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'matrix' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  const draw = async (name: string, shape: readonly number[], factor = 1): Promise<Drawn> => {
    const size = shape.reduce((product, n) => product * n, 1);
    const x = tensor(
      device,
      new RandomStream(3, name).normal(size).map((value) => value * factor),
      shape,
      { dtype: 'f16' },
    );
    return { x, values: f64(shape, await x.read()) };
  };
  const free = (...trees: unknown[]): void => {
    for (const t of tensorsIn(trees)) t.dispose();
  };
  const three = async (tokens: number, dim: number, factors = [1, 1, 1]): Promise<[Drawn, Drawn, Drawn]> => [
    await draw('q', [1, tokens, 2, dim], factors[0]),
    await draw('k', [1, tokens, 2, dim], factors[1]),
    await draw('v', [1, tokens, 2, 8], factors[2]),
  ];
  const close = async (what: string, got: Tensor, wanted: F64Array, bound = 1.5e-3): Promise<void> =>
    expectErrorRatio(what, { shape: got.shape, values: await got.read() }, wanted, bound);

  test('based goes on from a state as if it had seen the tokens before, and hands out the official sums', async () => {
    const [q, k, v] = await three(75, 16);
    const expected = referenceBased(q.values, k.values, v.values);
    const cut = (x: Tensor, from: number, to: number): Tensor => slice(x, 1, from, to);
    const pieces = (from: number, to: number): [Tensor, Tensor, Tensor] => [cut(q.x, from, to), cut(k.x, from, to), cut(v.x, from, to)];
    const [before, after] = [pieces(0, 30), pieces(30, 75)];
    const first = basedWithState(...before, { chunk: 20 });
    const second = basedWithState(...after, { chunk: 20, initialState: first });
    const tail = f64([1, 45, 2, 8], expected.out.values.slice(30 * 16));
    await close('outputs', second.out, tail);
    await close('kvState', second.kvState, expected.kvState);
    await close('kState', second.kState, expected.kState);
    expect([...device.pipelines.values()].map(({ name }) => name)).toContain('based-outputs');
    free(q.x, k.x, v.x, before, after, first, second);
  });

  test('based keeps its range for large queries, keys and values, and for small ones', async () => {
    for (const factors of [
      [300, 40, 900],
      [0.01, 400, 1e-4],
      [1, 1e-3, 1],
    ]) {
      const [q, k, v] = await three(75, 16, factors);
      const expected = referenceBased(q.values, k.values, v.values);
      const out = based(q.x, k.x, v.x, { chunk: 20 });
      await close(`factors ${factors.join()}`, out, expected.out, 3e-3);
      free(q.x, k.x, v.x, out);
    }
  });

  test('both maps of nalaformer, causal or not, give the definition, and the gradients of the features in memory', async () => {
    const [q, k, v] = await three(40, 16);
    const lengths = tensor(device, Int32Array.of(33));
    for (const map of ['relu', 'cos'] as const)
      for (const causal of [true, false]) {
        const options = { map, causal };
        const out = nalaformer(q.x, k.x, v.x, { ...options, ...(causal && { lengths }) });
        const wanted = referenceNalaformer(q.values, k.values, v.values, { ...options, ...(causal && { lengths: [33] }) });
        await close(JSON.stringify(options), out, wanted, 2e-3);
        free(out);
      }
    expect([...device.pipelines.values()].map(({ name }) => name)).toContain('nalaformer-cosine-outputs');
    const whole = [q, k, v].map(({ values }) => tensor(device, Float32Array.from(values.values), values.shape)) as [Tensor, Tensor, Tensor];
    const half = vjp(() => nalaformer(q.x, k.x, v.x, { causal: true }), [q.x, k.x, v.x], [v.x]);
    const full = vjp(() => nalaformer(...whole, { causal: true }), whole, [whole[2]]);
    for (const [i, got] of half.grads.entries())
      await close(`gradient ${i}`, got, f64(got.shape, await (full.grads[i] as Tensor).read()), 3e-3);
    free(q.x, k.x, v.x, lengths, whole, [...half.outputs], [...half.grads], [...full.outputs], [...full.grads]);
  });

  test('several segments of nalaformer give the definition', async () => {
    const [q, k, v] = await three(300, 16);
    for (const causal of [true, false]) {
      const out = nalaformer(q.x, k.x, v.x, { causal });
      await close(`causal ${causal}`, out, referenceNalaformer(q.values, k.values, v.values, { causal }), 2e-3);
      free(out);
    }
    free(q.x, k.x, v.x);
  });

  test('nalaformer keeps its range for keys whose powers leave that of f16', async () => {
    const [q, k, v] = await three(40, 16, [5, 70, 10]);
    const out = nalaformer(q.x, k.x, v.x, { causal: true });
    // rows whose every weight is a tiny share of the largest possible one lose bits
    await close('outputs', out, referenceNalaformer(q.values, k.values, v.values, { causal: true }), 1e-2);
    free(q.x, k.x, v.x, out);
  });
});

test('tiles keep to the workgroup memory and lanes of a device, and there are none without fragments', () => {
  const capabilities = (storage: number, matrix: 'hardware' | 'none'): Capabilities =>
    ({
      matrix,
      f16: true,
      subgroupMinSize: 32,
      subgroupMaxSize: 32,
      matrixConfigs: [8, 16].map((N) => ({ component: 'f16', result: 'f32', M: 16, N, K: 16 })),
      limits: { maxComputeWorkgroupStorageSize: storage, maxComputeInvocationsPerWorkgroup: 1024 },
    }) as unknown as Capabilities;
  for (const map of [taylorMap(16, true), taylorMap(24, true), normAwareMap('relu')(64), normAwareMap('cos')(16)])
    for (const [valueDim, storage] of [
      [64, 49152],
      [128, 49152],
      [20, 16384],
      [64, 16384],
    ] as const) {
      const tile = featureTile(map, valueDim, capabilities(storage, 'hardware'));
      if (!tile) continue;
      const { statesBytes, outputsBytes } = featureLayout(map, tile);
      expect(Math.max(statesBytes, outputsBytes)).toBeLessThanOrEqual(storage);
      expect(tile.columns).toBeLessThan(tile.width);
      expect(paddedFeatures(map) % 32).toBe(0);
    }
  // two workgroups and more share a multiprocessor
  const based64 = featureTile(taylorMap(16, true), 64, capabilities(49152, 'hardware'));
  expect(based64 && featureLayout(taylorMap(16, true), based64).outputsBytes).toBeLessThanOrEqual(16384);
  expect(featureTile(taylorMap(16, true), 64, capabilities(49152, 'none'))).toBeUndefined();
  expect(featureTile(taylorMap(40, true), 64, capabilities(49152, 'hardware'))).toBeUndefined();
});

test('segments are of a size that balances keys and states, or what the caller wants within it, and their states fit a binding', () => {
  const shape = { batch: 1, tokens: 65536, heads: 16, columnTiles: 1, causal: true, stateBytes: 46080, bindingBytes: 2 ** 31 };
  const [taylor, normAware] = [taylorMap(16, true), normAwareMap('relu')(64)];
  expect(segmentTokensOf(taylor, shape)).toBe(256);
  expect(segmentTokensOf(normAware, shape)).toBe(128);
  expect(segmentTokensOf(taylor, { ...shape, tokens: 100 })).toBe(100);
  expect(segmentTokensOf(taylor, { ...shape, tokens: 1000, chunk: 17 })).toBe(17);
  expect(segmentTokensOf(taylor, { ...shape, chunk: 65536 })).toBe(512);
  expect(segmentTokensOf(normAware, { ...shape, causal: false })).toBe(1024);
  expect(segmentTokensOf(taylor, { ...shape, bindingBytes: 2 ** 27 })).toBe(512);
});

test('every variant compiles for hardware, and takes the memory that its layout says', async () => {
  const device = await openDevice({ nullBackend: true, tier: 'matrix' });
  for (const beside of [0, 1])
    for (const [f, d] of [
      [16, 64],
      [7, 20],
      [24, 128],
    ] as const) {
      const make = (dim: number): Tensor =>
        tensor(device, new Float32Array(600 * (dim + beside)), [1, 300, 2, dim + beside], { dtype: 'f16' });
      const [whole, values] = [make(f), make(d)];
      const [x, v] = [slice(whole, 3, beside, f + beside), slice(values, 3, beside, d + beside)];
      const lengths = tensor(device, Int32Array.of(250));
      const state = basedWithState(x, x, v);
      for (const options of [{}, { lengths, initialState: state }, { causal: false }, { normalize: false, chunk: 300 }])
        based(x, x, v, options).dispose();
      if (f === 16)
        for (const map of ['relu', 'cos'] as const)
          for (const causal of [true, false]) nalaformer(x, x, v, { map, causal, ...(causal && { lengths }) }).dispose();
      for (const t of tensorsIn([whole, values, x, v, lengths, state])) t.dispose();
    }
  for (const dim of [32, 48, 64]) {
    const x = zeros(device, [1, 300, 2, dim], { dtype: 'f16' });
    for (const map of ['relu', 'cos'] as const) for (const causal of [true, false]) nalaformer(x, x, x, { map, causal }).dispose();
    x.dispose();
  }
  await device.idle();
  const names = [...device.pipelines.values()].map(({ name }) => name);
  for (const name of ['based', 'nalaformer', 'nalaformer-cosine'])
    for (const part of ['states', 'segments', 'outputs']) expect(names).toContain(`${name}-${part}`);
  for (const { wgsl } of device.pipelines.values())
    expect(workgroupBytes(wgsl)).toBeLessThanOrEqual(device.limits.maxComputeWorkgroupStorageSize);
  await device.close();
});
