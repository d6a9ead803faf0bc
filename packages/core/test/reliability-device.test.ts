// What goes wrong on a device must be told: loss, memory, limits, kernels that do not compile.
import { afterAll, beforeAll, expect, test } from 'vitest';
import {
  add,
  type Device,
  HeedError,
  type HeedErrorCode,
  matmul,
  openDevice,
  scope,
  slice,
  softmax,
  sum,
  tensor,
  zeros,
} from '../src/index.js';
import { defineKernel, empty, read, write } from '../src/internal.js';

let device: Device;
beforeAll(async () => {
  device = await openDevice({ tier: 'baseline' });
});
afterAll(async () => {
  expect(device.memory().tensors).toBe(0);
  await device.close();
});

/** The HeedError of a call or promise. */
async function errorOf(work: () => unknown): Promise<HeedError> {
  try {
    await work();
  } catch (error) {
    if (error instanceof HeedError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

async function expectCode(code: HeedErrorCode, work: () => unknown, message?: RegExp): Promise<void> {
  const error = await errorOf(work);
  expect(error.code, error.message).toBe(code);
  if (message) expect(error.message).toMatch(message);
}

const broken = defineKernel({
  name: 'does-not-compile',
  bindings: { x: read('float'), out: write('float') },
  uniforms: {},
  wgsl: () => '@compute @workgroup_size(1) fn main() { store_out(0u, load_x(0u) + nothing_of_this_name); }',
});

test('a device that is lost in mid-work rejects the pending reads and every later call, and a new one opens beside it', async () => {
  const lost = await openDevice({ tier: 'baseline' });
  const x = zeros(lost, [64, 64]);
  let y = x;
  for (let i = 0; i < 20; i++) y = add(y, 1);
  const pending = [y.read(), x.read(), lost.idle()].map((work) => errorOf(() => work));
  lost.gpu.destroy();
  for (const error of await Promise.all(pending)) {
    expect(error.code).toBe('DEVICE_LOST');
    expect(error.message).toMatch(/openDevice\(\)/);
  }
  await expectCode('DEVICE_LOST', () => y.read());
  await expectCode('DEVICE_LOST', () => lost.idle());
  await expectCode('DEVICE_LOST', () => zeros(lost, [4]));
  await expectCode('DEVICE_LOST', () => tensor(lost, [1, 2]));
  await expectCode('DEVICE_LOST', () => add(x, 1));
  await expectCode('DEVICE_LOST', () => matmul(x, x));

  const next = await openDevice({ tier: 'baseline' });
  const z = tensor(next, [1, 2, 3]);
  expect([...(await z.read())]).toEqual([1, 2, 3]);
  z.dispose();
  await next.close();
  x.dispose();
  y.dispose();
  await lost.close();
  await expectCode('DISPOSED', () => zeros(lost, [4]), /closed/);
});

test('loss between two windows of a long read rejects it', async () => {
  const lost = await openDevice({ tier: 'baseline' });
  const x = zeros(lost, [5 * 2 ** 20]);
  const copy = lost.recorder.copy.bind(lost.recorder);
  let windows = 0;
  lost.recorder.copy = (...window) => {
    copy(...window);
    if (++windows === 2) lost.gpu.destroy();
  };
  await expectCode('DEVICE_LOST', () => x.read());
  expect(windows).toBe(2);
  x.dispose();
  await lost.close();
});

test('a buffer over the limit is refused before anything is recorded, with limit, need and a way out', async () => {
  const before = device.memory();
  const most = device.limits.maxBufferSize;
  await expectCode('LIMIT_EXCEEDED', () => zeros(device, [most / 4 + 1]), /needs a buffer of .*B, this device allows .*; split/);
  await expectCode('LIMIT_EXCEEDED', () => zeros(device, [2 ** 20, 2 ** 20]), /4 TiB/);
  expect(device.memory()).toEqual(before);
  await device.idle();
});

test('a tensor larger than a binding works by its slices and is refused as a whole', async () => {
  const small = await openDevice({ tier: 'baseline' });
  Object.assign(small.limits, { maxStorageBufferBindingSize: 64 * 1024 });
  const x = tensor(
    small,
    Float32Array.from({ length: 40_000 }, (_, i) => i),
    [40, 1000],
  );
  const filled = zeros(small, [40, 1000], { label: 'filled' });
  expect((await filled.read()).every((v) => v === 0)).toBe(true);
  for (const row of [0, 7, 23, 39]) {
    const y = scope(() => add(slice(x, 0, row, row + 1), 1));
    expect(Array.from(await y.read())).toEqual(Array.from({ length: 1000 }, (_, i) => row * 1000 + i + 1));
    y.dispose();
  }
  await expectCode('LIMIT_EXCEEDED', () => add(x, 1), /\[40, 1000\].*156\.25 KiB.*64 KiB; split/);
  await small.idle();
  x.dispose();
  filled.dispose();
  expect(small.memory().tensors).toBe(0);
  await small.close();
});

test('on a device with 128 MiB bindings, 160 MiB are filled and read by slices', async () => {
  // the null backend validates every binding against the real limit and computes nothing
  const empties = await openDevice({ tier: 'baseline', nullBackend: true });
  expect(empties.limits.maxStorageBufferBindingSize).toBe(128 * 2 ** 20);
  const x = zeros(empties, [160, 2 ** 18]);
  const part = slice(x, 0, 150, 151);
  const y = add(part, 1);
  await empties.idle();
  await expectCode('LIMIT_EXCEEDED', () => sum(x), /160 MiB.*128 MiB/);
  await empties.idle();
  for (const t of [x, part, y]) t.dispose();
  await empties.close();
});

test('out of memory surfaces on the next read, and the buffer that could not be made is not handed out again', async () => {
  // the null backend has 512 MiB and reports what goes beyond as a real driver does
  const poor = await openDevice({ nullBackend: true });
  const kept = zeros(poor, [16]);
  const large = [0, 1, 2].map(() => empty(poor, [200 * 2 ** 18], 'f32', 'large'));
  await expectCode('OUT_OF_MEMORY', () => kept.read(), /allocating .* MiB for "large".*live.*checkpoint/);
  for (const t of large) t.dispose();
  poor.pool.trim(0);
  const buffers = poor.memory().buffers;
  const again = empty(poor, [200 * 2 ** 18]);
  await poor.idle();
  expect(poor.memory().buffers).toBe(buffers + 1);
  again.dispose();
  kept.dispose();
  expect(poor.memory()).toMatchObject({ tensors: 0, liveBytes: 0 });
  await poor.close();
});

test('a buffer that failed while it was already free is not handed out again', async () => {
  const poor = await openDevice({ nullBackend: true });
  const large = [0, 1, 2].map(() => empty(poor, [200 * 2 ** 18]));
  for (const t of large) t.dispose();
  await expectCode('OUT_OF_MEMORY', () => poor.idle());
  expect(poor.memory()).toMatchObject({ liveBytes: 0, pooledBytes: 0, buffers: 0 });
  const again = empty(poor, [200 * 2 ** 18]);
  await poor.idle();
  again.dispose();
  await poor.close();
});

test('a kernel that does not compile is named by the next read, and the device stays usable', async () => {
  const [x, out] = [tensor(device, [1, 2]), tensor(device, [0, 0])];
  for (let round = 0; round < 2; round++) {
    broken.run(device, { spec: {}, tensors: { x, out }, uniforms: {}, grid: [1] });
    await expectCode('KERNEL_FAILED', () => out.read(), /does-not-compile/);
    const y = add(x, 1);
    expect([...(await y.read())]).toEqual([2, 3]);
    y.dispose();
  }
  x.dispose();
  out.dispose();
});

const countGroups = defineKernel({
  name: 'count-groups',
  bindings: { out: write('u32') },
  uniforms: { groups: 'u32' },
  wgsl: () => `
    @compute @workgroup_size(1)
    fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u) {
      let i = workgroupIndex(group, groups);
      if (i < uniforms.groups) { store_out(i, i + 1u); }
    }`,
});

test('a grid of one direction folds over 65,535 workgroups, one of several is refused', async () => {
  const limit = device.limits.maxComputeWorkgroupsPerDimension;
  expect(limit).toBe(65_535);
  for (const groups of [limit, limit + 1, 2 * limit + 7]) {
    const out = zeros(device, [groups], { dtype: 'u32' });
    countGroups.run(device, { spec: {}, tensors: { out }, uniforms: { groups }, grid: [groups] });
    const values = await out.read();
    expect(values.every((v, i) => v === i + 1)).toBe(true);
    await expectCode(
      'LIMIT_EXCEEDED',
      () => countGroups.run(device, { spec: {}, tensors: { out }, uniforms: { groups }, grid: [limit + 1, 1] }),
      /count-groups.*65536 x 1 x 1.*65535/,
    );
    out.dispose();
  }
});

test('an op with more rows than workgroups in a direction is right to its last row', async () => {
  const rows = 65_600;
  const x = tensor(
    device,
    Float32Array.from({ length: rows * 2 }, (_, i) => (i % 2 === 0 ? 0 : i % 3)),
    [rows, 2],
  );
  const y = softmax(x);
  const [got, given] = [await y.read(), await x.read()];
  for (const row of [0, 1, 65_534, 65_535, 65_536, rows - 1]) {
    const share = 1 / (1 + Math.exp(-(given[row * 2 + 1] ?? 0)));
    expect(got[row * 2 + 1]).toBeCloseTo(share, 5);
  }
  x.dispose();
  y.dispose();
});
