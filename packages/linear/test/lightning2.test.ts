import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, slice, split, tensor, type Tensor, type Tier, zeros } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { lightning2, lightning2WithState } from '../src/lightning2/index.js';
import { referenceLightning2 } from '../src/lightning2/reference.js';
import { checkProblem, draw, type Problem } from './lightning2/check.js';

// One pair of head dimensions and one set of options, because each compiles kernels of its own; what is a run-time value varies freely.
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

    const dtype = tier === 'matrix' ? 'f16' : 'f32';
    const dims = { keyDim: 20, valueDim: 36 };

    test('outputs, states and gradients are those of the float64 recurrence for any length and chunk', async () => {
      const problem = fc.record({
        tokens: fc.integer({ min: 1, max: 90 }),
        slopes: fc.array(fc.constantFrom(0, 0.004, 0.1, 0.7, 8, 40), { minLength: 1, maxLength: 3 }),
        scale: fc.constantFrom(1, 0.25),
        chunk: fc.constantFrom(1000, 33, 7),
        lengths: fc.tuple(fc.constantFrom(0, 13, 90), fc.constant(90)),
        seed: fc.integer({ min: 1, max: 1000 }),
      });
      await fc.assert(
        fc.asyncProperty(problem, (given) => checkProblem(device, { ...given, ...dims, dtype, batch: 2, initial: true })),
        { seed: 7, numRuns: 12 },
      );
    });

    test('100 lengths use the pipelines of the shortest and the longest', async () => {
      const [q, v] = [zeros(device, [1, 100, 1, dims.keyDim], { dtype }), zeros(device, [1, 100, 1, dims.valueDim], { dtype })];
      const initialState = zeros(device, [1, 1, dims.keyDim, dims.valueDim]);
      const lengths = tensor(device, Int32Array.of(50));
      const run = (tokens: number): void => {
        const [cutQ, cutV] = [slice(q, 1, 0, tokens), slice(v, 1, 0, tokens)];
        lightning2(cutQ, cutQ, cutV, { decay: [-0.1], chunk: 33, initialState, lengths }).dispose();
        cutQ.dispose();
        cutV.dispose();
      };
      run(1);
      run(100);
      const before = device.pipelines.size;
      for (let tokens = 1; tokens <= 100; tokens++) run(tokens);
      expect(device.pipelines.size).toBe(before);
      for (const t of [q, v, initialState, lengths]) t.dispose();
    });

    test('what lies beside the views and behind the lengths never enters', async () => {
      // tokens 3 to 40 of a tensor whose other tokens, and whose columns beside q, k and v, are NaN
      const [first, tokens, heads] = [3, 37, 2];
      const { keyDim, valueDim } = dims;
      const width = 2 * keyDim + valueDim;
      const good = await draw(device, 'good', [1, tokens, heads, width], dtype);
      const poisoned = new Float32Array(50 * heads * (width + 4)).fill(NaN);
      for (let t = 0; t < 30; t++)
        for (let h = 0; h < heads; h++)
          for (let c = 0; c < width; c++)
            poisoned[((t + first) * heads + h) * (width + 4) + c] = good.values.values[(t * heads + h) * width + c] as number;
      const whole = tensor(device, poisoned, [1, 50, heads, width + 4], { dtype });
      const window = slice(whole, 1, first, first + tokens);
      const inner = slice(window, 3, 0, width);
      const [q, k, v] = split(inner, [keyDim, keyDim, valueDim], 3) as [Tensor, Tensor, Tensor];
      const lengths = tensor(device, Int32Array.of(30));
      const initialState = zeros(device, [1, heads, keyDim, valueDim]);
      const part = (from: number, to: number): ReturnType<typeof f64> =>
        f64(
          [1, 30, heads, to - from],
          Array.from(
            { length: 30 * heads * (to - from) },
            (_, i) => good.values.values[Math.floor(i / (to - from)) * width + from + (i % (to - from))] as number,
          ),
        );
      const expected = referenceLightning2(part(0, keyDim), part(keyDim, 2 * keyDim), part(2 * keyDim, width), [0.3, 0.01]);
      for (const chunk of [1000, 33]) {
        const { out, state } = lightning2WithState(q, k, v, { decay: [-0.3, -0.01], lengths, initialState, chunk });
        const values = await out.read();
        const bound = dtype === 'f16' ? 1.5e-3 : 3e-6;
        expectErrorRatio('out', { shape: expected.out.shape, values: values.subarray(0, expected.out.values.length) }, expected.out, bound);
        expect(values.subarray(expected.out.values.length).every((x) => x === 0)).toBe(true);
        expectErrorRatio('state', { shape: state.shape, values: await state.read() }, expected.finalState, bound);
        out.dispose();
        state.dispose();
      }
      for (const t of tensorsIn([good.x, whole, window, inner, q, k, v, lengths, initialState])) t.dispose();
    });

    test('two runs give the same bits', async () => {
      const q = await draw(device, 'q', [1, 80, 2, dims.keyDim], dtype);
      const v = await draw(device, 'v', [1, 80, 2, dims.valueDim], dtype);
      const initialState = zeros(device, [1, 2, dims.keyDim, dims.valueDim]);
      const lengths = tensor(device, Int32Array.of(77));
      const options = { decay: [-0.3, -0.01], chunk: 33, initialState, lengths };
      const once = async (): Promise<number[][]> => {
        const { outputs, grads } = vjp(() => lightning2(q.x, q.x, v.x, options), [q.x, v.x], [v.x]);
        const read: number[][] = [];
        for (const x of [...outputs, ...grads]) {
          read.push([...(await x.read())]);
          x.dispose();
        }
        return read;
      };
      expect(await once()).toEqual(await once());
      for (const t of [q.x, v.x, initialState, lengths]) t.dispose();
    });

    test('operands larger than a binding go in pieces with the same result', async () => {
      const limit = device.limits.maxStorageBufferBindingSize;
      const problem: Problem = { ...dims, dtype, batch: 2, tokens: 300, slopes: [0.02, 0.1], lengths: [300, 211], initial: true };
      try {
        // the device then refuses every binding above 16 KiB; the longest operand has 86 KiB (43 in f16)
        device.limits.maxStorageBufferBindingSize = dtype === 'f16' ? 12288 : 24576;
        await checkProblem(device, problem);
      } finally {
        device.limits.maxStorageBufferBindingSize = limit;
      }
    });
  });
}

