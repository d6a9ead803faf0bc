import { expect, test } from 'vitest';
import { createKvCache } from '../src/cache/index.js';
import { RandomStream } from '../src/random/stream.js';
import { scope, tensor } from '../src/index.js';
import { emptySequence, modelAttend, push, randomTokens } from './kv-model.js';
import { devices, expectClose, testedTiers } from './ops-support.js';

const open = devices();

test.each(testedTiers)('pieces of any length and single tokens give dense causal attention on %s', async (tier) => {
  const device = open[tier];
  for (const [sizes, dtype] of [
    [{ kvHeads: 2, heads: 4, headDim: 8, valueDim: 8 }, 'f32'],
    [{ kvHeads: 1, heads: 3, headDim: 5, valueDim: 7 }, 'f16'],
    [{ kvHeads: 1, heads: 2, headDim: 132, valueDim: 256 }, 'f32'],
  ] as const) {
    const random = new RandomStream(1, 'pieces');
    const model = [emptySequence(sizes), emptySequence(sizes)];
    using cache = createKvCache(device, { batch: 2, ...sizes, capacity: 200, dtype, pageTokens: 16 });
    for (const n of [3, 1, 1, 70, 1, 33, 1]) {
      const given = model.map(() => randomTokens(random, n, sizes, dtype));
      const q = Array.from(random.normal(2 * n * sizes.heads * sizes.headDim), Math.fround);
      const out = scope(() => {
        cache.append(
          tensor(
            device,
            given.flatMap((g) => g.k),
            [2, n, sizes.kvHeads, sizes.headDim],
          ),
          tensor(
            device,
            given.flatMap((g) => g.v),
            [2, n, sizes.kvHeads, sizes.valueDim],
          ),
        );
        return cache.attend(tensor(device, q, [2, n, sizes.heads, sizes.headDim]));
      });
      model.forEach((sequence, b) => push(sequence, given[b]!.rows));
      const expected = model.flatMap((sequence, b) =>
        modelAttend(sequence, q.slice((b * q.length) / 2, ((b + 1) * q.length) / 2), n, sizes),
      );
      expectClose(await out.read(), expected, 2e-5, 2e-5, `${n} tokens after ${cache.tokens - n}`);
      out.dispose();
    }
    expect(cache.tokens).toBe(110);
    expect([...(await cache.lengths.read())]).toEqual(new Array(2 * sizes.kvHeads).fill(110));
  }
});
