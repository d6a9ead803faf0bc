import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, type Tensor, tensor } from '../src/index.js';
import { attentionColumnSums, attentionWithLse, type BlockSelection } from '../src/attention/index.js';
import { referenceAttention } from '../src/attention/reference.js';
import { RandomStream } from '../src/random/stream.js';
import { expectClose, randomArray, toFloat32 } from '../src/testing/index.js';
import { checkAttention } from './attention-cases.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

const kept: Tensor[] = [];
const release = (): void => {
  for (const t of kept.splice(0)) t.dispose();
};

/** A selection and its host twin: which key blocks row `block` of a head sees. */
function selected(
  blocks: number[][][],
  blockQueries: number,
  blockKeys: number,
  keyBlocks: number,
  form: 'ids' | 'bits',
  batch = 1,
): BlockSelection {
  const heads = blocks.length;
  const rows = blocks[0]?.length ?? 0;
  if (form === 'bits') {
    const words = Math.ceil(keyBlocks / 32);
    const bits = new Uint32Array(heads * rows * words);
    blocks.flat().forEach((row, r) =>
      row.forEach((block) => {
        bits[r * words + (block >> 5)]! |= 1 << (block & 31);
      }),
    );
    const t = tensor(device, bits, [1, heads, rows, words]);
    kept.push(t);
    return { blockQueries, blockKeys, bits: t };
  }
  const width = Math.max(...blocks.flat().map((row) => row.length)) + 1;
  const ids = Int32Array.from(
    { length: batch * heads * rows * width },
    (_, i) => blocks.flat()[Math.floor(i / width) % (heads * rows)]?.[i % width] ?? -1,
  );
  const t = tensor(device, ids, [batch, heads, rows, width]);
  const counts = tensor(
    device,
    Uint32Array.from({ length: batch * heads * rows }, (_, r) => (r % 3 === 0 ? 99 : blocks.flat()[r % (heads * rows)]!.length)),
    [batch, heads, rows],
  );
  kept.push(t, counts);
  return { blockQueries, blockKeys, ids: t, counts };
}

const sees =
  (blocks: number[][][], blockQueries: number, blockKeys: number, group: number, offset: number) =>
  (_b: number, h: number, q: number, kv: number): boolean =>
    (blocks[Math.floor(h / group) % blocks.length]?.[Math.floor((q - offset) / blockQueries)] ?? []).includes(Math.floor(kv / blockKeys));

describe('selections of key blocks made on the device, forward and backward', () => {
  // 3 query blocks of 16 (the last short) by 5 key blocks of 8
  const perKvHead = [
    [[0, 3], [1], []],
    [[4, 2, 0], [0, 1, 2, 3, 4], [3]],
  ];

  test.each(['ids', 'bits'] as const)('%s a KV head, rectangular blocks, short last blocks, an empty row', (form) =>
    checkAttention(device, {
      shape: { B: 2, Tq: 39, Tk: 37, H: 4, Hkv: 2, D: 8 },
      options: () => ({ selection: selected(perKvHead, 16, 8, 5, form), queryOffset: 0 }),
      reference: () => ({ mask: sees(perKvHead, 16, 8, 2, 0), queryOffset: 0 }),
    }).finally(release),
  );

  test('causal on top of ids a query head, with counts beyond the width', () => {
    const perHead = [
      [[0], [1, 0], [2, 1]],
      [[0], [0, 1], [0, 2]],
    ];
    return checkAttention(device, {
      shape: { Tq: 39, H: 2, Hkv: 1, D: 8 },
      options: () => ({ selection: selected(perHead, 16, 16, 3, 'ids'), causal: true }),
      reference: () => ({ mask: (b, h, q, kv) => kv <= q && sees(perHead, 16, 16, 1, 0)(b, h, q, kv) }),
    }).finally(release);
  });

  test('decode: one query over the selected blocks of its KV head', () => {
    const rows = [[[5, 0, 2]], [[1]]];
    return checkAttention(device, {
      shape: { Tq: 1, Tk: 90, H: 4, Hkv: 2, D: 8 },
      cotangents: 'none',
      options: () => ({ selection: selected(rows, 1, 16, 6, 'ids') }),
      reference: () => ({ mask: sees(rows, 1, 16, 2, 89) }),
    }).finally(release);
  });
});

test('column sums are the sums of the probabilities, for masks and grouped heads', async () => {
  const random = new RandomStream(3);
  const [q, k, v] = [randomArray(random, [2, 19, 4, 8]), randomArray(random, [2, 27, 2, 8]), randomArray(random, [2, 27, 2, 8])];
  const { columnSums } = referenceAttention(q, k, v, { queryOffset: 8, mask: (_b, _h, i, j) => j <= i && i - j < 9 });
  const [tq, tk, tv] = [q, k, v].map((a) => tensor(device, toFloat32(a), a.shape)) as [Tensor, Tensor, Tensor];
  const options = { causal: true, window: 9 };
  const { out, lse } = attentionWithLse(tq, tk, tv, options);
  const sums = attentionColumnSums(tq, tk, lse, options);
  const got = await sums.read();
  const byKey = Float32Array.from(columnSums.values, (_, i) => {
    const [b, j, h] = [Math.floor(i / (27 * 4)), Math.floor(i / 4) % 27, i % 4];
    return got[(b * 4 + h) * 27 + j] as number;
  });
  expectClose('column sums', { shape: columnSums.shape, values: byKey }, columnSums);
  for (const t of [tq, tk, tv, out, lse, sums]) t.dispose();
});
