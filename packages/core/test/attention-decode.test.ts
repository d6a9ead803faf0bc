// Decode: few query rows over many keys, in parts of the keys.
import { expect, test } from 'vitest';
import { planDecode, planDecodeCall } from '../src/attention/decode.js';
import { runForward } from '../src/attention/forward.js';
import { prepareCall } from '../src/attention/call.js';
import { referenceAttention } from '../src/attention/reference.js';
import { RandomStream } from '../src/random/stream.js';
import { attention, openDevice, scope, type Tensor, tensor, zeros } from '../src/index.js';
import type { AttentionOptions } from '../src/attention/index.js';
import { expectClose, type F64Array, h100Capabilities, randomArray, toFloat32 } from '../src/testing/index.js';

const llama = { batch: 1, queries: 1, keys: 131_072, group: 4, kvHeads: 8, headDim: 128, valueDim: 128 };

test('a plan packs the group of a KV head into one tile and cuts long keys into even parts', () => {
  const plan = planDecode(llama, h100Capabilities)!;
  expect(plan).toMatchObject({ rows: 4, lanesAKey: 16, tiles: 1 });
  // more workgroup memory than 10 KiB would leave fewer of them a multiprocessor
  expect(plan.joined).toBe(2);
  // four workgroups on each of 132 multiprocessors
  expect(plan.splits).toBe(66);
  expect(plan.splitKeys).toBe(1986);
  expect(plan.splits * plan.splitKeys).toBeGreaterThanOrEqual(llama.keys);
  expect((plan.splits - 1) * plan.splitKeys).toBeLessThan(llama.keys);
  expect(planDecode({ ...llama, keys: 30 }, h100Capabilities)).toMatchObject({ splits: 1 });
  expect(planDecode({ ...llama, keys: 4096 }, h100Capabilities)).toMatchObject({ splits: 66, splitKeys: 63, keysAStep: 2 });
  expect(planDecode({ ...llama, keys: 16_384 }, h100Capabilities)).toMatchObject({ splits: 66, keysAStep: 4 });
  expect(planDecode({ ...llama, batch: 1000 }, h100Capabilities)).toMatchObject({ splits: expect.toSatisfy((n: number) => n <= 2) });
});

test('rows past a tile go to further tiles; few lanes a key hold few rows', () => {
  expect(planDecode({ ...llama, group: 16 }, h100Capabilities)).toMatchObject({ rows: 8, tiles: 2 });
  expect(planDecode({ ...llama, group: 5 }, h100Capabilities)).toMatchObject({ rows: 8, tiles: 1 });
  expect(planDecode({ ...llama, headDim: 16, valueDim: 8 }, h100Capabilities)).toMatchObject({ rows: 2, lanesAKey: 2, tiles: 2 });
});

test('calls that are no decode, or that lanes cannot share a key of, are left to other kernels', () => {
  expect(planDecode({ ...llama, queries: 5 }, h100Capabilities)).toBeUndefined();
  expect(planDecode({ ...llama, headDim: 100 }, h100Capabilities)).toBeUndefined();
  expect(planDecode(llama, { ...h100Capabilities, subgroupMinSize: 8 })).toBeUndefined();
  expect(planDecode(llama, { ...h100Capabilities, subgroups: false })).toBeUndefined();
});

test('the parts of one query are cut from the keys that it sees', async () => {
  const device = await openDevice({ tier: 'subgroups', nullBackend: true });
  const [q, k] = [1, 4000].map((tokens) => zeros(device, [1, tokens, 2, 16])) as [Tensor, Tensor];
  const splits = (options: AttentionOptions): number | undefined => {
    const call = prepareCall('test', q, k, k, options);
    return planDecodeCall(call, { q, k, v: k, arrays: [], selection: [] })?.splits;
  };
  expect(splits({ causal: true })).toBe(125);
  expect(splits({ causal: true, window: 300 })).toBe(10);
  expect(splits({ causal: true, window: 300, sinkTokens: 100 })).toBe(13);
  expect(splits({ causal: true, queryOffset: 500 })).toBe(16);
  for (const t of [q, k]) t.dispose();
  await device.close();
});

