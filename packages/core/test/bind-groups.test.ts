// Bind groups are found again by what they bind, go with their buffers, and never grow without end.
import { afterAll, beforeAll, expect, test } from 'vitest';
import fc from 'fast-check';
import { BindGroups, type BindLayout, type BoundGroup, type Windows } from '../src/device/bind-groups.js';
import { type BufferPool, Storage } from '../src/device/pool.js';
import { add, type Device, mul, openDevice, scope, tensor } from '../src/index.js';

const layouts = [0, 1].map((number): BindLayout => ({
  number,
  layout: { label: `layout ${number}` } as GPUBindGroupLayout,
}));
const storage = (id: number): Storage => new Storage({} as BufferPool, id, {} as GPUBuffer, 1024);

/** Finds or makes a group, under few hashes, so that many groups share one. */
function get(cache: BindGroups, layout: BindLayout, storages: readonly Storage[], windows?: Windows): BoundGroup {
  const hash = storages.reduce((sum, { id }) => sum + id, layout.number) % 7;
  return cache.find(hash, layout, storages, windows) ?? cache.make(hash, layout, storages, windows, '');
}

/** A cache whose groups are numbered as they are made. */
function counted(most?: number): { cache: BindGroups; made: () => number } {
  let made = 0;
  return {
    cache: new BindGroups(() => ({ label: String(made++) }) as GPUBindGroup, most),
    made: () => made,
  };
}

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(() => device.close());

test('a group is found again by layout, buffers in order and windows, and by nothing less', () => {
  const buffers = [1, 2, 3].map(storage);
  const window = fc.option(fc.record({ offset: fc.constantFrom(0, 256), size: fc.constantFrom(256, 512) }), { nil: undefined });
  const bound = fc.tuple(fc.constantFrom(...buffers), window);
  const wanted = fc.tuple(fc.constantFrom(...layouts), fc.array(bound, { minLength: 1, maxLength: 3 }));
  fc.assert(
    fc.property(fc.array(wanted, { maxLength: 60 }), (list) => {
      const { cache } = counted();
      const known = new Map<string, GPUBindGroup>();
      for (const [layout, pairs] of list) {
        const key = [layout.number, ...pairs.map(([storage, w]) => `${storage.id}:${w?.offset}:${w?.size}`)].join();
        const storages = pairs.map(([storage]) => storage);
        const windows = pairs.some(([, w]) => w) ? pairs.map(([, w]) => w) : undefined;
        const made = get(cache, layout, storages, windows);
        expect(made.group).toBe(known.get(key) ?? made.group);
        expect(made.storages).toEqual(storages);
        known.set(key, made.group);
      }
      expect(new Set(known.values()).size).toBe(known.size);
      expect(cache.size).toBe(known.size);
      buffers.forEach((one) => cache.drop(one));
    }),
    { seed: 3, numRuns: 60 },
  );
});

test('what is bound later may reuse the list of buffers', () => {
  const { cache } = counted();
  const [a, b] = [storage(1), storage(2)];
  const storages = [a];
  const first = get(cache, layouts[0]!, storages);
  storages[0] = b;
  expect(get(cache, layouts[0]!, storages)).not.toBe(first);
  expect(get(cache, layouts[0]!, [a])).toBe(first);
});

test('a buffer takes every group that binds it along, and none else', () => {
  fc.assert(
    fc.property(fc.array(fc.uniqueArray(fc.nat(5), { minLength: 1, maxLength: 3 }), { maxLength: 40 }), fc.nat(5), (sets, gone) => {
      const { cache, made } = counted();
      const buffers = Array.from({ length: 6 }, (_, i) => storage(i + 1));
      const bound = sets.map((set) => set.map((i) => buffers[i]!));
      for (const storages of bound) get(cache, layouts[0]!, storages);
      cache.drop(buffers[gone]!);
      const kept = new Set(sets.filter((set) => !set.includes(gone)).map(String));
      expect(cache.size).toBe(kept.size);
      buffers.forEach((one, i) => expect(one.boundBy.size).toBe([...kept].filter((set) => set.split(',').includes(String(i))).length));
      const before = made();
      bound.forEach((storages, i) => !sets[i]!.includes(gone) && get(cache, layouts[0]!, storages));
      expect(made()).toBe(before);
    }),
    { seed: 5, numRuns: 60 },
  );
});

test('shapes that vary without end do not grow the cache', () => {
  const { cache, made } = counted(8);
  const [fixed, other] = [storage(1), storage(2)];
  for (let i = 0; i < 100; i++) {
    get(cache, layouts[0]!, [fixed, storage(i + 3)]);
    get(cache, layouts[0]!, [other]);
    expect(cache.size).toBeLessThanOrEqual(8);
    expect(fixed.boundBy.size).toBeLessThanOrEqual(8);
  }
  expect(made()).toBeGreaterThan(100);
});

test('a repeated step makes no bind groups; trimmed buffers leave the cache and are not bound again', async () => {
  const x = tensor(device, [1, 2, 3, 4]);
  const step = (): Promise<unknown> => {
    const out = scope(() => add(mul(x, x), add(x, 1)));
    return out.read().finally(() => out.dispose());
  };
  const expected = Float32Array.of(3, 7, 13, 21);
  await step();
  const { size } = device.bindGroups;
  for (let i = 0; i < 3; i++) expect(await step()).toEqual(expected);
  expect(device.bindGroups.size).toBe(size);

  device.pool.trim(0);
  expect(device.memory().pooledBytes).toBe(0);
  expect(device.bindGroups.size).toBe(0);
  expect(x.storage.boundBy.size).toBe(0);
  expect(await step()).toEqual(expected);
  expect(device.bindGroups.size).toBe(size);
  x.dispose();
  device.pool.trim(0);
  expect([device.bindGroups.size, device.tensors, device.memory().liveBytes]).toEqual([0, 0, 0]);
});
