import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import fc from 'fast-check';
import { conv1d, type Conv1dOptions, conv2d, type Device, openDevice, type Padding, type Tensor, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { convAxis } from '../src/ops/conv/geometry.js';
import { errorRatio, type HostArray, poisonPool, random } from './matmul-reference.js';

interface Geometry {
  stride: [number, number];
  dilation: [number, number];
  before: [number, number];
  outputs: [number, number];
  groups: number;
}

/** Cross-correlation in float64 and, from a cotangent, its gradients: one walk over all (output, tap, channel) triples. */
function conv64(
  x: HostArray,
  w: HostArray,
  d: HostArray | undefined,
  g: Geometry,
): { out: Float64Array; dx: Float64Array; dw: Float64Array } {
  const [batch = 1, height = 1, width = 1, inputs = 1] = x.shape;
  const [down = 1, across = 1, perGroup = 1, outputs = 1] = w.shape;
  const [outY, outX] = g.outputs;
  const out = new Float64Array(batch * outY * outX * outputs);
  const dx = new Float64Array(x.values.length);
  const dw = new Float64Array(w.values.length);
  for (let at = 0; at < out.length; at++) {
    const o = at % outputs;
    const position = Math.floor(at / outputs);
    const [b, oy, ox] = [Math.floor(position / outX / outY), Math.floor(position / outX) % outY, position % outX];
    for (let ky = 0; ky < down; ky++) {
      const y = oy * g.stride[0] + ky * g.dilation[0] - g.before[0];
      for (let kx = 0; kx < across; kx++) {
        const column = ox * g.stride[1] + kx * g.dilation[1] - g.before[1];
        if (y < 0 || y >= height || column < 0 || column >= width) continue;
        for (let c = 0; c < perGroup; c++) {
          const channel = Math.floor(o / (outputs / g.groups)) * perGroup + c;
          const from = ((b * height + y) * width + column) * inputs + channel;
          const weight = ((ky * across + kx) * perGroup + c) * outputs + o;
          out[at] = (out[at] ?? 0) + (x.values[from] ?? 0) * (w.values[weight] ?? 0);
          dx[from] = (dx[from] ?? 0) + (d?.values[at] ?? 0) * (w.values[weight] ?? 0);
          dw[weight] = (dw[weight] ?? 0) + (d?.values[at] ?? 0) * (x.values[from] ?? 0);
        }
      }
    }
  }
  return { out, dx, dw };
}

describe.each(['baseline', 'subgroups'] as const)('convolution on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
    poisonPool(device, 1 << 14);
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  /** Forward and all three gradients of one case against float64. */
  async function agree(
    run: (x: Tensor, w: Tensor, bias: Tensor) => Tensor,
    xShape: number[],
    wShape: number[],
    g: Geometry,
    what: string,
    limit = 2e-6,
  ): Promise<void> {
    const x = random(device, xShape, 1);
    const w = random(device, wShape, 2);
    const outputs = wShape.at(-1) ?? 1;
    const bias = random(device, [outputs], 3);
    const flat = xShape.length === 3;
    const image = (shape: readonly number[]): number[] => (flat ? [shape[0] ?? 1, 1, ...shape.slice(1)] : [...shape]);
    const outShape = [xShape[0] ?? 1, ...(flat ? [g.outputs[1]] : g.outputs), outputs];
    const d = random(device, outShape, 4);
    const { outputs: got, grads } = vjp(() => run(x.device, w.device, bias.device), [x.device, w.device, bias.device], [d.device]);
    const kernel = flat ? [1, ...wShape] : wShape;
    const expected = conv64({ ...x.host, shape: image(xShape) }, { ...w.host, shape: kernel }, d.host, g);
    const sums = new Float64Array(outputs);
    d.host.values.forEach((v, i) => (sums[i % outputs] = (sums[i % outputs] ?? 0) + v));
    expect(got[0]?.shape, what).toEqual(outShape);
    const biased = expected.out.map((v, i) => v + (bias.host.values[i % outputs] ?? 0));
    expect(errorRatio((await got[0]?.read()) ?? [], biased), `${what}: out`).toBeLessThan(limit);
    for (const [i, want, shape] of [
      [0, expected.dx, xShape],
      [1, expected.dw, wShape],
      [2, sums, [outputs]],
    ] as const) {
      expect(grads[i]?.shape, what).toEqual(shape);
      expect(errorRatio((await grads[i]?.read()) ?? [], want), `${what}: gradient ${i}`).toBeLessThan(limit);
    }
    for (const t of [...got, ...grads, x.device, w.device, bias.device, d.device]) t.dispose();
  }

  const paddings = fc.oneof(
    fc.constantFrom<Padding>('same', 'causal', 2),
    fc.tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 0, max: 4 })),
  );
  const upTo = (n: number): fc.Arbitrary<number> => fc.integer({ min: 1, max: n });

  test('conv1d: random taps, strides, dilations and padding agree with float64, with all gradients', async () => {
    await fc.assert(
      fc.asyncProperty(
        upTo(3),
        upTo(30),
        upTo(4),
        upTo(3),
        upTo(3),
        paddings,
        fc.constantFrom(1, 3),
        async (batch, tokens, taps, stride, dilation, padding, groups) => {
          // channels that are odd in all groups keep the number of kernels low
          const [inputs, outputs] = [groups === 1 ? 5 : 9, groups === 1 ? 11 : 27];
          fc.pre(padding === 'causal' || padding === 'same' || tokens > dilation * (taps - 1));
          const axis = convAxis('test', { input: tokens, kernel: taps, stride, dilation, padding });
          const g: Geometry = { stride: [1, stride], dilation: [1, dilation], before: [0, axis.before], outputs: [1, axis.output], groups };
          const options: Conv1dOptions = { stride, dilation, padding, groups };
          await agree(
            (x, w, bias) => conv1d(x, w, { ...options, bias }),
            [batch, tokens, inputs],
            [taps, inputs / groups, outputs],
            g,
            JSON.stringify(options),
          );
        },
      ),
      { seed: 3, numRuns: 15 },
    );
  });

  test('depthwise conv1d and conv2d, with vectors, without, and with a multiplier, agree with float64', async () => {
    await fc.assert(
      fc.asyncProperty(
        upTo(2),
        upTo(7),
        upTo(9),
        upTo(3),
        upTo(4),
        upTo(2),
        upTo(3),
        fc.constantFrom([8, 8], [3, 3], [3, 6]),
        async (batch, height, width, down, across, stride, dilation, [inputs = 1, outputs = 1]) => {
          const y = convAxis('test', { input: height, kernel: down, stride, dilation, padding: 'same' });
          const x = convAxis('test', { input: width, kernel: across, stride: 1, dilation, padding: 'same' });
          const g: Geometry = {
            stride: [stride, 1],
            dilation: [dilation, dilation],
            before: [y.before, x.before],
            outputs: [y.output, x.output],
            groups: inputs,
          };
          await agree(
            (image, w, bias) => conv2d(image, w, { stride: [stride, 1], dilation, padding: 'same', groups: inputs, bias }),
            [batch, height, width, inputs],
            [down, across, 1, outputs],
            g,
            `${height} x ${width}, ${down} x ${across}, stride ${stride}, dilation ${dilation}, ${inputs} -> ${outputs}`,
          );
        },
      ),
      { seed: 3, numRuns: 15 },
    );
    const g: Geometry = { stride: [1, 1], dilation: [1, 2], before: [0, 6], outputs: [1, 13], groups: 8 };
    await agree((x, w, bias) => conv1d(x, w, { dilation: 2, padding: 'causal', groups: 8, bias }), [2, 13, 8], [4, 1, 8], g, 'causal');
  });

  test('conv2d with aligned channels, patches of a stride, and one tap agree with float64', async () => {
    const plain = (outputs: [number, number], more: Partial<Geometry> = {}): Geometry => ({
      stride: [1, 1],
      dilation: [1, 1],
      before: [0, 0],
      groups: 1,
      outputs,
      ...more,
    });
    await agree(
      (x, w, bias) => conv2d(x, w, { bias, padding: 1 }),
      [2, 5, 6, 4],
      [3, 3, 4, 12],
      plain([5, 6], { before: [1, 1] }),
      '3 x 3',
    );
    await agree(
      (x, w, bias) => conv2d(x, w, { bias, stride: 4 }),
      [1, 8, 12, 3],
      [4, 4, 3, 12],
      plain([2, 3], { stride: [4, 4] }),
      'patches',
    );
    await agree((x, w, bias) => conv2d(x, w, { bias }), [2, 3, 5, 12], [1, 1, 12, 16], plain([3, 5]), 'one tap');
    await agree(
      (x, w, bias) => conv2d(x, w, { bias, padding: { rows: [2, 0], columns: 'valid' }, stride: [2, 1] }),
      [1, 5, 6, 4],
      [3, 2, 4, 12],
      plain([3, 5], { before: [2, 0], stride: [2, 1] }),
      'one-sided rows',
    );
  });

  test('a strided view of channels is read in place', async () => {
    const fused = random(device, [2, 9, 12], 5);
    const w = random(device, [3, 4, 8], 6);
    using part = fused.device.view({ shape: [2, 9, 4], offset: 4 });
    using out = conv1d(part, w.device, { padding: 'causal' });
    const values = Float64Array.from({ length: 72 }, (_, i) => fused.host.values[Math.floor(i / 4) * 12 + 4 + (i % 4)] ?? 0);
    const g: Geometry = { stride: [1, 1], dilation: [1, 1], before: [0, 2], outputs: [1, 9], groups: 1 };
    const expected = conv64({ shape: [2, 1, 9, 4], values }, { ...w.host, shape: [1, 3, 4, 8] }, undefined, g).out;
    expect(errorRatio(await out.read(), expected)).toBeLessThan(2e-6);
    fused.device.dispose();
    w.device.dispose();
  });

  test('f16 images and weights give f16, summed in f32', async () => {
    const x = random(device, [1, 20, 8], 7, 'f16');
    const w = random(device, [3, 1, 8], 8, 'f16');
    using out = conv1d(x.device, w.device, { padding: 'same', groups: 8 });
    expect(out.dtype).toBe('f16');
    const g: Geometry = { stride: [1, 1], dilation: [1, 1], before: [0, 1], outputs: [1, 20], groups: 8 };
    const expected = conv64({ ...x.host, shape: [1, 1, 20, 8] }, { ...w.host, shape: [1, 3, 1, 8] }, undefined, g).out;
    expect(errorRatio(await out.read(), expected)).toBeLessThan(5e-4);
    x.device.dispose();
    w.device.dispose();
  });

  test('what does not fit is refused with what was expected', () => {
    using x = tensor(device, new Float32Array(40), [2, 5, 4]);
    using w = tensor(device, new Float32Array(3 * 4 * 2), [3, 4, 2]);
    expect(() => conv1d(x, w, { groups: 3 })).toThrow('3 groups do not divide 4 channels in and 2 out');
    expect(() => conv1d(x, w, { groups: 2 })).toThrow('takes 4 channels a group');
    expect(() => conv1d(x, w, { dilation: 3 })).toThrow('5 inputs and 0 + 0 zeros are shorter than the kernel (3 taps, dilation 3: 7)');
    expect(() => conv1d(x, w, { stride: 0 })).toThrow('stride is 0');
    expect(() => conv1d(x, w, { padding: -1 })).toThrow('padding is -1');
    expect(() => conv2d(x, w)).toThrow('it must be [batch, height, width, Cin]');
    expect(() => conv1d(x, w, { bias: x })).toThrow('it must be [2], one element an output channel');
  });
});

test('same padding gives ceil(input / stride) outputs and the odd zero comes after', () => {
  expect(convAxis('t', { input: 7, kernel: 4, stride: 2, dilation: 1, padding: 'same' })).toMatchObject({ output: 4, before: 1 });
  expect(convAxis('t', { input: 5, kernel: 3, stride: 1, dilation: 2, padding: 'causal' })).toMatchObject({ output: 5, before: 4 });
});
