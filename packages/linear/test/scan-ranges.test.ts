import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, scope, tensor } from '@heed/core';
import { empty } from '@heed/core/~internal';
import { expectErrorRatio, f64, type F64Array } from '@heed/core/testing';
import { referenceLightning2 } from '../src/lightning2/reference.js';
import { decayTensor } from '../src/scan/options.js';
import { aliveTokens, planRanges } from '../src/scan/ranges.js';
import { planFor, runScan } from '../src/scan/scan.js';
import { decayFromSlopes, lightning2Slopes } from '../src/scan/slopes.js';
import { checkProblem, draw } from './lightning2/check.js';

describe('runs of tokens', () => {
  const slopes = decayFromSlopes(lightning2Slopes({ heads: 16 }));

  test('heads that forget late get shorter runs, and all end together', () => {
    const plan = planRanges({ tokens: 65536, decays: slopes, workgroups: 264, step: 32, leadCost: 0.5 }, 6000);
    expect(plan!.count).toBeGreaterThan(255);
    expect(plan!.count).toBeLessThanOrEqual(264);
    const runs = slopes.map((_, head) => Array.from(plan!.table).filter((_x, i, all) => i % 3 === 0 && all[i] === head).length);
    expect(runs[15]).toBeGreaterThan(runs[8] as number);
    // an even share is 3,972 tokens
    expect(plan!.longest).toBeLessThan(4800);
  });

  test('the runs of a head cover its tokens in order, and no more workgroups are taken than there are', () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ min: -2, max: -1e-3, noNaN: true }), { minLength: 1, maxLength: 9 }),
        fc.integer({ min: 1, max: 5000 }),
        fc.integer({ min: 1, max: 300 }),
        fc.constantFrom(16, 32, 64),
        (decays, tokens, workgroups, step) => {
          const plan = planRanges({ tokens, decays, workgroups, step, leadCost: 0.5 }, tokens + step);
          if (!plan) return workgroups < decays.length;
          const ends = decays.map(() => 0);
          for (let i = 0; i < plan.table.length; i += 3) {
            const [head, first, end] = plan.table.slice(i, i + 3) as unknown as [number, number, number];
            if (first !== ends[head] || end <= first || first % step !== 0) return false;
            ends[head] = end;
          }
          return plan.count <= workgroups && ends.every((end) => end === tokens);
        },
      ),
    );
  });

  test('heads that do not forget are left to states of segments', () => {
    expect(planRanges({ tokens: 65536, decays: [0, -1], workgroups: 32, step: 32, leadCost: 0.5 }, 40000)).toBeUndefined();
    expect(aliveTokens(0)).toBe(27e6 + 1);
    expect(aliveTokens(-1 / 256)).toBe(Math.floor((27 * 256) / Math.LOG2E) + 1);
    expect(aliveTokens(Number.NEGATIVE_INFINITY)).toBe(1);
  });
});

describe('a scan by runs', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'matrix' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });

  test('gives what the recurrence gives, with states and padding, and the same in reverse as one run a head', async () => {
    const [batch, tokens, keyDim, valueDim] = [2, 300, 16, 32];
    // of the last head some 190 tokens count
    const slopes = [1, 0.3, 0.1];
    const heads = slopes.length;
    const stateShape = [batch, heads, keyDim, valueDim];
    const [q, k] = [
      await draw(device, 'q', [batch, tokens, heads, keyDim], 'f16'),
      await draw(device, 'k', [batch, tokens, heads, keyDim], 'f16'),
    ];
    const v = await draw(device, 'v', [batch, tokens, heads, valueDim], 'f16');
    const initial = await draw(device, 'initial', stateShape, 'f32');
    const decays = decayFromSlopes(slopes);
    const decay = tensor(device, Float32Array.from(decays));
    const lengths = tensor(device, Int32Array.of(271, 40));
    const base = planFor(k.x, v.x, undefined);
    const step = base.matrix!.outputs.chunk;
    const run = async (workgroups: number, runs: number, reverse: boolean): Promise<[out: F64Array, final: F64Array]> => {
      const ranges = planRanges({ tokens, decays, workgroups, step, leadCost: 0.5 }, tokens + step);
      expect(ranges!.count).toBe(runs);
      const [out, final] = [empty(device, v.x.shape, 'f16'), empty(device, stateShape)];
      const scan = { q: q.x, k: k.x, v: v.x, decay, lengths, reverse, plan: { ...base, form: 'ranges' as const, ranges } };
      scope(() => runScan(scan, { out, initial: initial.x, final }));
      const values: [F64Array, F64Array] = [f64(v.x.shape, await out.read()), f64(stateShape, await final.read())];
      for (const x of [out, final]) x.dispose();
      return values;
    };
    const wanted = referenceLightning2(q.values, k.values, v.values, slopes, { initialState: initial.values, lengths: [271, 40] });
    const [out, final] = await run(8, 7, false);
    expectErrorRatio('out', out, wanted.out, 1.5e-3);
    expectErrorRatio('final', final, wanted.finalState, 1.5e-3);
    const [[backOut, backFinal], [wholeOut, wholeFinal]] = [await run(8, 7, true), await run(heads, heads, true)];
    expectErrorRatio('reverse', backOut, wholeOut, 1e-3);
    expectErrorRatio('reverse final', backFinal, wholeFinal, 1e-3);
    for (const x of [q.x, k.x, v.x, initial.x, decay, lengths]) x.dispose();
  });

  test('outputs and gradients of decays that are numbers come by runs, those of a tensor by segments', async () => {
    const problem = { tokens: 600, slopes: [1, 0.4], keyDim: 16, valueDim: 32, dtype: 'f16', initial: true, lengths: [571] } as const;
    const shape = (dim: number): number[] => [1, problem.tokens, 2, dim];
    const [k, v] = [empty(device, shape(16), 'f16'), empty(device, shape(32), 'f16')];
    const given = tensor(device, Float32Array.from(problem.slopes));
    const made = decayTensor(device, decayFromSlopes(problem.slopes));
    expect(planFor(k, v, undefined, undefined, made)).toMatchObject({ form: 'ranges', dispatches: ['outputs'] });
    expect(planFor(k, v, undefined, undefined, given)).toMatchObject({ form: 'segments', segments: 2 });
    for (const x of [k, v, given, made]) x.dispose();
    await checkProblem(device, problem);
  });
});
