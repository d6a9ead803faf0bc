import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, type Tensor, tensor } from '../src/index.js';
import { vjp } from '../src/internal.js';
import { irfft, rfft } from '../src/ops/fft/index.js';
import { cholesky, solveTriangular } from '../src/ops/linalg/index.js';
import { RandomStream } from '../src/random/stream.js';

function spectrum(x: ArrayLike<number>, n: number): { re: Float64Array; im: Float64Array } {
  const re = new Float64Array(n / 2 + 1);
  const im = new Float64Array(n / 2 + 1);
  for (let k = 0; k <= n / 2; k++) {
    for (let t = 0; t < x.length; t++) {
      const angle = (2 * Math.PI * ((k * t) % n)) / n;
      re[k] = (re[k] ?? 0) + (x[t] ?? 0) * Math.cos(angle);
      im[k] = (im[k] ?? 0) - (x[t] ?? 0) * Math.sin(angle);
    }
  }
  return { re, im };
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => Array.from(a).reduce((sum, x, i) => sum + x * (b[i] ?? 0), 0);

describe.each(['baseline', 'subgroups'] as const)('transforms and small matrices on %s', (tier) => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('rfft is the Fourier sum, padded, in one pass and in two; irfft brings the rows back', async () => {
    for (const [m, n] of [
      [2, 2],
      [5, 8],
      [100, 128],
      [1024, 1024],
      [1500, 2048],
      [3000, 8192],
    ] as const) {
      const values = new RandomStream(n).normal(2 * m);
      using x = tensor(device, values, [2, m]);
      const { real, imaginary } = rfft(x, { length: n });
      const [re, im] = [await real.read(), await imaginary.read()];
      for (let row = 0; row < 2; row++) {
        const expected = spectrum(values.subarray(row * m, (row + 1) * m), n);
        const bins = n / 2 + 1;
        const worst = Math.max(
          ...expected.re.map((e, k) => Math.abs(e - (re[row * bins + k] ?? 0))),
          ...expected.im.map((e, k) => Math.abs(e - (im[row * bins + k] ?? 0))),
        );
        expect(worst).toBeLessThan(2e-6 * Math.sqrt(m) * Math.log2(n) + 1e-6);
      }
      using back = irfft(real, imaginary, { keep: m });
      (await back.read()).forEach((v, i) => expect(Math.abs(v - (values[i] ?? 0))).toBeLessThan(1e-5));
      real.dispose();
      imaginary.dispose();
    }
  });

  test('the gradients of rfft and irfft are their adjoints', async () => {
    const n = 16;
    const random = new RandomStream(9);
    const [X, R, I, Y] = [random.normal(11), random.normal(9), random.normal(9), random.normal(n)];
    using x = tensor(device, X, [1, 11]);
    using r = tensor(device, R, [1, 9]);
    using i = tensor(device, I, [1, 9]);
    using y = tensor(device, Y, [1, n]);
    const forward = vjp(
      () => {
        const s = rfft(x, { length: n });
        return [s.real, s.imaginary];
      },
      [x],
      [r, i],
    );
    const s = spectrum(X, n);
    const I0 = I.slice();
    expect(dot(X, await (forward.grads[0] as Tensor).read())).toBeCloseTo(dot(s.re, R) + dot(s.im, I0), 3);
    const inverse = vjp(() => irfft(r, i), [r, i], [y]);
    const out = await (inverse.outputs[0] as Tensor).read();
    const [dr, di] = [await (inverse.grads[0] as Tensor).read(), await (inverse.grads[1] as Tensor).read()];
    expect(dot(dr, R) + dot(di, I)).toBeCloseTo(dot(out, Y), 3);
    for (const t of [...forward.outputs, ...forward.grads, ...inverse.outputs, ...inverse.grads]) t.dispose();
  });

  test('lengths that are no power of two are refused with what to do', () => {
    using x = tensor(device, [1, 2, 3]);
    expect(() => rfft(x, { length: 6 })).toThrow(/power of two/);
    expect(() => rfft(x, { length: 2 })).toThrow(/more than the length 2/);
  });

  test('cholesky times its transpose is the matrix, and its gradient follows finite differences', async () => {
    for (const n of [1, 3, 8, 33, 60]) {
      const m = new RandomStream(n).normal(2 * n * n);
      const A = new Float32Array(2 * n * n);
      for (let b = 0; b < 2; b++) {
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < n; j++) {
            let sum = i === j ? n : 0;
            for (let k = 0; k < n; k++) sum += (m[(b * n + i) * n + k] ?? 0) * (m[(b * n + j) * n + k] ?? 0);
            A[(b * n + i) * n + j] = sum;
          }
        }
      }
      using a = tensor(device, A, [2, n, n]);
      using l = cholesky(a);
      const L = await l.read();
      let worst = 0;
      for (let b = 0; b < 2; b++) {
        for (let i = 0; i < n; i++) {
          for (let j = 0; j < n; j++) {
            let sum = 0;
            for (let k = 0; k < n; k++) sum += (L[(b * n + i) * n + k] ?? 0) * (L[(b * n + j) * n + k] ?? 0);
            worst = Math.max(worst, Math.abs(sum - (A[(b * n + i) * n + j] ?? 0)) / n);
            if (j > i) expect(L[(b * n + i) * n + j]).toBe(0);
          }
        }
      }
      expect(worst).toBeLessThan(1e-4);
      if (n > 8) continue;
      const G = new RandomStream(n + 100).normal(2 * n * n);
      using g = tensor(device, G, [2, n, n]);
      const { outputs, grads } = vjp(() => cholesky(a), [a], [g]);
      const gradient = await (grads[0] as Tensor).read();
      for (const [i, j] of [
        [0, 0],
        [n - 1, 0],
        [n - 1, n - 1],
      ] as const) {
        const loss = async (h: number): Promise<number> => {
          const moved = A.slice();
          moved[i * n + j] = (moved[i * n + j] ?? 0) + h;
          if (i !== j) moved[j * n + i] = (moved[j * n + i] ?? 0) + h;
          using t = tensor(device, moved, [2, n, n]);
          using factor = cholesky(t);
          return dot(await factor.read(), G);
        };
        const h = 0.02 * n;
        const slope = ((await loss(h)) - (await loss(-h))) / (2 * h);
        const expected = (gradient[i * n + j] ?? 0) + (i === j ? 0 : (gradient[j * n + i] ?? 0));
        expect(Math.abs(expected - slope)).toBeLessThan(0.02 * (1 + Math.abs(slope)));
      }
      for (const t of [...outputs, ...grads]) t.dispose();
    }
  });

  test('triangular systems are solved both ways, and their gradients follow finite differences', async () => {
    for (const transpose of [false, true]) {
      const [n, columns] = [7, 70];
      const random = new RandomStream(4);
      const L = random.normal(n * n).map((v, i) => (i % n === Math.floor(i / n) ? 3 + Math.abs(v) : v));
      const B = random.normal(n * columns);
      const G = random.normal(n * columns);
      const solve = (l: Float32Array, b: Float32Array): Float64Array => {
        const x = new Float64Array(n * columns);
        for (let c = 0; c < columns; c++) {
          for (let step = 0; step < n; step++) {
            const i = transpose ? n - 1 - step : step;
            let sum = b[i * columns + c] ?? 0;
            for (let s = 0; s < step; s++) {
              const k = transpose ? n - 1 - s : s;
              sum -= (transpose ? (l[k * n + i] ?? 0) : (l[i * n + k] ?? 0)) * (x[k * columns + c] ?? 0);
            }
            x[i * columns + c] = sum / (l[i * n + i] ?? 1);
          }
        }
        return x;
      };
      using l = tensor(device, L, [1, n, n]);
      using b = tensor(device, B, [1, n, columns]);
      using g = tensor(device, G, [1, n, columns]);
      const { outputs, grads } = vjp(() => solveTriangular(l, b, { transpose }), [l, b], [g]);
      const expected = solve(L, B);
      (await (outputs[0] as Tensor).read()).forEach((v, i) => expect(v).toBeCloseTo(expected[i] ?? 0, 4));
      const [dL, dB] = [await (grads[0] as Tensor).read(), await (grads[1] as Tensor).read()];
      const slope = (values: Float32Array, at: number, loss: (v: Float32Array) => number): number => {
        const [up, down] = [values.slice(), values.slice()];
        up[at] = (up[at] ?? 0) + 1e-2;
        down[at] = (down[at] ?? 0) - 1e-2;
        return (loss(up) - loss(down)) / ((up[at] ?? 0) - (down[at] ?? 0));
      };
      for (const at of [0, n, 3 * n + 2, n * n - 1]) {
        const s = slope(L, at, (v) => dot(solve(v, B), G));
        expect(Math.abs((dL[at] ?? 0) - s)).toBeLessThan(5e-3 * (1 + Math.abs(s)));
      }
      expect(Math.abs((dB[5] ?? 0) - slope(B, 5, (v) => dot(solve(L, v), G)))).toBeLessThan(1e-2);
      for (const t of [...outputs, ...grads]) t.dispose();
    }
  });
});