describe('limiting cases', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'subgroups' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('without decay it is plain causal linear attention', async () => {
    const [tokens, dim] = [50, 8];
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, 1, dim])));
    const out = lightning2(q!.x, k!.x, v!.x, { decay: [0] });
    const expected = new Float64Array(tokens * dim);
    for (let i = 0; i < tokens; i++)
      for (let j = 0; j <= i; j++) {
        let score = 0;
        for (let c = 0; c < dim; c++) score += (q!.values.values[i * dim + c] as number) * (k!.values.values[j * dim + c] as number);
        for (let c = 0; c < dim; c++) expected[i * dim + c]! += score * (v!.values.values[j * dim + c] as number);
      }
    expectErrorRatio('out', { shape: out.shape, values: await out.read() }, f64([1, tokens, 1, dim], expected), 1e-6);
    for (const t of tensorsIn([q!.x, k!.x, v!.x, out])) t.dispose();
  });

  test('one token from a state: (q.k) v + lambda q S', () =>
    checkProblem(device, { tokens: 1, keyDim: 20, valueDim: 36, slopes: [0.4], initial: true, lengths: [1] }));

  test('infinite decay leaves (q.k) v alone', async () => {
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, 9, 1, 8])));
    for (const decay of [[-Infinity], tensor(device, [-Infinity])]) {
      const out = lightning2(q!.x, k!.x, v!.x, { decay });
      const { out: expected } = referenceLightning2(q!.values, k!.values, v!.values, [1e9]);
      expectErrorRatio('out', { shape: out.shape, values: await out.read() }, expected, 1e-6);
      for (const t of tensorsIn([out, decay])) t.dispose();
    }
    for (const t of tensorsIn([q!.x, k!.x, v!.x])) t.dispose();
  });

  test('no tokens give no outputs and hand the state through, with its gradient', async () => {
    const empty = zeros(device, [2, 0, 1, 8]);
    const initialState = await draw(device, 'state', [2, 1, 8, 8]);
    const { outputs, grads } = vjp(
      () => {
        const { out, state } = lightning2WithState(empty, empty, empty, { decay: [-1], initialState: initialState.x });
        return [out, state];
      },
      [empty, initialState.x],
      [null, initialState.x],
    );
    expect(outputs.map((x) => x.shape)).toEqual([
      [2, 0, 1, 8],
      [2, 1, 8, 8],
    ]);
    expect(await outputs[1]!.read()).toEqual(await initialState.x.read());
    expect(await grads[1]!.read()).toEqual(await initialState.x.read());
    for (const t of tensorsIn([empty, initialState.x, outputs, grads])) t.dispose();
  });

  test('the last rows of 65,536 tokens are as right as the first', async () => {
    const [tokens, dim] = [65536, 8];
    const [q, k, v] = await Promise.all(['q', 'k', 'v'].map((name) => draw(device, name, [1, tokens, 1, dim])));
    const out = lightning2(q!.x, k!.x, v!.x, { decay: [-0.001] });
    const { out: expected } = referenceLightning2(q!.values, k!.values, v!.values, [0.001]);
    const values = await out.read();
    for (const from of [0, tokens - 128]) {
      const rows = [from * dim, (from + 128) * dim] as const;
      expectErrorRatio(
        `rows from ${from}`,
        { shape: [128, dim], values: values.subarray(...rows) },
        f64([128, dim], expected.values.subarray(...rows)),
        3e-6,
      );
    }
    for (const t of tensorsIn([q!.x, k!.x, v!.x, out])) t.dispose();
  });

  test('f16 storage sums in f32 where the device has no fragments', () =>
    checkProblem(device, {
      tokens: 60,
      keyDim: 20,
      valueDim: 36,
      slopes: [0.1, 0.01],
      dtype: 'f16',
      initial: true,
      lengths: [60],
      chunk: 33,
    }));

  test('odd head dimensions and more columns than one tile', async () => {
    await checkProblem(device, { tokens: 20, keyDim: 5, valueDim: 7, slopes: [0.1], initial: true, chunk: 9 });
    await checkProblem(device, { tokens: 20, keyDim: 8, valueDim: 72, slopes: [0.1], initial: true, chunk: 9 });
  });
});

