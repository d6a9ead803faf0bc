import { expect, test } from 'vitest';
import {
  type Bytes,
  createKvCache,
  HeedError,
  type KvElementsStage,
  type KvPlacement,
  type KvPlacementStage,
  mul,
  scope,
  type Snapshot,
  tensor,
} from '../src/index.js';
import { devices, expectClose } from './ops-support.js';

const open = devices();

/** Notes what a cache asks of a state. */
class Noted implements KvPlacement {
  readonly calls: string[] = [];
  tokens = 0;
  bytes(): Bytes {
    return { payload: 0, metadata: 0, padding: 0, host: 100 };
  }
  async snapshot(): Promise<Snapshot> {
    return { manifest: { kind: 'noted' }, arrays: { calls: Uint8Array.of(7) } };
  }
  restore({ manifest, arrays }: Snapshot): void {
    this.calls.push(`restore ${String(manifest['kind'])} ${arrays['calls']?.[0]}`);
  }
  truncate(tokens: number): void {
    if (tokens === 1) throw new HeedError('UNSUPPORTED', 'noted: cannot go back to 1 token');
    this.calls.push(`truncate ${tokens}`);
  }
  select(): void {
    this.calls.push('select');
  }
  async prepare(): Promise<void> {
    await Promise.resolve();
    this.calls.push('prepare');
  }
  dispose(): void {
    this.calls.push('dispose');
  }
}

test('elements are changed before they are stored, by what comes along with them', async () => {
  const device = open.baseline;
  const gate: KvElementsStage = {
    kind: 'elements',
    name: 'gate',
    neutral: false,
    settings: {},
    needs: ['hidden'],
    apply: ({ k, v }, { hidden }) => ({ k, v: hidden ? mul(v, hidden) : v }),
  };
  using cache = createKvCache(device, { batch: 1, kvHeads: 1, headDim: 4, capacity: 4, dtype: 'f32', stages: [gate] });
  const x = tensor(device, [1, 2, 3, 4], [1, 1, 1, 4]);
  expect(() => cache.append(x, x)).toThrow(/stage gate needs "hidden"/);
  const rows = scope(() => {
    cache.append(x, x, { hidden: tensor(device, [3], [1, 1, 1, 1]) });
    return cache.rows();
  });
  expectClose(await rows.k.read(), [1, 2, 3, 4], 0, 0);
  expectClose(await rows.v.read(), [3, 6, 9, 12], 0, 0);
  for (const t of [x, rows.k, rows.v]) t.dispose();
});

test('what a stage keeps is prepared, rolled back, selected, snapshot and freed with the cache', async () => {
  const device = open.baseline;
  const states: Noted[] = [];
  const host: KvPlacementStage = {
    kind: 'placement',
    name: 'host',
    neutral: false,
    settings: {},
    start: ({ rows, heads }) => {
      expect([rows, heads]).toEqual([4, [0]]);
      states.push(new Noted());
      return states.at(-1)!;
    },
  };
  const cache = createKvCache(device, { batch: 1, kvHeads: 1, headDim: 4, capacity: 4, dtype: 'f32', stages: [host] });
  const x = tensor(device, new Array<number>(12).fill(1), [1, 3, 1, 4]);
  cache.append(x, x);
  expect(cache.bytes().host).toBe(100);
  await cache.prepare(x);
  expect(() => cache.truncate(1)).toThrow(/cannot go back/);
  expect(cache.tokens).toBe(3);
  cache.truncate(2);
  scope(() => cache.select(tensor(device, Uint32Array.of(0))));
  cache.restore(await cache.snapshot());
  cache.dispose();
  expect(states.map(({ calls }) => calls)).toEqual([['prepare', 'truncate 2', 'select', 'restore noted 7', 'dispose']]);
  x.dispose();
});