const random = new RandomStream(11);
test.each([
  [
    'several keys of a stream in flight, a window with sinks',
    { D: 16, Dv: 16, Tq: 1, Tk: 150, H: 2, Hkv: 2 },
    { window: 40, sinkTokens: 3, half: true },
  ],
  ['the heads of a group in two tiles, a window', { D: 16, Dv: 16, Tq: 1, Tk: 150, H: 3, Hkv: 1 }, { window: 40, half: true }],
  ['every key of rows longer than their lanes', { D: 24, Dv: 16, Tq: 1, Tk: 70, H: 2, Hkv: 2 }, {}],
  ['rows past a tile, lanes past the row, a learned sink', { D: 24, Dv: 8, Tq: 3, Tk: 40, H: 2, Hkv: 1 }, { sinks: true }],
] as const)(
  '%s',
  async (
    _,
    { D, Dv, Tq, Tk, H, Hkv },
    { sinks = false, half = false, ...rest }: { sinks?: boolean; half?: boolean; window?: number; sinkTokens?: number },
  ) => {
    const device = await openDevice({ tier: 'subgroups' });
    const arrays = [[2, Tq, H, D], [2, Tk, Hkv, D], [2, Tk, Hkv, Dv], [H]].map((shape) => randomArray(random, shape)) as [
      F64Array,
      F64Array,
      F64Array,
      F64Array,
    ];
    const dtype = half ? 'f16' : 'f32';
    const [q, k, v, s] = arrays.map((a, i) => tensor(device, toFloat32(a), a.shape, { dtype: i < 3 ? dtype : 'f32' }));
    const options = { causal: true, ...rest, ...(sinks && { sinks: s! }) };
    const call = prepareCall('test', q!, k!, v!, options);
    const tensors = { q: q!, k: k!, v: v!, arrays: call.arrays.map((a) => a.tensor), selection: [] };
    // as hardware takes it: several rows a tile, several keys a stream in flight, several parts
    const lanesAKey = D > 16 ? 4 : 2;
    const plan = {
      rows: H > Hkv ? 2 : 1,
      lanesAKey,
      keysAStep: H > Hkv ? 1 : D > 16 ? 4 : 2,
      // in two rounds, and in one
      joined: H > Hkv && !sinks ? 2 : 1,
      lanes: 32,
      tiles: Math.ceil((Tq * H) / Hkv / (H > Hkv ? 2 : 1)),
      splits: 2,
      splitKeys: Math.ceil(Tk / 2),
    };
    const whole = planDecodeCall(call, tensors);
    expect(whole === undefined).toBe(Tq > 1);
    const [first, second] = [0, 1].map(() => scope(() => runForward(call, tensors, { decode: plan })));
    const tolerance = half ? { atol: 3e-3, rtol: 3e-3 } : { atol: 1e-5, rtol: 1e-5 };
    const places = { causal: true, window: rest.window ?? Tk, sinkTokens: rest.sinkTokens ?? 0 };
    const expected = referenceAttention(arrays[0], arrays[1], arrays[2], {
      queryOffset: Tk - Tq,
      mask: (_b: number, _h: number, at: number, key: number) => key <= at && (at - key < places.window || key < places.sinkTokens),
      ...(sinks && { sinks: arrays[3] }),
    });
    expectClose('out', { shape: first!.out.shape, values: await first!.out.read() }, expected.out, tolerance);
    expectClose('lse', { shape: first!.lse.shape, values: await first!.lse.read() }, expected.lse, tolerance);
    expect(await second!.out.read()).toEqual(await first!.out.read());
    const chosen = scope(() => attention(q!, k!, v!, options));
    expectClose('chosen', { shape: chosen.shape, values: await chosen.read() }, expected.out, tolerance);
    for (const t of [q!, k!, v!, s!, first!.out, first!.lse, second!.out, second!.lse, chosen]) t.dispose();
    expect(device.memory().tensors).toBe(0);
    await device.close();
  },
);

test('calls of different lengths in one command buffer leave each other alone', async () => {
  const device = await openDevice({ tier: 'subgroups' });
  const lengths = [40, 97, 700];
  const inputs = lengths.map((tokens) =>
    [1, tokens, tokens].map((of) => {
      const a = randomArray(random, [1, of, 2, 16]);
      return { a, t: tensor(device, toFloat32(a), a.shape) };
    }),
  );
  const calls = [0, 1, 2, 1, 0, 2].map((i) => ({ i, out: attention(...(inputs[i]!.map(({ t }) => t) as [Tensor, Tensor, Tensor])) }));
  for (const { i, out } of calls) {
    const [q, k, v] = inputs[i]!.map(({ a }) => a) as [F64Array, F64Array, F64Array];
    const expected = referenceAttention(q, k, v, {});
    expectClose(`${lengths[i]} keys`, { shape: out.shape, values: await out.read() }, expected.out, { atol: 1e-5, rtol: 1e-5 });
  }
  for (const t of [...calls.map(({ out }) => out), ...inputs.flat().map(({ t }) => t)]) t.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

test('a decode step allocates nothing that stays', async () => {
  const device = await openDevice({ tier: 'subgroups' });
  const [q, k, v] = [1, 64, 64].map((tokens) => tensor(device, new Float32Array(tokens * 16), [1, tokens, 1, 16]));
  const step = (): void => attention(q!, k!, v!).dispose();
  step();
  await device.idle();
  const { liveBytes, buffers } = device.memory();
  for (let i = 0; i < 20; i++) step();
  await device.idle();
  expect(device.memory()).toMatchObject({ liveBytes, buffers });
  for (const t of [q!, k!, v!]) t.dispose();
  await device.close();
});
