// Bind groups are found again by what they bind, go with their buffers, and never grow without end.
import { afterAll, beforeAll, expect, test } from 'vitest';
import fc from 'fast-check';
import { BindGroups, type BindLayout, type BufferWindow } from '../src/device/bind-groups.js';
import { type BufferPool, Storage } from '../src/device/pool.js';
import { add, type Device, mul, openDevice, scope, tensor } from '../src/index.js';

const layouts = [0, 1].map((number): BindLayout => ({ number, layout: { label: `layout ${number}` } as GPUBindGroupLayout }));
const storage = (id: number): Storage => new Storage({} as BufferPool, id, {} as GPUBuffer, 1024);
const whole = (...storages: readonly Storage[]): BufferWindow[] => storages.map((one) => ({ storage: one, offset: 0, size: one.bytes }));

/** A cache whose groups are numbered as they are made. */
function counted(most?: number): { cache: BindGroups; made: () => number } {
  let made = 0;
  return { cache: new BindGroups(() => ({ label: String(made++) }) as GPUBindGroup, most), made: () => made };
}

let device: Device;
beforeAll(async () => {
  device = await openDevice();
});
afterAll(() => device.close());

test('a group is found again by layout, buffers in order and windows, and by nothing less', () => {
  const buffers = [1, 2, 3].map(storage);
  const window = fc.record({ storage: fc.constantFrom(...buffers), offset: fc.constantFrom(0, 256), size: fc.constantFrom(256, 512) });
  const wanted = fc.tuple(fc.constantFrom(...layouts), fc.array(window, { minLength: 1, maxLength: 3 }));
  fc.assert(
    fc.property(fc.array(wanted, { maxLength: 60 }), (list) => {
      const { cache } = counted();
      const known = new Map<string, GPUBindGroup>();
      for (const [layout, windows] of list) {
        const key = [layout.number, ...windows.map((w) => `${w.storage.id}:${w.offset}:${w.size}`)].join();
        const { group, storages } = cache.get(layout, windows, '');
        expect(group).toBe(known.get(key) ?? group);
        expect(storages).toEqual(windows.map((w) => w.storage));
        known.set(key, group);
      }
      expect(new Set(known.values()).size).toBe(known.size);
      expect(cache.size).toBe(known.size);
      buffers.forEach((one) => cache.drop(one));
    }),
    { seed: 3, numRuns: 60 },
  );
});

test('what is bound later may reuse the list of windows', () => {
  const { cache } = counted();
  const [a, b] = [storage(1), storage(2)];
  const windows = whole(a);
  const first = cache.get(layouts[0]!, windows, '');
  windows[0]!.storage = b;
  expect(cache.get(layouts[0]!, windows, '')).not.toBe(first);
  expect(cache.get(layouts[0]!, whole(a), '')).toBe(first);
});

test('a buffer takes every group that binds it along, and none else', () => {
  fc.assert(
    fc.property(fc.array(fc.uniqueArray(fc.nat(5), { minLength: 1, maxLength: 3 }), { maxLength: 40 }), fc.nat(5), (sets, gone) => {
      const { cache, made } = counted();
      const buffers = Array.from({ length: 6 }, (_, i) => storage(i + 1));
      const windows = sets.map((set) => whole(...set.map((i) => buffers[i]!)));
      for (const w of windows) cache.get(layouts[0]!, w, '');
      cache.drop(buffers[gone]!);
      const kept = new Set(sets.filter((set) => !set.includes(gone)).map(String));
      expect(cache.size).toBe(kept.size);
      buffers.forEach((one, i) => expect(one.boundBy.size).toBe([...kept].filter((set) => set.split(',').includes(String(i))).length));
      const before = made();
      windows.forEach((w, i) => !sets[i]!.includes(gone) && cache.get(layouts[0]!, w, ''));
      expect(made()).toBe(before);
    }),
    { seed: 5, numRuns: 60 },
  );
});

test('shapes that vary without end do not grow the cache', () => {
  const { cache, made } = counted(8);
  const [fixed, other] = [storage(1), storage(2)];
  for (let i = 0; i < 100; i++) {
    cache.get(layouts[0]!, whole(fixed, storage(i + 3)), '');
    cache.get(layouts[0]!, whole(other), '');
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
