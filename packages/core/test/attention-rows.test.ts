import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, scope, type Tensor, tensor } from '../src/index.js';
import { attentionWithLse, type AttentionOptions, type AttentionResult, type BlockSelection, document } from '../src/attention/index.js';
import { runBackward } from '../src/attention/backward.js';
import { type AttentionCall, prepareCall } from '../src/attention/call.js';
import { planCall, runForward } from '../src/attention/forward.js';
import type { RowTile } from '../src/attention/kernels/row-lanes.js';
import type { AttentionPlan } from '../src/attention/plan.js';
import { apply } from '../src/internal.js';
import { randomArray } from '../src/testing/index.js';
import { type AttentionCase, checkAttention } from './attention-cases.js';

// The kernels that keep rows in registers, which hardware takes for f32; small tiles here, of each way in which lanes share rows.
let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

function planned(call: AttentionCall, tile: RowTile): AttentionPlan {
  const { forward, dq, dkv } = planCall(call);
  const forced = { fragments: undefined, inRegisters: tile };
  return { forward: { ...forward, ...forced, packed: false, splits: 1 }, dq: { ...dq, ...forced }, dkv: { ...dkv, ...forced } };
}

/** The engine on a tile of one's own, gradients of the small arrays included. */
const forced =
  (tile: RowTile) =>
  (q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): AttentionResult =>
    scope(() => {
      const call = prepareCall('attention', q, k, v, options);
      const plan = planned(call, tile);
      const arrays = call.arrays.map((a) => a.tensor);
      const [out, lse] = apply({
        name: 'attention',
        inputs: [q, k, v, ...call.arrays.filter((a) => a.differentiable).map((a) => a.tensor)],
        forward: () => {
          const made = runForward(call, { q, k, v, arrays, selection: call.selection?.tensors ?? [] }, { plan: plan.forward });
          return [made.out, made.lse];
        },
        saves: (made) => [q, k, v, ...made, ...arrays],
        backward: ([dOut, dLse], { saved }) => {
          const [sq, sk, sv, sOut, sLse, ...sArrays] = saved as [Tensor, Tensor, Tensor, Tensor, Tensor, ...Tensor[]];
          const inputs = {
            q: sq,
            k: sk,
            v: sv,
            arrays: sArrays,
            selection: call.selection?.tensors ?? [],
            out: sOut,
            lse: sLse,
            dOut: dOut ?? null,
            dLse: dLse ?? null,
          };
          const wanted = { q: true, k: true, v: true, arrays: call.arrays.map((a) => a.differentiable) };
          const found = runBackward(call, inputs, wanted, plan);
          return [found.q, found.k, found.v, ...found.arrays.filter((_, i) => call.arrays[i]?.differentiable)];
        },
      }) as [Tensor, Tensor];
      return { out, lse };
    });

const ids = Int32Array.from({ length: 21 }, (_, i) => i >> 3);
const tile = (share: number, rowsALane: number, spread: number, lanes = 16): RowTile => ({
  lanes,
  share,
  rowsALane,
  spread,
  columns: 8,
  together: 2,
});

const cases: Record<string, AttentionCase> = {
  'causal, grouped heads, tails': {
    shape: { B: 2, Tq: 13, Tk: 37, H: 2, Hkv: 1, D: 8 },
    options: () => ({ causal: true }),
    reference: () => ({ mask: (_b, _h, q, kv) => kv <= q }),
  },
  'head dimensions that are no multiples of four': { shape: { Tq: 9, Tk: 18, D: 6, Dv: 21 } },
  'maxima that grow from tile to tile: the output is rescaled': {
    shape: { Tq: 20, Tk: 30, D: 8 },
    deviation: 4,
    gradientTolerance: { atol: 2e-3, rtol: 1e-3 },
  },
  'sinks, key biases and softcap': {
    shape: { Tq: 10, Tk: 20, H: 2, D: 4 },
    options: (make, r) => ({ sinks: make(randomArray(r, [2])), keyBias: make(randomArray(r, [20])), softcap: 4 }),
    reference: (r) => ({ sinks: randomArray(r, [2]), keyBias: randomArray(r, [20]), softcap: 4 }),
  },
  'a window with leading tokens': {
    shape: { Tq: 40, D: 8 },
    options: () => ({ causal: true, window: 6, sinkTokens: 3 }),
    reference: () => ({ mask: (_b, _h, q, kv) => kv <= q && (q - kv < 6 || kv < 3) }),
  },
  'tiles of a mask': {
    shape: { Tq: 21, D: 4 },
    options: () => ({ mask: document(ids) }),
    reference: () => ({ mask: (_b, _h, q, kv) => ids[q] === ids[kv] }),
  },
};

const lists: Tensor[] = [];
const blocks = [[0, 2], [1], []];
const seesBlock = (_b: number, _h: number, q: number, kv: number): boolean => (blocks[q >> 4] ?? []).includes(kv >> 3);

describe('rows in registers', () => {
  for (const [name, c] of Object.entries(cases)) test(name, () => checkAttention(device, { ...c, call: forced(tile(4, 2, 1)) }));
  const shared: [string, RowTile][] = [
    ['as many lanes, apart', tile(4, 4, 2)],
    ['eight lanes', tile(8, 4, 1)],
    ['one row', tile(8, 1, 1, 32)],
  ];
  test.each(['ids', 'bits'] as const)('blocks of a selection as %s', (form) =>
    checkAttention(device, {
      shape: { Tq: 39, Tk: 21, D: 8 },
      options: () => {
        const list =
          form === 'ids'
            ? tensor(device, Int32Array.of(0, 2, 1, -1, -1, -1), [1, 1, 3, 2])
            : tensor(device, Uint32Array.of(0b101, 0b010, 0), [1, 1, 3, 1]);
        lists.push(list);
        return { selection: { blockQueries: 16, blockKeys: 8, [form]: list } as BlockSelection, queryOffset: 0 };
      },
      reference: () => ({ mask: seesBlock, queryOffset: 0 }),
      call: forced(tile(4, 2, 1)),
    }).finally(() => lists.splice(0).forEach((list) => list.dispose())),
  );
  test.each(shared)('rows shared by %s', (_, t) =>
    checkAttention(device, { ...(cases['causal, grouped heads, tails'] as AttentionCase), call: forced(t) }),
  );
});

describe('on a device that is taken for hardware', () => {
  let hardware: Device;
  beforeAll(async () => {
    hardware = await openDevice({ tier: 'subgroups' });
    Object.defineProperty(hardware.report, 'software', { value: false });
  });
  afterAll(async () => {
    expect(hardware.memory().tensors).toBe(0);
    await hardware.close();
  });
  test('the engine takes these kernels by itself, whole tiles in a loop of their own', async () => {
    const names: string[] = [];
    const c = {
      shape: { Tq: 70, Tk: 75, D: 16 },
      options: () => ({ causal: true }),
      reference: () => ({ mask: (_b: number, _h: number, q: number, kv: number) => kv <= q }),
    };
    const trace = hardware.trace();
    await checkAttention(hardware, { ...c, call: attentionWithLse });
    for (const { kernel, tier } of trace()) names.push(`${kernel} ${tier}`);
    for (const kernel of ['forward', 'dq', 'dkv']) expect(names).toContain(`attention-${kernel} subgroups`);
  });
});
