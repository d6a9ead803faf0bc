import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice } from '../src/index.js';
import { type AttentionCase, checkAttention } from './attention-cases.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const causalMask = (_b: number, _h: number, q: number, kv: number): boolean => kv <= q;

describe('dense and banded attention, forward and backward', () => {
  const cases: Record<string, AttentionCase> = {
    'all keys, tails in every direction': { shape: { B: 2, Tq: 19, Tk: 35, H: 2, D: 16 } },
    'causal with grouped heads and fewer queries than keys': {
      shape: { Tq: 21, Tk: 37, H: 4, Hkv: 2, D: 16 },
      options: () => ({ causal: true }),
      reference: () => ({ mask: causalMask }),
    },
    'more queries than keys: the first rows see nothing': {
      shape: { Tq: 20, Tk: 9, H: 2, Hkv: 1, D: 16 },
      options: () => ({ causal: true }),
      reference: () => ({ mask: causalMask }),
    },
    'a causal window with sink tokens': {
      shape: { Tq: 45, H: 1, D: 16 },
      options: () => ({ causal: true, window: 6, sinkTokens: 2 }),
      reference: () => ({ mask: (_b, _h, q, kv) => kv <= q && (q - kv < 6 || kv < 2) }),
    },
    'an even two-sided window': {
      shape: { Tq: 40, H: 1, D: 16 },
      options: () => ({ window: 8 }),
      reference: () => ({ mask: (_b, _h, q, kv) => q - kv <= 4 && kv - q <= 3 }),
    },
    'head dimensions that are no multiple of 4, values of another': { shape: { Tq: 18, H: 2, D: 7, Dv: 5 } },
  };
  for (const [name, c] of Object.entries(cases)) test(name, () => checkAttention(device, c));
});
