import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, type Tensor, tensor } from '../src/index.js';
import { document } from '../src/attention/index.js';
import { randomArray } from '../src/testing/index.js';
import { type AttentionCase, checkAttention } from './attention-cases.js';

// Kernels on fragments, emulated here: tiling, masks, tails and rescaling are those of the GPU.
let device: Device;
let lengths: Tensor | undefined;
beforeAll(async () => {
  device = await openDevice({ tier: 'matrix' });
});
afterAll(async () => {
  lengths?.dispose();
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const causalPair = (_b: number, _h: number, q: number, kv: number): boolean => kv <= q;
const ids = Int32Array.from({ length: 50 }, (_, i) => (i < 34 ? 0 : 1));
const half = { tolerance: { atol: 4e-3, rtol: 4e-3 }, gradientTolerance: { atol: 1e-2, rtol: 1e-2 }, dtype: 'f16' } as const;

describe('f16 operands with f32 sums', () => {
  const cases: Record<string, AttentionCase> = {
    'causal, grouped heads, tails': {
      ...half,
      shape: { Tq: 37, Tk: 50, H: 2, Hkv: 1, D: 16 },
      options: () => ({ causal: true }),
      reference: () => ({ mask: causalPair }),
    },
    'maxima that grow from tile to tile: the output is rescaled': {
      ...half,
      shape: { Tq: 20, Tk: 70, D: 16 },
      deviation: 4,
      tolerance: { atol: 2e-2, rtol: 2e-2 },
      gradientTolerance: { atol: 0.3, rtol: 5e-2 },
    },
    'a cotangent of the logsumexp alone': { ...half, shape: { Tq: 20, Tk: 35, D: 16 }, cotangents: 'lse' },
    'a head dimension padded to fragments, values of another': { ...half, shape: { Tq: 20, D: 20, Dv: 40 } },
    'sinks, key biases and softcap': {
      ...half,
      shape: { B: 2, Tq: 18, Tk: 35, H: 2, D: 16 },
      options: (make, r) => ({ sinks: make(randomArray(r, [2])), keyBias: make(randomArray(r, [35])), softcap: 4 }),
      reference: (r) => ({ sinks: randomArray(r, [2]), keyBias: randomArray(r, [35]), softcap: 4 }),
    },
    'a window with leading tokens, keys past the lengths': {
      ...half,
      shape: { B: 2, Tq: 40, Tk: 40, D: 16 },
      options: () => ({ causal: true, window: 6, sinkTokens: 3, lengths: (lengths = tensor(device, Int32Array.of(40, 23))) }),
      reference: () => ({ mask: (_b, _h, q, kv) => kv <= q && (q - kv < 6 || kv < 3), lengths: [40, 23] }),
    },
    'tiles of a mask, whole and in part': {
      ...half,
      shape: { Tq: 50, D: 16 },
      options: () => ({ mask: document(ids) }),
      reference: () => ({ mask: (_b, _h, q, kv) => ids[q] === ids[kv] }),
    },
  };
  for (const [name, c] of Object.entries(cases)) test(name, () => checkAttention(device, c));
});
