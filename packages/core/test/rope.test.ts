import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, type Tensor, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { rope, type RopeOptions } from '../src/ops/rope.js';

function twin(
  x: ArrayLike<number>,
  shape: readonly [number, number, number, number],
  position: (b: number, t: number) => number,
  options: RopeOptions,
  sign = 1,
): Float64Array {
  const [batch, tokens, heads, dim] = shape;
  const half = (options.rotaryDim ?? dim) / 2;
  const out = Float64Array.from(x);
  for (let b = 0; b < batch; b++) {
    for (let t = 0; t < tokens; t++) {
      for (let h = 0; h < heads; h++) {
        for (let pair = 0; pair < half; pair++) {
          const at = ((b * tokens + t) * heads + h) * dim;
          const [i, j] = options.interleaved ? [at + 2 * pair, at + 2 * pair + 1] : [at + pair, at + pair + half];
          const angle = sign * position(b, t) * (options.base ?? 10_000) ** (-pair / half) * (options.scaling ?? 1);
          const [u, v] = [x[i] ?? 0, x[j] ?? 0];
          out[i] = u * Math.cos(angle) - v * Math.sin(angle);
          out[j] = u * Math.sin(angle) + v * Math.cos(angle);
        }
      }
    }
  }
  return out;
}

describe.each(['baseline', 'subgroups'] as const)('rope on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('pairs turn by position, also a million tokens away, and gradients turn back', async () => {
    const cases: [readonly [number, number, number, number], RopeOptions][] = [
      [[2, 5, 3, 8], {}],
      [[1, 7, 2, 6], { interleaved: true, offset: 3 }],
      [[1, 4, 1, 7], { rotaryDim: 4, base: 500 }],
      [[1, 33, 2, 64], { offset: 1_000_000 }],
      [[1, 3, 2, 16], { scaling: 0.25, offset: 4_000_000 }],
    ];
    for (const [shape, options] of cases) {
      const size = shape.reduce((a, b) => a * b, 1);
      const random = new RandomStream(size);
      const [X, G] = [random.normal(size), random.normal(size)];
      using x = tensor(device, X, shape);
      using g = tensor(device, G, shape);
      const { outputs, grads } = vjp(() => rope(x, options), [x], [g]);
      const position = (_: number, t: number): number => (options.offset ?? 0) + t;
      const [expected, back] = [twin(X, shape, position, options), twin(G, shape, position, options, -1)];
      (await (outputs[0] as Tensor).read()).forEach((v, i) => expect(Math.abs(v - (expected[i] ?? 0))).toBeLessThan(2e-5));
      (await (grads[0] as Tensor).read()).forEach((v, i) => expect(Math.abs(v - (back[i] ?? 0))).toBeLessThan(2e-5));
      for (const t of [...outputs, ...grads]) t.dispose();
    }
  });

  test('positions a token, heads of a fused projection and f16 storage', async () => {
    const values = new RandomStream(1).normal(2 * 3 * 6 * 4);
    for (const dtype of ['f32', 'f16'] as const) {
      using fused = tensor(device, values, [2, 3, 6, 4], { dtype });
      using part = fused.view({ shape: [2, 3, 2, 4], offset: 2 * 4 });
      using positions = tensor(device, Uint32Array.of(5, 0, 9, 1, 1, 2), [2, 3]);
      using out = rope(part, { positions });
      const own = await part.read();
      const expected = twin(own, [2, 3, 2, 4], (b, t) => [5, 0, 9, 1, 1, 2][b * 3 + t] ?? 0, {});
      (await out.read()).forEach((v, i) => expect(Math.abs(v - (expected[i] ?? 0))).toBeLessThan(dtype === 'f32' ? 1e-5 : 4e-3));
    }
  });

  test('shapes that do not fit are refused', () => {
    using x = tensor(device, new Float32Array(12), [1, 1, 2, 6]);
    expect(() => rope(x, { rotaryDim: 3 })).toThrow(/rotaryDim is 3 for heads of 6/);
    using flat = tensor(device, [1, 2]);
    expect(() => rope(flat)).toThrow(/\[batch, tokens, heads, headDim\]/);
  });
});
