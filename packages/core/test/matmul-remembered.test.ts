// Plans of products are remembered by how operands lie: what lies otherwise must get a plan of its own.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { cast, type Device, matmul, openDevice, scope, slice, type Tensor, tensor } from '../src/index.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const small = (n: number, seed: number): Float32Array => Float32Array.from({ length: n }, (_, i) => ((i * 7 + seed * 3) % 5) - 2);

/** A [rows, columns] factor of small integers: columns from `first` on of an array that is wider by `beside`. */
interface Factor {
  first: number;
  beside: number;
  half: boolean;
}

function factorOf(rows: number, columns: number, seed: number, { first, beside, half }: Factor): Tensor {
  const shape = [rows, columns + beside];
  const whole = tensor(device, small(rows * (columns + beside), seed), shape, { dtype: half ? 'f16' : 'f32' });
  return beside === 0 ? whole : slice(whole, 1, Math.min(first, beside), Math.min(first, beside) + columns);
}

// Few rows: the kernel that compiles fastest. In turns, so that each is asked for behind every other one.
const [M, K, N] = [2, 24, 32];
const ways: readonly Factor[] = [
  { first: 0, beside: 0, half: false },
  { first: 0, beside: 3, half: false },
  { first: 1, beside: 4, half: false },
  { first: 4, beside: 4, half: true },
];

test('products of one shape whose operands lie in many ways', async () => {
  for (const transposeB of [false, true, false]) {
    for (const [i, a] of ways.entries()) {
      const b = ways[(3 * i + 1) % ways.length]!;
      const [left, right, out] = scope(() => {
        const x = factorOf(M, K, 1, a);
        const y = transposeB ? factorOf(N, K, 2, b) : factorOf(K, N, 2, b);
        return [cast(x, 'f32'), cast(y, 'f32'), matmul(x, y, { transposeB, outDType: 'f32' })];
      }) as [Tensor, Tensor, Tensor];
      const [x, y, got] = await Promise.all([left, right, out].map((t) => t.read()));
      const expected = Float32Array.from({ length: M * N }, (_, at) => {
        const [row, column] = [Math.floor(at / N), at % N];
        let sum = 0;
        for (let k = 0; k < K; k++) sum += x![row * K + k]! * y![transposeB ? column * K + k : k * N + column]!;
        return sum;
      });
      expect(got).toEqual(expected);
      for (const t of [left, right, out]) t.dispose();
    }
  }
});
