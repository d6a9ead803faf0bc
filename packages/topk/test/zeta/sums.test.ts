import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Device, openDevice, tensor, zeros } from '@heed/core';
import { extendSums, scanSums, sumTile } from '../../src/zeta/kernels/sums.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

// more tiles than a block of the scan has; small integers, so that sums are exact in any order
const [rows, tiles, valueDim] = [2, 600, 8];
const [tokens, entries, columns] = [tiles * sumTile, tiles + 1, 1 + valueDim / 4];
const integers = (size: number, step: number): Float32Array => Float32Array.from({ length: size }, (_, i) => ((i * step) % 13) - 6);

test('running sums over several blocks of tiles are exact, in one piece or extended by pieces', async () => {
  const [keys, values] = [integers(rows * tokens * 4, 7919), integers(tokens * rows * valueDim, 104_729)];
  const k = tensor(device, keys, [rows, tokens, 4]);
  const v = tensor(device, values, [1, tokens, rows, valueDim]);
  const run = async (ends: readonly number[]): Promise<ArrayLike<number>> => {
    const sums = zeros(device, [rows, entries, columns, 4]);
    let firstTile = 0;
    for (const end of ends) {
      const place = { rows, firstRow: 0, heads: rows, capacity: tokens, entries, tokens: end * sumTile };
      extendSums(k, v, sums, { ...place, firstTile, tiles: end - firstTile });
      firstTile = end;
    }
    const made = await sums.read();
    sums.dispose();
    return made;
  };
  const whole = await run([tiles]);
  expect(await run([1, 300, 557, tiles])).toEqual(whole);
  for (let r = 0; r < rows; r++) {
    const total = new Float64Array(4 * columns);
    for (let e = 0; e < entries; e++) {
      const at = (r * entries + e) * columns * 4;
      expect(Array.from(total)).toEqual(Array.from({ length: 4 * columns }, (_, i) => whole[at + i]));
      for (let t = e * sumTile; t < Math.min((e + 1) * sumTile, tokens); t++)
        for (let i = 0; i < 4 * columns; i++)
          total[i]! += (i < 4 ? keys[(r * tokens + t) * 4 + i] : values[(t * rows + r) * valueDim + i - 4]) as number;
    }
  }
  k.dispose();
  v.dispose();
});

test('reversed, every entry becomes the sum of the tiles from it on', async () => {
  const given = integers(rows * entries * columns * 4, 31);
  const sums = tensor(device, given, [rows, entries, columns, 4]);
  scanSums(sums, columns, { rows, entries, firstTile: 0, tiles }, true);
  const made = await sums.read();
  for (let r = 0; r < rows; r++)
    for (let i = 0; i < 4 * columns; i++) {
      let total = 0;
      for (let e = tiles; e >= 0; e--) {
        const at = (r * entries + e) * columns * 4 + i;
        if (e < tiles) total += given[at] as number;
        expect(made[at]).toBe(total);
      }
    }
  sums.dispose();
});
