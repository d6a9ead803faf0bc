import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { cast, type Device, openDevice, RandomStream, slice, tensor, type Tensor } from '@heed/core';
import { tensorsIn, vjp } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { turningOf } from '../src/layer/turns.js';
import { decayScan } from '../src/scan/decay-scan.js';
import { planFor } from '../src/scan/scan.js';
import { turnsOf, turnsOnLoad } from '../src/scan/turning.js';
import { transnormerllmStart, transnormerllmStep, transnormerllmWithState } from '../src/transnormerllm/index.js';
import { referenceLightning2 } from '../src/lightning2/reference.js';
import { referencePlaced } from '../src/transnormer/reference.js';
import { referenceTransnormerllm } from '../src/transnormerllm/reference.js';

const [heads, decay] = [2, [-0.3, -0.004]];

type Four = [q: Tensor, k: Tensor, v: Tensor, dOut: Tensor];

async function values(x: Tensor): Promise<F64Array> {
  return f64(x.shape, await x.read());
}

// Queries and keys of f16 are turned on their way into fragments: no turned copy exists in memory.
describe('turns as operands are loaded', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'matrix' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  function drawn(name: string, shape: number[], dtype: 'f16' | 'f32' = 'f16'): Tensor {
    return tensor(device, new RandomStream(7, name).normal(shape.reduce((a, b) => a * b, 1)), shape, { dtype });
  }

  test('outputs, states and gradients are those of turned copies in f32, a million positions on, in pieces or not', async () => {
    const tokens = 192;
    const [initialState, dState] = [drawn('initial', [2, heads, 32, 16], 'f32'), drawn('dState', [2, heads, 32, 16], 'f32')];
    const halves = ['q', 'k', 'v', 'dOut'].map((name) => drawn(name, [2, tokens, heads, 16])) as Four;
    const floats = halves.map((x) => cast(x, 'f32')) as Four;
    const theta = drawn('theta', [heads, 16], 'f32');
    const lengths = tensor(device, Int32Array.of(tokens, 150));
    const options = { decay, chunk: 48, theta, offset: 1_000_000, initialState, lengths };
    const run = ([q, k, v, dOut]: Four, most?: number): { results: Tensor[]; kernels: string[] } => {
      const limit = device.limits.maxStorageBufferBindingSize;
      const stop = device.trace();
      try {
        if (most) device.limits.maxStorageBufferBindingSize = most;
        const { outputs, grads } = vjp(
          () => {
            const { out, state } = transnormerllmWithState(q, k, v, options);
            return [out, state];
          },
          [q, k, v, initialState, theta],
          [dOut, dState],
        );
        const kernels = stop().map(({ kernel }) => kernel);
        return { results: [...outputs, ...grads] as Tensor[], kernels: kernels.filter((kernel) => kernel.startsWith('linear-turn')) };
      } finally {
        device.limits.maxStorageBufferBindingSize = limit;
      }
    };
    const wanted = run(floats);
    const runs = [
      { ...run(halves), most: 2e-3 },
      // two batch entries of two pieces each
      { ...run(halves, 17408), most: 2e-3 },
      { ...run(floats, 34816), most: 1e-5 },
    ];
    // only the gradients of q and k are turned back by a kernel of their own
    expect(runs[0]?.kernels).toEqual(['linear-turn-gradients', 'linear-turn-gradients']);
    expect(runs[1]?.kernels).toEqual(new Array(8).fill('linear-turn-gradients'));
    const names = ['out', 'state', 'dq', 'dk', 'dv', 'dInitial', 'dTheta'];
    for (const [i, name] of names.entries()) {
      const expected = await values(wanted.results[i] as Tensor);
      // positions of a million multiply what rounding leaves of a sum that nearly vanishes
      const factor = name === 'dTheta' ? 4 : 1;
      for (const { results, most } of runs) expectErrorRatio(name, await values(results[i] as Tensor), expected, factor * most);
    }
    for (const x of tensorsIn([halves, floats, theta, initialState, dState, lengths, wanted.results, runs.map(({ results }) => results)]))
      x.dispose();
  });

  test('outputs are those of the relative form, and a stream by pieces, by few tokens and by one gives them, too', async () => {
    const [q, k, v] = ['q', 'k', 'v'].map((name) => drawn(name, [1, 90, heads, 16])) as [Tensor, Tensor, Tensor];
    const theta = drawn('theta', [heads, 16], 'f32');
    const lengths = tensor(device, Int32Array.of(90));
    const whole = transnormerllmWithState(q, k, v, { decay, theta, chunk: 40, lengths });
    const operands = [await values(q), await values(k), await values(v)] as const;
    expectErrorRatio('out', await values(whole.out), referenceTransnormerllm(...operands, { decay, theta: await values(theta) }), 1e-3);
    const stream = transnormerllmStart(device, { batch: 1, heads, headDim: 16, decay, lrpe: true });
    const rows: number[] = [];
    let first = 0;
    for (const count of [66, 20, 1, 3]) {
      const pieces = [q, k, v].map((x) => slice(x, 1, first, first + count)) as [Tensor, Tensor, Tensor];
      const out = transnormerllmStep(...pieces, stream, theta);
      rows.push(...(await out.read()));
      for (const x of [...pieces, out]) x.dispose();
      first += count;
    }
    expectErrorRatio('rows', f64(whole.out.shape, rows), await values(whole.out), 1e-3);
    expectErrorRatio('state', await values(stream.values), await values(whole.state), 1e-3);
    stream.dispose();
    for (const x of [q, k, v, theta, lengths, whole.out, whole.state]) x.dispose();
  });

  test('pairs are turned, and 3,000 tokens in one segment keep their angles, half a million positions on', async () => {
    const [q, k, v] = ['q', 'k', 'v'].map((name) => drawn(name, [1, 3000, 1, 16])) as [Tensor, Tensor, Tensor];
    const theta = drawn('pairs', [8], 'f32');
    const offset = 500_000;
    const got = decayScan(q, k, v, { decay: [-0.01], chunk: 3000, turning: turningOf('rotate', theta, offset) }, 'test');
    const positions = { theta: await theta.read() };
    const [a, b] = [await values(q), await values(k)].map((x) => referencePlaced(x, positions, (token) => token + offset));
    const wanted = referenceLightning2(a as F64Array, b as F64Array, await values(v), [0.01]);
    expectErrorRatio('out', await values(got), wanted.out, 1e-3);
    for (const x of [q, k, v, theta, got]) x.dispose();
  });

  test('rows that are no whole eights are turned as copies', async () => {
    const [q, k, v] = ['q', 'k', 'v'].map((name) => drawn(name, [1, 20, heads, 12])) as [Tensor, Tensor, Tensor];
    const theta = drawn('theta', [heads, 12], 'f32');
    const turning = turningOf('concat', theta, 0);
    const plan = planFor(k, v, undefined, turnsOf(turning, 'keys'));
    expect(plan.kernel).toBe('matrix');
    expect(turnsOnLoad(plan, { of: 'keys', headDim: 12, keyDim: 24 }, device.capabilities)).toBe(false);
    const got = decayScan(q, k, v, { decay, turning }, 'test');
    const operands = [await values(q), await values(k), await values(v)] as const;
    expectErrorRatio('out', await values(got), referenceTransnormerllm(...operands, { decay, theta: await values(theta) }), 1e-3);
    for (const x of [q, k, v, theta, got]) x.dispose();
  });
});
