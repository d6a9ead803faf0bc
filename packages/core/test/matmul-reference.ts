import type { Device, FloatDType, Tensor } from '../src/index.js';
import { full, tensor } from '../src/index.js';
import { RandomStream } from '../src/random/stream.js';

/** Host values with a shape; what tests hold device results against. */
export interface HostArray {
  shape: readonly number[];
  values: Float64Array;
}

export const product = (shape: readonly number[]): number => shape.reduce((p, n) => p * n, 1);

const half = new DataView(new ArrayBuffer(4));
/** Rounds to f16 (normal numbers and subnormals), ties to even. */
export function toHalf(x: number): number {
  half.setFloat32(0, x);
  const exponent = Math.max(-14, ((half.getUint32(0) >>> 23) & 255) - 127);
  const unit = 2 ** (exponent - 10);
  const scaled = x / unit;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  return (rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor) * unit;
}

/** Seeded normal numbers, rounded to the dtype, on the host and on the device. */
export function random(
  device: Device,
  shape: readonly number[],
  seed: number,
  dtype: FloatDType = 'f32',
): { host: HostArray; device: Tensor } {
  const drawn = new RandomStream(seed).normal(product(shape));
  const values = Float64Array.from(drawn, (x) => (dtype === 'f16' ? toHalf(x) : x));
  return { host: { shape, values }, device: tensor(device, values, shape, { dtype }) };
}

/** a b in float64 with batch broadcasting and transposes. */
export function matmul64(a: HostArray, b: HostArray, transposeA = false, transposeB = false): HostArray {
  const [M, K] = swapped(a.shape, transposeA);
  const [, N] = swapped(b.shape, transposeB);
  const rank = Math.max(a.shape.length, b.shape.length) - 2;
  const batch = Array.from({ length: rank }, (_, axis) =>
    Math.max(a.shape[axis - rank + a.shape.length - 2] ?? 1, b.shape[axis - rank + b.shape.length - 2] ?? 1),
  );
  const values = new Float64Array(product(batch) * M * N);
  for (let matrix = 0; matrix < product(batch); matrix++) {
    const [fromA, fromB] = [startOf(a, batch, matrix), startOf(b, batch, matrix)];
    for (let i = 0; i < M; i++) {
      for (let j = 0; j < N; j++) {
        let sum = 0;
        for (let k = 0; k < K; k++) {
          const x = a.values[fromA + (transposeA ? k * M + i : i * K + k)] ?? 0;
          const y = b.values[fromB + (transposeB ? j * K + k : k * N + j)] ?? 0;
          sum += x * y;
        }
        values[(matrix * M + i) * N + j] = sum;
      }
    }
  }
  return { shape: [...batch, M, N], values };
}

function swapped(shape: readonly number[], transposed: boolean): [number, number] {
  const [rows = 1, columns = 1] = shape.slice(-2);
  return transposed ? [columns, rows] : [rows, columns];
}

/** First element of the matrix that a flat batch index stands for in an operand that may be stretched. */
function startOf(x: HostArray, batch: readonly number[], matrix: number): number {
  let rest = matrix;
  let at = 0;
  let stride = product(x.shape.slice(-2));
  for (let axis = batch.length - 1; axis >= 0; axis--) {
    const n = batch[axis] ?? 1;
    const own = x.shape[axis - batch.length + x.shape.length - 2] ?? 1;
    if (own > 1) at += (rest % n) * stride;
    stride *= own;
    rest = Math.floor(rest / n);
  }
  return at;
}

/** Sums a float64 array down to a shape that was stretched to it. */
export function sumTo(x: HostArray, shape: readonly number[]): HostArray {
  const values = new Float64Array(product(shape));
  x.values.forEach((v, flat) => {
    let rest = flat;
    let at = 0;
    let stride = 1;
    for (let axis = x.shape.length - 1; axis >= 0; axis--) {
      const n = x.shape[axis] ?? 1;
      const own = shape[axis - x.shape.length + shape.length] ?? 1;
      if (own > 1) at += (rest % n) * stride;
      stride *= own;
      rest = Math.floor(rest / n);
    }
    values[at] = (values[at] ?? 0) + v;
  });
  return { shape, values };
}

/** Root mean square of the error over that of the reference; Infinity where a value is no number. */
export function errorRatio(got: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (got.length !== expected.length) return Number.POSITIVE_INFINITY;
  let [error, size] = [0, 0];
  for (let i = 0; i < got.length; i++) {
    error += ((got[i] ?? Number.NaN) - (expected[i] ?? Number.NaN)) ** 2;
    size += (expected[i] ?? 0) ** 2;
  }
  if (Number.isNaN(error)) return Number.POSITIVE_INFINITY;
  return size === 0 ? Math.sqrt(error / Math.max(1, got.length)) : Math.sqrt(error / size);
}

/** Leaves free buffers full of NaN in the pool, in all small size classes: what lies beyond a tensor is then poison. */
export function poisonPool(device: Device, largestBytes = 1 << 18): void {
  const held: Tensor[] = [];
  for (let bytes = 256; bytes <= largestBytes; bytes *= 2) {
    for (const quarter of [1, 1.25, 1.5, 1.75])
      for (let copy = 0; copy < 3; copy++) held.push(full(device, [(bytes * quarter) / 4], Number.NaN));
  }
  for (const t of held) t.dispose();
}
