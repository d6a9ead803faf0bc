import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, tensor, type Tensor } from '../src/index.js';
import { defineKernel, vjp, write } from '../src/internal.js';
import { indirectGrid } from '../src/ops/indirect.js';
import { permuteTokens, permuteTokensOf, tileOrder } from '../src/ops/permute-tokens.js';
import { recurrence } from '../src/ops/recurrence.js';
import { searchSorted } from '../src/ops/searchsorted.js';
import { zeros } from '../src/index.js';
import { RandomStream } from '../src/random/stream.js';

const marks = defineKernel({
  name: 'test-marks',
  bindings: { out: write('u32') },
  uniforms: { size: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(64)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u, @builtin(local_invocation_index) lane: u32) {
      let i = workgroupIndex(group, groups) * 64u + lane;
      if (i < uniforms.size) { store_out(i, 7u); }
    }`,
});

function recurrenceLoop(
  a: Float32Array,
  b: Float32Array,
  batch: number,
  tokens: number,
  channels: number,
  initial: Float32Array,
): Float64Array {
  const out = new Float64Array(a.length);
  for (let n = 0; n < batch; n++) {
    for (let c = 0; c < channels; c++) {
      let state = initial[n * channels + c] ?? 0;
      for (let t = 0; t < tokens; t++) {
        const at = (n * tokens + t) * channels + c;
        state = (a[at] ?? 0) * state + (b[at] ?? 0);
        out[at] = state;
      }
    }
  }
  return out;
}

describe.each(['baseline', 'subgroups'] as const)('scans and searches on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('the recurrence follows the loop, with and without an initial state, and its gradients follow finite differences', async () => {
    for (const [batch, tokens, channels] of [
      [1, 1, 1],
      [2, 63, 3],
      [1, 200, 70],
    ] as const) {
      const random = new RandomStream(tokens);
      const A = random.uniform(batch * tokens * channels);
      const B = random.normal(batch * tokens * channels);
      const I = random.normal(batch * channels);
      const G = random.normal(batch * tokens * channels);
      using a = tensor(device, A, [batch, tokens, channels]);
      using b = tensor(device, B, [batch, tokens, channels]);
      using initialState = tensor(device, I, [batch, channels]);
      using g = tensor(device, G, [batch, tokens, channels]);
      const { outputs, grads } = vjp(() => recurrence(a, b, { initialState }), [a, b, initialState], [g]);
      const expected = recurrenceLoop(A, B, batch, tokens, channels, I);
      const got = await (outputs[0] as Tensor).read();
      got.forEach((value, i) => expect(value).toBeCloseTo(expected[i] ?? 0, 4));
      const loss = (x: Float32Array, y: Float32Array, z: Float32Array): number =>
        recurrenceLoop(x, y, batch, tokens, channels, z).reduce((sum, s, i) => sum + s * (G[i] ?? 0), 0);
      for (const [which, values] of [A, B, I].entries()) {
        const gradient = await (grads[which] as Tensor).read();
        for (const at of [0, values.length >> 1, values.length - 1]) {
          const [up, down] = [values.slice(), values.slice()];
          up[at] = (up[at] ?? 0) + 1e-2;
          down[at] = (down[at] ?? 0) - 1e-2;
          const pick = (v: Float32Array): [Float32Array, Float32Array, Float32Array] => [
            which === 0 ? v : A,
            which === 1 ? v : B,
            which === 2 ? v : I,
          ];
          const slope = (loss(...pick(up)) - loss(...pick(down))) / ((up[at] ?? 0) - (down[at] ?? 0));
          expect(Math.abs((gradient[at] ?? 0) - slope)).toBeLessThan(2e-2 * (1 + Math.abs(slope)));
        }
      }
      for (const t of [...outputs, ...grads]) t.dispose();
      using plain = recurrence(a, b);
      const free = recurrenceLoop(A, B, batch, tokens, channels, new Float32Array(batch * channels));
      (await plain.read()).forEach((value, i) => expect(value).toBeCloseTo(free[i] ?? 0, 4));
    }
  });

  test('searchSorted counts what lies below, or not above', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 20 }), { maxLength: 40 }),
        fc.array(fc.integer({ min: -1, max: 21 }), { minLength: 1, maxLength: 20 }),
        async (values, queries) => {
          values.sort((x, y) => x - y);
          using sorted = tensor(device, Int32Array.from(values));
          using q = tensor(device, Int32Array.from(queries));
          using left = searchSorted(sorted, q);
          using right = searchSorted(sorted, q, { side: 'right' });
          expect([...(await left.read())]).toEqual(queries.map((x) => values.filter((v) => v < x).length));
          expect([...(await right.read())]).toEqual(queries.map((x) => values.filter((v) => v <= x).length));
        },
      ),
      { numRuns: 10, seed: 3 },
    );
  });

  test('tokens walk tile by tile and come back, gradients too', async () => {
    const order = tileOrder([3, 5], [2, 2]);
    expect([...order.order]).toEqual([0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14]);
    for (const dtype of ['f32', 'f16'] as const) {
      for (const row of [3, 8]) {
        const values = Float32Array.from({ length: 2 * 15 * row }, (_, i) => i);
        using x = tensor(device, values, [2, 15, row], { dtype });
        using tiled = permuteTokens(x, order);
        using back = permuteTokens(tiled, order, { inverse: true });
        expect((await tiled.read()).slice(2 * row, 3 * row)).toEqual(values.slice(5 * row, 6 * row));
        expect(await back.read()).toEqual(values);
        const { outputs, grads } = vjp(() => permuteTokens(x, order), [x], [tiled]);
        expect(await (grads[0] as Tensor).read()).toEqual(values);
        for (const t of [...outputs, ...grads]) t.dispose();
        using other = tensor(
          device,
          values.map((v) => v % 7),
          [2, 15, row],
          { dtype },
        );
        const one = permuteTokens(other, order);
        const many = vjp(() => permuteTokensOf([x, other, x], order), [x, other], [tiled, one, null]);
        expect(await Promise.all(many.outputs.map((t) => t.read()))).toEqual([await tiled.read(), await one.read(), await tiled.read()]);
        expect(await Promise.all(many.grads.map((t) => t.read()))).toEqual([values, await other.read()]);
        for (const t of [one, ...many.outputs, ...many.grads]) t.dispose();
      }
    }
  });

  test('an indirect dispatch covers the count of the device and no more than there is room for', async () => {
    for (const [wanted, covered] of [
      [0, 0],
      [70, 128],
      [1000, 192],
    ] as const) {
      using count = tensor(device, Uint32Array.of(wanted));
      using grid = indirectGrid(count, { perWorkgroup: 64, most: 192 });
      using out = zeros(device, [256], { dtype: 'u32' });
      marks.run(device, { spec: {}, tensors: { out }, uniforms: { size: 256 }, grid: { indirect: grid } });
      expect((await out.read()).filter((v) => v === 7).length).toBe(covered);
    }
  });
});
