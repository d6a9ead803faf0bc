// What the op tests share: devices of two tiers, tensors in every layout, float64 arrays and gradients by finite differences.
import { afterAll, beforeAll, expect } from 'vitest';
import { RandomStream } from '../src/random/stream.js';
import { type Device, type DType, openDevice, scope, type Shape, tensor, type Tensor, type Tier } from '../src/index.js';
import { contiguousStrides, sizeOf, vjp } from '../src/internal.js';

export const testedTiers = ['baseline', 'subgroups'] as const satisfies readonly Tier[];

/** Opens a device a tier for the tests of a file; at the end no tensor may be left. */
export function devices(): Record<(typeof testedTiers)[number], Device> {
  const open = {} as Record<(typeof testedTiers)[number], Device>;
  beforeAll(async () => {
    for (const tier of testedTiers) open[tier] = await openDevice({ tier });
  });
  afterAll(async () => {
    const left = testedTiers.map((tier) => open[tier].memory().tensors);
    for (const tier of testedTiers) await open[tier].close();
    expect(left).toEqual([0, 0]);
  });
  return open;
}

/** Values in row-major order with their shape. */
export interface Values {
  shape: Shape;
  values: number[];
}

export type LayoutKind = 'plain' | 'offset' | 'aligned' | 'strided' | 'permuted';
export const layoutKinds: readonly LayoutKind[] = ['plain', 'offset', 'aligned', 'strided', 'permuted'];

const half = new Float32Array(1);

/** What a dtype keeps of a number. */
export function rounded(x: number, dtype: DType): number {
  if (dtype === 'f32') return Math.fround(x);
  if (dtype === 'i32') return Math.trunc(x) | 0;
  if (dtype === 'u32') return Math.trunc(x) >>> 0;
  if (dtype === 'u8') return Math.trunc(x) & 255;
  half[0] = x;
  const bits = new Uint32Array(half.buffer)[0] ?? 0;
  const exponent = ((bits >>> 23) & 255) - 127;
  const step = 2 ** (Math.max(exponent, -14) - 10);
  const scaled = x / step;
  const low = Math.floor(scaled);
  const rest = scaled - low;
  return (rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low) * step;
}

/** A tensor of given values in one of the layouts that ops must take: views with offsets, padded rows, permuted outer axes. */
export function place(device: Device, { shape, values }: Values, dtype: DType, kind: LayoutKind): Tensor {
  const strides = contiguousStrides(shape);
  let offset = 0;
  if (kind === 'offset') offset = 3;
  if (kind === 'aligned') offset = 8;
  if (kind === 'strided') {
    offset = 4;
    const row = (shape.at(-1) ?? 1) + 3;
    let step = row;
    for (let axis = shape.length - 2; axis >= 0; axis--) {
      strides[axis] = step;
      step *= shape[axis] ?? 1;
    }
  }
  if (kind === 'permuted' && shape.length >= 3) {
    // the first two axes lie in the buffer in the other order
    const inner = sizeOf(shape.slice(2));
    strides[0] = inner;
    strides[1] = inner * (shape[0] ?? 1);
  }
  const extent = offset + 1 + shape.reduce((sum, n, axis) => sum + Math.max(0, n - 1) * (strides[axis] ?? 0), 0);
  const buffer = new Array<number>(extent).fill(dtype === 'f32' || dtype === 'f16' ? 7.5 : 7);
  values.forEach((value, flat) => {
    buffer[offset + offsetOf(flat, shape, strides)] = value;
  });
  return scope(() => tensor(device, buffer, [extent], { dtype }).view({ shape, strides, offset }));
}

function offsetOf(flat: number, shape: Shape, strides: Shape): number {
  let rest = flat;
  let at = 0;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    const n = shape[axis] ?? 1;
    at += (rest % n) * (strides[axis] ?? 0);
    rest = Math.floor(rest / n);
  }
  return at;
}

/** Random values in [low, high), rounded to the dtype. */
export function randomValues(random: RandomStream, shape: Shape, dtype: DType = 'f32', low = -2, high = 2): Values {
  return { shape, values: Array.from(random.uniform(sizeOf(shape)), (u) => rounded(low + (high - low) * u, dtype)) };
}

