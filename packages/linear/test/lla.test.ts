import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { attention, type Device, openDevice, slice, tensor, type Tensor, type Tier, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { lla, llaSolve } from '../src/lla/index.js';
import { checkProblem, draw } from './lla/check.js';

// One head dimension for most, because each compiles kernels of its own; what is a run-time value varies freely.
for (const tier of ['baseline', 'subgroups', 'matrix'] as const satisfies readonly Tier[]) {
  describe(`on tier ${tier}`, () => {
    let device: Device;
    beforeAll(async () => {
      device = await openDevice({ tier });
    });
    afterAll(async () => {
      expect(device.memory().tensors).toBe(0);
      await device.close();
    });

    test('outputs and gradients by Cholesky are those of float64 at odd lengths, with a ridge a query', async () => {
      for (const given of [
        { batch: 2, queries: 37, heads: 2, lambda: 'token' },
        { queries: 2, heads: 1, lambda: 3 },
        { queries: 9, keys: 23, heads: 3, lambda: 1 },
        { queries: 23, keys: 9, lambda: 1 },
        { queries: 21, keys: 21, lambda: 1, options: { causal: false, scale: 1.3 } },
      ] as const)
        await checkProblem(device, { dim: 12, valueDim: 8, ...given });
    });

    test('outputs and gradients by conjugate gradients are the same', async () => {
      for (const given of [
        { batch: 2, queries: 37, heads: 2, lambda: 'token' },
        { queries: 9, keys: 23, heads: 3, lambda: 1 },
      ] as const)
        await checkProblem(device, { dim: 12, valueDim: 8, ...given, options: { solver: 'cg' } });
    });
  });
}

describe('options', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('any lengths, heads, masks and ridges give what float64 gives', async () => {
    const problem = fc.record({
      batch: fc.integer({ min: 1, max: 2 }),
      queries: fc.integer({ min: 2, max: 40 }),
      keys: fc.integer({ min: 2, max: 40 }),
      heads: fc.integer({ min: 1, max: 3 }),
      lambda: fc.constantFrom('token' as const, 0.7),
      options: fc.record({
        causal: fc.boolean(),
        solver: fc.constantFrom('cg' as const, 'cholesky' as const),
        scale: fc.constantFrom(0.2, 1),
      }),
      seed: fc.integer({ min: 1, max: 1000 }),
    });
    await fc.assert(
      fc.asyncProperty(problem, (given) => checkProblem(device, { dim: 12, valueDim: 8, ...given, bound: 2e-4 })),
      { seed: 5, numRuns: 8 },
    );
  });

  test('blocks of Sigma, of three channels too, give the gradients of their own forward', async () => {
    await checkProblem(device, { queries: 19, dim: 6, valueDim: 5, lambda: 'token', options: { blockSize: 3 } });
  });

  test('the published gradient leaves the ridge constant', () =>
    checkProblem(device, { queries: 19, dim: 12, valueDim: 8, lambda: 4, options: { ridgeGradient: 'detached' } }));

  test('f16 operands are computed in f32', () => checkProblem(device, { queries: 19, dim: 12, valueDim: 8, dtype: 'f16' }));

  test('a preconditioner changes the way, not the solution', async () => {
    const [q, k] = await Promise.all(['q', 'k'].map((name) => draw(device, name, [1, 30, 2, 12])));
    const solve = (preconditioner: 'none' | 'jacobi', solver: 'cg' | 'cholesky' = 'cg') =>
      llaSolve(q!.x, k!.x, { ridgeLambda: 0.5, preconditioner, solver });
    const exact = solve('none', 'cholesky');
    const wanted = f64(exact.rho.shape, await exact.rho.read());
    for (const preconditioner of ['none', 'jacobi'] as const) {
      const made = solve(preconditioner);
      expectErrorRatio(preconditioner, { shape: made.rho.shape, values: await made.rho.read() }, wanted, 1e-4);
      for (const t of tensorsIn([made.rho, made.steps])) t.dispose();
    }
    for (const t of tensorsIn([q!.x, k!.x, exact.rho, exact.steps])) t.dispose();
  });

  test('a looser tolerance ends earlier, a larger lambda too, and no query takes more than maxIterations', async () => {
    const [q, k] = await Promise.all(['q', 'k'].map((name) => draw(device, name, [1, 64, 1, 12])));
    const most = async (options: Partial<Parameters<typeof llaSolve>[2]>): Promise<number> => {
      const { rho, steps } = llaSolve(q!.x, k!.x, { ridgeLambda: 0.1, solver: 'cg', ...options });
      const taken = Math.max(...(await steps.read()));
      for (const t of [rho, steps]) t.dispose();
      return taken;
    };
    const tight = await most({});
    expect(await most({ rtol: 1e-4 })).toBeLessThan(tight);
    expect(await most({ ridgeLambda: 10 })).toBeLessThan(tight);
    expect(await most({ maxIterations: 3 })).toBe(3);
    for (const t of [q!.x, k!.x]) t.dispose();
  });

  test('lambda to infinity is softmax attention', async () => {
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, 40, 1, 12])));
    const dense = attention(q!.x, k!.x, v!.x, { causal: true });
    const wanted = f64(dense.shape, await dense.read());
    for (const [ridgeLambda, bound] of [
      [1e2, 2e-1],
      [1e4, 2e-3],
      [1e6, 2e-5],
    ] as const) {
      const out = lla(q!.x, k!.x, v!.x, { ridgeLambda });
      expectErrorRatio(`lambda ${ridgeLambda}`, { shape: out.shape, values: await out.read() }, wanted, bound);
      out.dispose();
    }
    for (const t of [q!.x, k!.x, v!.x, dense]) t.dispose();
  });

  test('a shift of all values shifts the outputs, and the first token is its own value without a gradient to q and k', async () => {
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, 24, 1, 12])));
    const shifted = tensor(
      device,
      Float32Array.from(v!.values.values, (x) => x + 3),
      v!.values.shape,
    );
    const plain = lla(q!.x, k!.x, v!.x, { ridgeLambda: 1 });
    const moved = lla(q!.x, k!.x, shifted, { ridgeLambda: 1 });
    const [a, b] = [await plain.read(), await moved.read()];
    for (let i = 0; i < a.length; i++) expect((b[i] as number) - (a[i] as number)).toBeCloseTo(3, 3);
    for (let c = 0; c < 12; c++) expect(a[c]).toBeCloseTo(v!.values.values[c] as number, 5);
    const first = [q!.x, k!.x, v!.x].map((x) => slice(x, 1, 0, 1)) as [Tensor, Tensor, Tensor];
    const { outputs, grads } = vjp(() => lla(...first, { ridgeLambda: 1 }), [first[0], first[1]], [first[2]]);
    for (const gradient of grads) for (const x of await gradient.read()) expect(Math.abs(x)).toBeLessThan(1e-4);
    for (const t of tensorsIn([q!.x, k!.x, v!.x, shifted, plain, moved, first, outputs, grads])) t.dispose();
  });

  test('scale 0 is affine ridge regression over the prefix', () =>
    checkProblem(device, { queries: 30, dim: 12, valueDim: 8, lambda: 0.5, options: { scale: 0 } }));

  test('40 lengths use the pipelines of the shortest and the longest', async () => {
    const x = zeros(device, [1, 40, 1, 12]);
    const run = (tokens: number): void => {
      const cut = slice(x, 1, 0, tokens);
      const { outputs, grads } = vjp(() => lla(cut, cut, cut, { ridgeLambda: 1 }), [cut], [cut]);
      for (const t of tensorsIn([outputs, grads, cut])) t.dispose();
    };
    run(1);
    run(40);
    const own = (): number => [...device.pipelines.values()].filter(({ name }) => name.startsWith('lla')).length;
    const before = own();
    for (let tokens = 1; tokens <= 40; tokens++) run(tokens);
    expect(own()).toBe(before);
    x.dispose();
  });

  test('two runs give the same bits', async () => {
    const x = await draw(device, 'x', [1, 33, 2, 12]);
    const once = async (): Promise<number[][]> => {
      const { outputs, grads } = vjp(() => lla(x.x, x.x, x.x, { ridgeLambda: 1 }), [x.x], [x.x]);
      const read: number[][] = [];
      for (const t of [...outputs, ...grads]) {
        read.push([...(await t.read())]);
        t.dispose();
      }
      return read;
    };
    expect(await once()).toEqual(await once());
    x.x.dispose();
  });

  test('what does not fit is named with a way out', () => {
    const q = zeros(device, [1, 4, 2, 8]);
    const other = zeros(device, [1, 4, 1, 8]);
    const refused = (code: string, message: RegExp, run: () => unknown): void =>
      expect(run).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }));
    refused('INVALID_ARGUMENT', /no ridgeLambda was given/, () => lla(q, q, q, {} as never));
    refused('INVALID_ARGUMENT', /ridgeLambda is 0; it must be finite and above 0/, () => lla(q, q, q, { ridgeLambda: 0 }));
    refused('SHAPE_MISMATCH', /it must be \[1, 4, 2\], one a query and head/, () => lla(q, q, q, { ridgeLambda: other }));
    refused('INVALID_ARGUMENT', /blockSize is 3; it must divide headDim 8/, () => lla(q, q, q, { ridgeLambda: 1, blockSize: 3 }));
    refused('INVALID_ARGUMENT', /takes the whole Sigma/, () => lla(q, q, q, { ridgeLambda: 1, blockSize: 4, solver: 'cholesky' }));
    refused('SHAPE_MISMATCH', /k is .* batch, heads and headDim must agree/, () => lla(q, other, q, { ridgeLambda: 1 }));
    refused('UNSUPPORTED', /lengths were given; there are none here/, () => lla(q, q, q, { ridgeLambda: 1, lengths: other } as never));
    for (const t of [q, other]) t.dispose();
  });

  test('no tokens give no outputs', () => {
    const x = zeros(device, [1, 0, 2, 8]);
    const out = lla(x, x, x, { ridgeLambda: 1 });
    expect(out.shape).toEqual([1, 0, 2, 8]);
    for (const t of [x, out]) t.dispose();
  });
});
