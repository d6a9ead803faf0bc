import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Device, openDevice, RandomStream, scope, slice, tensor, type Tensor } from '@heed/core';
import { expectErrorRatio, f64 } from '@heed/core/testing';
import { titansSegmentAttention, type TitansSegmentOptions } from '../src/titans/index.js';
import { blockDiagonalCausal } from '../src/titans/segment-mask.js';

const draw = (name: string, shape: readonly number[]): Float32Array<ArrayBuffer> =>
  new RandomStream(9, name).normal(shape.reduce((a, b) => a * b, 1));

/** Softmax over persistent keys and those that `sees` names, one head of one batch entry after the other, in float64. */
function expected(tokens: number, heads: number, persistent: number, sees: (i: number, j: number) => boolean): Float64Array {
  const d = 4;
  const [q, k, v] = ['q', 'k', 'v'].map((name) => draw(name, [1, tokens, heads, d])) as [Float32Array, Float32Array, Float32Array];
  const [pk, pv] = ['pk', 'pv'].map((name) => draw(name, [persistent, heads, d])) as [Float32Array, Float32Array];
  const out = new Float64Array(tokens * heads * d);
  for (let h = 0; h < heads; h++)
    for (let i = 0; i < tokens; i++) {
      const rows: [Float32Array, Float32Array, number][] = Array.from({ length: persistent }, (_, p) => [pk, pv, (p * heads + h) * d]);
      for (let j = 0; j < tokens; j++) if (sees(i, j)) rows.push([k, v, (j * heads + h) * d]);
      const weights = rows.map(([keys, , at]) =>
        Math.exp([0, 1, 2, 3].reduce((s, c) => s + q[(i * heads + h) * d + c]! * keys[at + c]!, 0) / 2),
      );
      const total = weights.reduce((a, b) => a + b, 0);
      for (let c = 0; c < d; c++)
        out[(i * heads + h) * d + c] = rows.reduce((s, [, values, at], r) => s + (weights[r]! / total) * values[at + c]!, 0);
    }
  return out;
}

describe('segment attention', () => {
  let device: Device;
  beforeAll(async () => {
    device = await openDevice({ tier: 'baseline' });
  });
  afterAll(async () => {
    expect(device.memory().tensors).toBe(0);
    await device.close();
  });
  const run = (tokens: number, options: TitansSegmentOptions, persistent: number, from = 0): Tensor =>
    scope(() => {
      const on = (name: string, shape: readonly number[]): Tensor => tensor(device, draw(name, shape), shape);
      const [q, k, v] = ['q', 'k', 'v'].map((name) => on(name, [1, tokens, 2, 4])) as [Tensor, Tensor, Tensor];
      const learned = persistent > 0 ? { persistent: { k: on('pk', [persistent, 2, 4]), v: on('pv', [persistent, 2, 4]) } } : {};
      return titansSegmentAttention(slice(q, 1, from), k, v, { ...options, ...learned });
    });

  test('is causal inside of segments or over a sliding window, behind what all see, at any length', async () => {
    for (const [tokens, segment, persistent] of [
      [13, 4, 3],
      [70, 32, 0],
      [5, 9, 2],
      [150, 37, 16],
    ] as const) {
      for (const sliding of [false, true]) {
        const sees = (i: number, j: number): boolean =>
          j <= i && (sliding ? i - j <= segment : Math.floor(i / segment) === Math.floor(j / segment));
        const out = run(tokens, { segment, sliding }, persistent);
        const wanted = f64([1, tokens, 2, 4], expected(tokens, 2, persistent, sees));
        expectErrorRatio(
          `${tokens} tokens, segments of ${segment}, sliding ${sliding}`,
          { shape: out.shape, values: await out.read() },
          wanted,
          3e-6,
        );
        out.dispose();
      }
    }
  });

  test('gives the last rows alone when queries are fewer than keys', async () => {
    for (const sliding of [false, true]) {
      const whole = run(21, { segment: 8, sliding }, 2);
      const last = run(21, { segment: 8, sliding }, 2, 16);
      const rows = [...(await whole.read())].slice(16 * 8);
      expectErrorRatio('last rows', { shape: last.shape, values: await last.read() }, f64(last.shape, rows), 1e-6);
      whole.dispose();
      last.dispose();
    }
  });

  test("the mask's runs agree with its predicate for every pair", () => {
    for (const [segment, persistent, queries, tile] of [
      [5, 3, 23, 4],
      [8, 0, 30, 8],
      [3, 7, 17, 16],
    ] as const) {
      const mask = blockDiagonalCausal({ segment, persistent });
      const keys = queries + persistent;
      const tiles = { query: tile, key: tile };
      let pairs = 0;
      for (let row = 0; row * tile < queries; row++) {
        const runs = mask.runs(0, row, tiles, { queries, keys });
        for (let i = row * tile; i < Math.min(queries, (row + 1) * tile); i++)
          for (let j = 0; j < keys; j++) {
            const place = Math.floor(j / tile);
            const run = runs.find(([first, end]) => place >= first && place < end);
            const seen = mask.visible(0, 0, i + persistent, j);
            expect(seen).toBe(
              j < persistent || (j - persistent <= i && Math.floor((j - persistent) / segment) === Math.floor(i / segment)),
            );
            if (seen) expect(run, `query ${i}, key ${j}`).toBeDefined();
            if (run?.[2] === 'full') expect(seen).toBe(true);
            pairs += seen ? 1 : 0;
          }
      }
      for (let column = 0; column * tile < keys; column++) {
        const runs = mask.transposedRuns(0, column, tiles, { queries, keys });
        for (let j = column * tile; j < Math.min(keys, (column + 1) * tile); j++)
          for (let i = 0; i < queries; i++) {
            const run = runs.find(([first, end]) => Math.floor(i / tile) >= first && Math.floor(i / tile) < end);
            const seen = mask.visible(0, 0, i + persistent, j);
            if (seen) expect(run, `key ${j}, query ${i}`).toBeDefined();
            if (run?.[2] === 'full') expect(seen).toBe(true);
          }
      }
      expect(mask.area({ queries, keys })).toBe(pairs);
    }
  });

  test('says what does not fit', () => {
    expect(() => run(4, { segment: 0 }, 0)).toThrow(/segment is 0; it must be an integer of 1 or more/);
    scope(() => {
      const [x, learned] = [tensor(device, draw('q', [1, 4, 2, 4]), [1, 4, 2, 4]), tensor(device, draw('pk', [2, 1, 4]), [2, 1, 4])];
      expect(() => titansSegmentAttention(x, x, x, { segment: 2, persistent: { k: learned, v: learned } })).toThrow(
        /it must be \[tokens, 2, 4\]/,
      );
    });
  });
});
