import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, scope } from '../src/index.js';
import { document } from '../src/attention/index.js';
import { prepareCall } from '../src/attention/call.js';
import { planCall, runForward } from '../src/attention/forward.js';
import { randomArray } from '../src/testing/index.js';
import { type AttentionCase, checkAttention } from './attention-cases.js';

// The kernel whose weights pass between lanes by shuffles, which hardware takes for f32 rows; a small tile here.
let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'subgroups' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const forced: Pick<AttentionCase, 'cotangents' | 'call'> = {
  cotangents: 'none',
  call: (q, k, v, options) => {
    const call = prepareCall('attention', q, k, v, options);
    const plan = {
      ...planCall(call).forward,
      packed: false,
      splits: 1,
      fragments: undefined,
      shuffle: { lanes: 16, rowsALane: 2, keysALane: 2 },
    };
    return scope(() => runForward(call, { q, k, v, arrays: call.arrays.map((a) => a.tensor), selection: [] }, { plan }));
  },
};
const ids = Int32Array.from({ length: 21 }, (_, i) => i >> 3);

describe('weights by shuffles', () => {
  const cases: Record<string, AttentionCase> = {
    'causal, grouped heads, tails': {
      shape: { B: 2, Tq: 13, Tk: 37, H: 2, Hkv: 1, D: 8 },
      options: () => ({ causal: true }),
      reference: () => ({ mask: (_b, _h, q, kv) => kv <= q }),
    },
    'head dimensions that are no multiples of four': { shape: { Tq: 9, Tk: 18, D: 6, Dv: 21 } },
    'sinks, key biases and softcap': {
      shape: { Tq: 10, Tk: 20, H: 2, D: 4 },
      options: (make, r) => ({ sinks: make(randomArray(r, [2])), keyBias: make(randomArray(r, [20])), softcap: 4 }),
      reference: (r) => ({ sinks: randomArray(r, [2]), keyBias: randomArray(r, [20]), softcap: 4 }),
    },
    'tiles of a mask': {
      shape: { Tq: 21, D: 4 },
      options: () => ({ mask: document(ids) }),
      reference: () => ({ mask: (_b, _h, q, kv) => ids[q] === ids[kv] }),
    },
  };
  for (const [name, c] of Object.entries(cases)) test(name, () => checkAttention(device, { ...c, ...forced }));
});