/** `f` over arrays that broadcast: the float64 twin of a pointwise op. */
export function broadcast(inputs: readonly Values[], f: (...x: number[]) => number): Values {
  const rank = Math.max(...inputs.map(({ shape }) => shape.length));
  const shape = Array.from({ length: rank }, (_, axis) => Math.max(...inputs.map((x) => x.shape[axis - rank + x.shape.length] ?? 1))).map(
    (n, axis) => (inputs.some((x) => x.shape[axis - rank + x.shape.length] === 0) ? 0 : n),
  );
  const size = sizeOf(shape);
  const strides = inputs.map((x) => {
    const own = contiguousStrides(x.shape);
    return shape.map((_, axis) => {
      const at = axis - rank + x.shape.length;
      return at < 0 || x.shape[at] === 1 ? 0 : (own[at] ?? 0);
    });
  });
  const values = Array.from({ length: size }, (_, flat) =>
    f(...inputs.map((x, i) => x.values[offsetOf(flat, shape, strides[i]!)] ?? Number.NaN)),
  );
  return { shape, values };
}

/** Every element within atol + rtol |expected|. */
export function expectClose(got: ArrayLike<number>, expected: ArrayLike<number>, rtol: number, atol: number, what = ''): void {
  expect(got.length, what).toBe(expected.length);
  for (let i = 0; i < expected.length; i++) {
    const want = expected[i] ?? 0;
    const have = got[i] ?? Number.NaN;
    if (!(Math.abs(have - want) <= atol + rtol * Math.abs(want))) expect.fail(`${what} element ${i}: got ${have}, expected ${want}`);
  }
}

export const tolerance: Record<'f32' | 'f16', number> = { f32: 2e-5, f16: 2e-3 };

/** Gradients of sum(f(x) * cotangent) by central differences in float64. */
export function numericGradients(f: (inputs: Values[]) => Values, inputs: Values[], cotangent: readonly number[], step = 1e-5): number[][] {
  const value = (): number => f(inputs).values.reduce((sum, y, i) => sum + y * (cotangent[i] ?? 0), 0);
  return inputs.map((input) =>
    input.values.map((x, i) => {
      const h = step * Math.max(1, Math.abs(x));
      input.values[i] = x + h;
      const up = value();
      input.values[i] = x - h;
      const down = value();
      input.values[i] = x;
      return (up - down) / (2 * h);
    }),
  );
}

/** Holds an op's outputs and gradients against its float64 twin. `inputs` are placed as given. */
export async function checkGradients(
  device: Device,
  op: (...x: Tensor[]) => Tensor,
  twin: (inputs: Values[]) => Values,
  inputs: Values[],
  options: { dtypes?: DType[]; layouts?: LayoutKind[]; seed?: number; rtol?: number; atol?: number; what?: string } = {},
): Promise<void> {
  const { seed = 1, rtol = 2e-3, atol = 1e-3, what = '' } = options;
  const tensors = inputs.map((x, i) => place(device, x, options.dtypes?.[i] ?? 'f32', options.layouts?.[i] ?? 'plain'));
  const expected = twin(inputs);
  const random = new RandomStream(seed, 'cotangent');
  const cotangentValues = randomValues(random, expected.shape, tensors.every((t) => t.dtype === 'f16') ? 'f16' : 'f32');
  const cotangent = place(device, cotangentValues, tensors.every((t) => t.dtype === 'f16') ? 'f16' : 'f32', 'plain');
  const { outputs, grads } = vjp(() => op(...tensors), tensors, [cotangent]);
  const numeric = numericGradients(twin, inputs, cotangentValues.values);
  try {
    expect(outputs[0]!.shape, what).toEqual(expected.shape);
    expectClose(await outputs[0]!.read(), expected.values, rtol, atol, `${what} output`);
    for (let i = 0; i < inputs.length; i++) {
      expect(grads[i]!.shape, what).toEqual(inputs[i]!.shape);
      expect(grads[i]!.dtype, what).toBe(tensors[i]!.dtype);
      expectClose(await grads[i]!.read(), numeric[i]!, rtol, atol, `${what} gradient ${i}`);
    }
  } finally {
    for (const t of [...tensors, cotangent, ...outputs, ...grads]) t.dispose();
  }
}

/** The values that an op gives, all its tensors freed. */
export async function readOf(op: () => Tensor): Promise<{ shape: Shape; dtype: DType; values: number[] }> {
  const out = scope(op);
  const values = Array.from(await out.read());
  const { shape, dtype } = out;
  out.dispose();
  return { shape, dtype, values };
}