describe('bad input', () => {
  let device: Device;
  let q: Tensor;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
    q = zeros(device, [1, 4, 2, 8]);
  });
  afterAll(async () => {
    q.dispose();
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const decay = [-0.1, -0.1];
  const refused = (code: string, message: RegExp, run: () => unknown): void => {
    expect(run).toThrow(expect.objectContaining({ code, message: expect.stringMatching(message) }));
  };
  const withTensor = (shape: number[], dtype: 'f32' | 'f16' | 'i32', use: (x: Tensor) => void): void => {
    const x = zeros(device, shape, { dtype });
    use(x);
    x.dispose();
  };

  test('shapes that do not fit are named', () => {
    withTensor([1, 4, 3, 8], 'f32', (v) =>
      refused('SHAPE_MISMATCH', /v has 3 heads, q and k have 2; v must have as many heads as q/, () => lightning2(q, q, v, { decay })),
    );
    withTensor([1, 5, 2, 8], 'f32', (k) => refused('SHAPE_MISMATCH', /they must have one shape/, () => lightning2(q, k, q, { decay })));
    withTensor([4, 2, 8], 'f32', (x) =>
      refused('SHAPE_MISMATCH', /it must be \[batch, tokens, heads, headDim\]/, () => lightning2(x, x, x, { decay })),
    );
    withTensor([1, 2, 8, 4], 'f32', (initialState) =>
      refused('SHAPE_MISMATCH', /it must be \[1, 2, 8, 8\]/, () => lightning2(q, q, q, { decay, initialState })),
    );
    withTensor([3], 'i32', (lengths) =>
      refused('SHAPE_MISMATCH', /it must be \[1\], one a batch entry/, () => lightning2(q, q, q, { decay, lengths })),
    );
  });

  test('dtypes that do not fit are named', () => {
    withTensor([1, 4, 2, 8], 'f16', (k) => refused('DTYPE_MISMATCH', /cast them to one dtype/, () => lightning2(q, k, q, { decay })));
    withTensor([1, 4, 2, 8], 'i32', (x) => refused('DTYPE_MISMATCH', /it must be f32 or f16/, () => lightning2(x, x, x, { decay })));
    withTensor([1, 2, 8, 8], 'f16', (initialState) =>
      refused('DTYPE_MISMATCH', /states are f32/, () => lightning2(q, q, q, { decay, initialState })),
    );
  });

  test('a positive decay, NaN, a wrong count or none are refused with a way out', () => {
    refused(
      'INVALID_ARGUMENT',
      /decay of head 1 is 0\.5; it is a log-decay, at most 0, and slopes \(>= 0\) become one by decayFromSlopes/,
      () => lightning2(q, q, q, { decay: [-1, 0.5] }),
    );
    refused('INVALID_ARGUMENT', /decay of head 0 is NaN/, () => lightning2(q, q, q, { decay: [NaN, 0] }));
    refused('SHAPE_MISMATCH', /decay has 1 values, q has 2 heads/, () => lightning2(q, q, q, { decay: [-1] }));
    refused('INVALID_ARGUMENT', /no decay was given/, () => lightning2(q, q, q, {} as never));
    refused('INVALID_ARGUMENT', /chunk is 0/, () => lightning2(q, q, q, { decay, chunk: 0 }));
  });

  test('a decay that is being differentiated is refused', () => {
    withTensor([2], 'f32', (learned) =>
      refused('UNSUPPORTED', /decay is being differentiated/, () => vjp(() => lightning2(q, q, q, { decay: learned }), [learned], [q])),
    );
  });
});
